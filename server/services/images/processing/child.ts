/** A process that decodes, seen from here: starting, idle, at work, or ended. It works on one thing at a time. */
import { type ChildProcess, spawn } from 'node:child_process'
import path from 'node:path'
import type { Answer, Order } from './order.ts'

export interface Child {
  readonly pid: number | undefined
  /** Resolves with the answer, or with `ended` when the process ended before it gave one. */
  run(order: Order): Promise<Exclude<Answer, { kind: 'ready' }> | Ended>
  /** Ends it at once, whatever it does. */
  kill(): void
  /** Resolves when it is no more. */
  readonly ended: Promise<Ended>
  /** Whether it came to work; false when it ended before it could. */
  readonly ready: Promise<boolean>
}

export interface Ended {
  kind: 'ended'
  /** What it ended with, and its last words. */
  how: string
  /** By which signal, where it was by one. */
  signal: NodeJS.Signals | null
}

const entry = path.join(import.meta.dirname, 'worker.ts')
const lastWordsMax = 2000
/** What a process reserves beside images, for V8 and for stacks: 580 MiB, of which it uses 30, and some room. */
const ownDataBytes = 768 * 1024 * 1024
/** The heap holds orders and answers; pictures are outside of it. */
const heapMib = 64
/** Nothing of this process's environment: it holds secrets. */
const environment = {
  // Each arena keeps what was freed in it. What is large is taken from the kernel and given back: without that, what
  // stays behind after a work adds up to twice as much, and it is no slower.
  MALLOC_ARENA_MAX: '1',
  MALLOC_MMAP_THRESHOLD_: '1048576',
  MALLOC_TRIM_THRESHOLD_: '4194304',
  // One thing at a time, in one thread.
  UV_THREADPOOL_SIZE: '1',
  VIPS_WARNING: '0',
}

/** @param dataBytesMax the kernel refuses it more memory for images than that */
export function startChild({ dataBytesMax }: { dataBytesMax: number }): Child {
  const node = [
    process.execPath,
    `--max-old-space-size=${heapMib}`,
    '--max-semi-space-size=1',
    '--v8-pool-size=0',
    entry,
  ]
  const limit = Math.ceil((dataBytesMax + ownDataBytes) / 1024)
  const child = spawn('/bin/sh', ['-c', 'ulimit -c 0; ulimit -d "$0" && exec "$@"', String(limit), ...node], {
    env: environment,
    cwd: '/',
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    // Bytes go as they are.
    serialization: 'advanced',
  })
  const { promise: ready, resolve: becomeReady } = Promise.withResolvers<boolean>()
  const ended = watchEnd(child)
  ended.then(() => becomeReady(false))
  let answered: ((answer: Exclude<Answer, { kind: 'ready' }>) => void) | undefined
  child.on('message', message => {
    const answer = message as Answer
    if (answer.kind === 'ready') becomeReady(true)
    else answered?.(answer)
  })

  return {
    get pid() {
      return child.pid
    },
    ended,
    ready,
    kill() {
      hold(child, true)
      child.kill('SIGKILL')
    },
    async run(order) {
      const { promise, resolve } = Promise.withResolvers<Exclude<Answer, { kind: 'ready' }>>()
      answered = resolve
      hold(child, true)
      child.send(order, error => {
        if (error) child.kill('SIGKILL')
      })
      const answer = await Promise.race([promise, ended])
      hold(child, false)
      return answer
    },
  }
}

function watchEnd(child: ChildProcess): Promise<Ended> {
  const { promise, resolve } = Promise.withResolvers<Ended>()
  let lastWords = ''
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    lastWords = (lastWords + text).slice(-lastWordsMax)
  })
  child.once('error', error => resolve({ kind: 'ended', how: error.message, signal: null }))
  child.once('exit', (code, signal) => {
    resolve({ kind: 'ended', how: `it ended with ${signal ?? code}. ${lastWords}`.trim(), signal })
  })
  return promise
}

/** Whether this process stays up for it. */
function hold(child: ChildProcess, wanted: boolean) {
  const verb = wanted ? 'ref' : 'unref'
  child[verb]()
  child.channel?.[verb]()
  const stderr = child.stderr as unknown as { ref?(): void; unref?(): void }
  stderr[verb]?.()
}
