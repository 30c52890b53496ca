/** Work is shared out within memory and time, and what goes wrong harms itself alone. */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import sharp from 'sharp'
import { isAlive } from '#platform/processes.ts'
import { makePicture } from '../../../../test/support/pictures.ts'
import { until } from '../../../../test/support/until.ts'
import {
  begunChild,
  busy,
  childrenOf,
  fixed,
  keepPicture,
  makeFolder,
  makeTestProcessor,
  type PictureFile,
} from './test-support.ts'
import { PictureBroken, type Processor, type Work, type WorkDone } from './types.ts'
import { workBytesOf } from './weigh.ts'

const mib = 1024 * 1024
const folder = await makeFolder()
const small = await keepPicture(
  folder,
  'small.jpg',
  await makePicture({ width: 300, height: 200, format: 'jpeg', kind: 'photo', seed: 1 }),
)
/** It takes seconds to encode. */
const slow: Work = {
  ...(await keepPicture(
    folder,
    'slow.jpg',
    await makePicture({ width: 2400, height: 1600, format: 'jpeg', kind: 'photo', seed: 2 }),
  )),
  outputs: [{ transform: fixed('format=avif,quality=95'), path: path.join(folder, 'slow.avif') }],
}
let last = 0

function toFit(picture: PictureFile, words = 'width=64,height=64,format=webp'): Work {
  return { ...picture, outputs: [{ transform: fixed(words), path: path.join(folder, `out-${++last}`) }] }
}

const broken = (says: RegExp) => (error: Error) => error instanceof PictureBroken && says.test(error.message)

test('a file that cannot be decoded says why, and the next one works', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const bytes = readFileSync(small.path)
  const cases: [name: string, bytes: Buffer, says: RegExp][] = [
    ['cut.jpg', bytes.subarray(0, bytes.length / 2), /^It cannot be decoded: .*premature end of JPEG/],
    ['none', Buffer.from('no image at all, though it is long enough'), /^It cannot be decoded: \S/],
    ['svg', Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'), /^It cannot be decoded: \S/],
  ]
  for (const [name, content, says] of cases) {
    const file = await keepPicture(folder, name, bytes)
    await writeFile(file.path, content)
    await assert.rejects(processor.work(toFit(file)), error => {
      assert.ok(broken(says)(error as Error), `${name}: ${error}`)
      assert.ok(!(error as Error).message.includes(folder), 'it does not say where files lie')
      return true
    })
  }
  const larger = { ...small, facts: { ...small.facts, width: 30 } }
  await assert.rejects(processor.work(toFit(larger)), broken(/larger than its header says/))
  await assert.rejects(processor.work(toFit(small, 'crop=290.0.20.20,format=png')), broken(/300 × 200 pixels/))
  assert.equal((await processor.work(toFit(small))).made[0]!.width, 64)
})

test('what the file is not to blame for is another error', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const plain = (error: Error) => !(error instanceof PictureBroken)
  await assert.rejects(processor.work(toFit({ ...small, path: `${folder}/gone` })), plain)
  const outputs = (to: string) => [{ transform: fixed('format=png'), path: to }]
  await assert.rejects(processor.work({ ...small, outputs: outputs(`${folder}/no/folder`) }), plain)
  if (existsSync('/dev/full')) {
    for (const format of ['jpeg', 'png', 'webp', 'gif', 'avif']) {
      const full = [{ transform: fixed(`format=${format}`), path: '/dev/full' }]
      await assert.rejects(processor.work({ ...small, outputs: full }), plain, format)
    }
  }
})

test('what is heavier than all the memory is refused at once', async t => {
  const work = toFit(small)
  const processor = makeTestProcessor(t, { memoryBytes: workBytesOf(work) - 1 })
  await assert.rejects(processor.work(work), broken(/takes \d+ bytes of memory; at most \d+/))
  await makeTestProcessor(t, { memoryBytes: workBytesOf(work) }).work(work)
})

test('what takes too long is ended, and the next one works', async t => {
  const processor = makeTestProcessor(t, { workers: 1, timeoutMs: 700 })
  await assert.rejects(processor.work(slow), broken(/^It took longer than 700 ms\.$/))
  await processor.work(toFit(small))
})

test('work whose process crashes is done again once', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const done = processor.work(slow)
  const pid = await begunChild()
  await busy(pid)
  process.kill(pid, 'SIGSEGV')
  assert.equal((await done).made[0]!.width, slow.facts.width)
  const twice = processor.work(slow)
  twice.catch(() => {})
  for (let n = 0; n < 2; n++) {
    const next = await begunChild()
    await busy(next)
    process.kill(next, 'SIGSEGV')
    await until(() => !isAlive(next))
  }
  await assert.rejects(twice, broken(/crashes the decoder/))
  await processor.work(toFit(small))
  await processor.close()
})

/** Ends the process of a piece of work before it can have done anything. */
async function workKilled(processor: Processor, work: Work, signal: NodeJS.Signals): Promise<WorkDone> {
  // There is a process then, and it is idle.
  await processor.work(toFit({ ...small, id: 'another' }))
  const pid = await begunChild()
  const done = processor.work(work)
  process.kill(pid, signal)
  return done
}

const killed = (signal: string) => (error: Error) =>
  !(error instanceof PictureBroken) && error.message.includes(`killed by ${signal}`)

test('work whose process is killed goes back, and is to blame when that happens again and again', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  await assert.rejects(workKilled(processor, toFit(small), 'SIGTERM'), killed('SIGTERM'))
  await processor.work(toFit(small))
  for (let n = 0; n < 7; n++) {
    await assert.rejects(workKilled(processor, toFit(small), 'SIGKILL'), killed('SIGKILL'), `number ${n}`)
  }
  await assert.rejects(workKilled(processor, toFit(small), 'SIGKILL'), broken(/killed 8 times in a row.* SIGKILL/))
  await assert.rejects(workKilled(processor, toFit(small), 'SIGKILL'), killed('SIGKILL'))
  await processor.work(toFit(small))
})

test('work that somebody waits for and whose process is killed is done again once', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const urgent = { ...toFit(small), urgent: true }
  assert.equal((await workKilled(processor, urgent, 'SIGKILL')).made[0]!.width, 64)
  const twice = workKilled(processor, { ...slow, urgent: true }, 'SIGKILL')
  twice.catch(() => {})
  const first = await begunChild()
  await until(() => !isAlive(first))
  const next = await begunChild()
  await busy(next)
  process.kill(next, 'SIGKILL')
  await assert.rejects(twice, killed('SIGKILL'))
})

test('work that is aborted stops, whether it waits or runs', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const [running, queued] = [new AbortController(), new AbortController()]
  const first = processor.work({ ...slow, signal: running.signal })
  const second = processor.work({ ...toFit(small), signal: queued.signal })
  const third = processor.work(toFit(small))
  const pid = await begunChild()
  await busy(pid)
  assert.equal(processor.waiting, 2)
  queued.abort()
  await assert.rejects(second, { name: 'AbortError' })
  assert.equal(processor.waiting, 1)
  running.abort('cancelled')
  await assert.rejects(first, /aborted/)
  assert.equal((await third).made.length, 1)
  await until(() => !isAlive(pid))
  await assert.rejects(processor.work({ ...toFit(small), signal: AbortSignal.abort() }), { name: 'AbortError' })
})

test('what is urgent waits for nothing that nobody waits for', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const running = new AbortController()
  const first = processor.work({ ...slow, signal: running.signal })
  await busy(await begunChild())
  const second = processor.work(toFit(small))
  for (let n = 0; n < 3; n++) await processor.work({ ...toFit(small), urgent: true })
  assert.equal(processor.waiting, 1, 'the rest has no such place')
  running.abort()
  await assert.rejects(first, /aborted/)
  await second
})

test('a process that decodes has no environment, no files and no loaders but of images', async t => {
  process.env.CAPSTAN_TEST_SECRET = 'hunter2'
  const processor = makeTestProcessor(t, { workers: 1 })
  await processor.work(toFit(small))
  const pid = await begunChild()
  const names = readFileSync(`/proc/${pid}/environ`, 'latin1')
    .split('\0')
    .map(entry => entry.split('=')[0])
  const allowed = /^(MALLOC_.*|UV_THREADPOOL_SIZE|VIPS_WARNING|NODE_CHANNEL_.*|PWD|OLDPWD|SHLVL|_|)$/
  assert.deepEqual(
    names.filter(name => !allowed.test(name!)),
    [],
  )
  const open = execFileSync('ls', ['-l', `/proc/${pid}/fd`], { encoding: 'utf8' })
  assert.doesNotMatch(open, new RegExp(folder))
  await processor.close()
  assert.ok(!isAlive(pid))
  delete process.env.CAPSTAN_TEST_SECRET
})

test('closing lets what runs end within the grace, and takes nothing more', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const running = processor.work(toFit(slow, 'width=800,format=avif'))
  const queued = processor.work(toFit(small))
  const pid = await begunChild()
  const closing = processor.close(30_000)
  await assert.rejects(queued, /being ended/)
  await assert.rejects(processor.work(toFit(small)), /being ended/)
  assert.equal((await running).made.length, 1)
  await closing
  assert.ok(!isAlive(pid))
  const other = makeTestProcessor(t, { workers: 1 })
  const cut = other.work(slow)
  cut.catch(() => {})
  await busy(await begunChild())
  await other.close(0)
  await assert.rejects(cut, error => !(error instanceof PictureBroken))
})

test('no process that decodes outlives one that was killed', async () => {
  const code = `
    import { makeProcessor } from '${import.meta.dirname}/processor.ts'
    const processor = makeProcessor({ workers: 1, memoryBytes: ${1024 * mib}, timeoutMs: 60000, log: console })
    processor.work(JSON.parse(process.argv[1])).catch(() => {})`
  const parent = spawn(process.execPath, ['--input-type=module', '-e', code, JSON.stringify(slow)], { stdio: 'ignore' })
  await until(() => childrenOf(parent.pid!).length > 0)
  const pid = childrenOf(parent.pid!)[0]!
  await busy(pid)
  parent.kill('SIGKILL')
  // Long before its work would end. Nobody may be there to bury it.
  const state = () => (isAlive(pid) ? readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1]![0] : 'gone')
  await until(() => state() === 'Z' || state() === 'gone', 500)
})

test('many large images at once stay within the memory given', async t => {
  const memoryBytes = 200 * mib
  const bytes = await sharp({ create: { width: 6000, height: 4000, channels: 3, background: '#8a4' } })
    .jpeg({ progressive: true })
    .toBuffer()
  const large = await keepPicture(folder, 'large.jpg', bytes)
  const processor = makeTestProcessor(t, { workers: 4, memoryBytes })
  const works = Array.from({ length: 8 }, () => toFit(large))
  const weight = workBytesOf(works[0]!)
  assert.ok(weight > memoryBytes / 2, 'two of them do not go at once')
  let most = 0
  const timer = setInterval(() => {
    most = Math.max(most, childrenOf(process.pid).length)
  }, 20)
  const done = await Promise.all(works.map(work => processor.work(work)))
  clearInterval(timer)
  assert.equal(most, 1)
  assert.ok(Math.max(...done.map(one => one.peakBytes)) <= weight)
})

test('where no process can be started no file is to blame', async t => {
  // More than the shell takes for a limit.
  const processor = makeTestProcessor(t, { memoryBytes: 1e30 })
  await assert.rejects(
    processor.work(toFit(small)),
    error => !(error instanceof PictureBroken) && /could be started/.test((error as Error).message),
  )
})
