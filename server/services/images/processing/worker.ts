/**
 * A process that decodes: gets one piece of work after another over its channel and answers each. It has no secrets, no
 * files but those it is told of, and no loaders but those of images. When its parent goes, it goes.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import sharp from 'sharp'
import { faultOf } from './faults.ts'
import { loaders } from './loaders.ts'
import { makeAll } from './making.ts'
import type { Answer, Order } from './order.ts'

sharp.cache(false)
sharp.concurrency(1)
sharp.block({ operation: ['VipsForeignLoad'] })
sharp.unblock({ operation: loaders })

// A thread in the middle of a decoder would hold up any gentler end.
process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'))
process.on('message', order => void work(order as Order))

const idleBytes = process.memoryUsage.rss()
answer({ kind: 'ready' })

async function work(order: Order) {
  resetPeak()
  try {
    const results = await makeAll(order)
    answer({ kind: 'done', results, peakBytes: Math.max(0, peakBytes() - idleBytes), residentBytes: residentBytes() })
    for (const { body } of results.made) if (body) free(body)
  } catch (error) {
    const paths = [order.path, ...order.outputs.map(output => output.path)]
    answer({ ...faultOf(error, paths), residentBytes: residentBytes() } as Answer)
  }
}

function answer(message: Answer) {
  process.send!(message)
}

/** V8 does not know how large it is, and would free it when it pleases. It was sent: the channel has a copy. */
function free(body: Buffer) {
  ;(body.buffer as ArrayBuffer).transfer(0)
}

function residentBytes(): number {
  return process.memoryUsage.rss() - idleBytes
}

/** Of the kernel's record of the largest resident size; where there is none, the size of now is taken. */
const resetsPeak = '5'

function resetPeak() {
  try {
    writeFileSync('/proc/self/clear_refs', resetsPeak)
  } catch {
    // Then the record is of the whole life.
  }
}

function peakBytes(): number {
  try {
    const [, kib] = /^VmHWM:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'latin1'))!
    return Number(kib) * 1024
  } catch {
    return process.memoryUsage.rss()
  }
}
