/**
 * Shares out work to processes that decode. A piece of work is: waiting for a process and for memory, running in one, and
 * done; one whose process crashed under it waits once more. One whose process was killed from outside goes back to
 * whoever brought it, who may try again later, unless somebody waits for it: then it too waits once more. What runs, all
 * of it together, is held within the memory given by what it weighs (`weigh.ts`), and whoever takes much more than that
 * is stopped.
 */
import type { Log } from '#platform/log.ts'
import { type Child, type Ended, startChild } from './child.ts'
import { isFromOutside, makeKills } from './kills.ts'
import type { Answer, Results } from './order.ts'
import { makeTurns } from './turns.ts'
import { PictureBroken, type Processor, type Work, type WorkDone } from './types.ts'
import { watchMemory } from './watching.ts'
import { workBytesOf } from './weigh.ts'

export interface ProcessorOptions {
  /** Processes, and so pieces of work at once; beside them, one more for what is urgent. */
  workers: number
  /** For all of them together, in bytes, beside what idle processes have. */
  memoryBytes: number
  /** For one piece of work, from when it begins. */
  timeoutMs: number
  log: Pick<Log, 'warn'>
  /** How long a process without work is kept. */
  idleMs?: number
}

interface Task {
  work: Work
  weight: number
  urgent: boolean
  /** How often a process crashed under it. */
  crashes: number
  /** How often one was killed. */
  kills: number
  settle: PromiseWithResolvers<WorkDone>
  stopListening(): void
}

interface Place {
  child: Child
  worksDone: number
  idleTimer: NodeJS.Timeout | undefined
}

const mib = 1024 * 1024
const idleMsUsual = 5 * 60_000
const graceMsUsual = 10_000
/** A piece of work that was passed so often goes next. */
const passedMax = 16
/** Then a process is replaced, so that what libraries lose never adds up. */
const worksMax = 1000
const residentBytesMax = 96 * mib
/**
 * Places for urgent work alone. Who waits need not stand behind all that nobody waits for; and where all work is urgent,
 * no core is idle while an answer goes out and the next order comes in, which takes 5 % of the time it takes to make a
 * small image.
 */
const urgentPlaces = 1
/** What crashes a process is tried once more: another one's memory may have been the cause. */
const crashesMax = 2
/** What is killed while somebody waits for it, likewise. */
const killsUrgentMax = 2

export function makeProcessor(options: ProcessorOptions): Processor {
  const { workers, memoryBytes, timeoutMs, log, idleMs = idleMsUsual } = options
  const turns = makeTurns<Task>({ passedMax })
  const idle: Place[] = []
  const running = new Map<Task, Promise<void>>()
  const children = new Set<Child>()
  const guards = new Set<Guard>()
  const kills = makeKills()
  let weightRunning = 0
  let closed = false
  let graceIsOver = false

  function begin() {
    while (running.size < workers + urgentPlaces) {
      const task = turns.next(memoryBytes - weightRunning, running.size < workers ? undefined : 'urgent')
      if (!task) return
      weightRunning += task.weight
      running.set(
        task,
        run(task).finally(() => end(task)),
      )
    }
  }

  function end(task: Task) {
    weightRunning -= task.weight
    running.delete(task)
    begin()
  }

  async function run(task: Task) {
    const place = takePlace()
    const isReady = await place.child.ready
    task.stopListening()
    if (!isReady) return refuseStart(task, (await place.child.ended).how)
    const guard = watchOver({ child: place.child, task, timeoutMs })
    guards.add(guard)
    if (graceIsOver) guard.stop(closedError())
    const { path, facts, outputs, describe = false } = task.work
    const answer = await place.child.run({ path, facts, outputs, describe })
    guards.delete(guard)
    guard.end()
    if (answer.kind !== 'ended') {
      kills.forget(task.work.id)
      release(place, answer.residentBytes)
      return finish(task, answer)
    }
    if (guard.reason) return task.settle.reject(guard.reason)
    endedUnder(task, answer)
  }

  function endedUnder(task: Task, { how, signal }: Ended) {
    log.warn({ how, path: task.work.path }, 'a process that decodes ended in the middle')
    if (isFromOutside(signal)) return killedUnder(task, signal)
    if (++task.crashes < crashesMax) return again(task)
    task.settle.reject(new PictureBroken('Decoding it crashes the decoder.'))
  }

  function killedUnder(task: Task, signal: NodeJS.Signals) {
    const inARow = kills.add(task.work.id)
    if (inARow !== undefined) return task.settle.reject(tooManyKills(inARow, signal))
    if (task.urgent && ++task.kills < killsUrgentMax) return again(task)
    task.settle.reject(new Error(`The process that decodes it was killed by ${signal}.`))
  }

  function again(task: Task) {
    if (closed) return task.settle.reject(closedError())
    enqueue(task)
  }

  /** Too many processes, no memory for another: nothing that a file could do. */
  function refuseStart(task: Task, how: string) {
    log.warn({ how }, 'a process that decodes could not be started')
    task.settle.reject(new Error('No process that decodes could be started.'))
  }

  function takePlace(): Place {
    const place = idle.pop()
    if (place) {
      clearTimeout(place.idleTimer)
      return place
    }
    const child = startChild({ dataBytesMax: memoryBytes })
    children.add(child)
    child.ended.then(() => {
      children.delete(child)
      const at = idle.findIndex(each => each.child === child)
      if (at >= 0) clearTimeout(idle.splice(at, 1)[0]!.idleTimer)
    })
    return { child, worksDone: 0, idleTimer: undefined }
  }

  function release(place: Place, residentBytes: number) {
    if (closed || ++place.worksDone >= worksMax || residentBytes > residentBytesMax) return place.child.kill()
    place.idleTimer = setTimeout(() => place.child.kill(), idleMs).unref()
    idle.push(place)
  }

  function enqueue(task: Task) {
    const { signal } = task.work
    const onAbort = () => {
      if (turns.remove(task)) task.settle.reject(abortError(signal!))
    }
    signal?.addEventListener('abort', onAbort, { once: true })
    task.stopListening = () => signal?.removeEventListener('abort', onAbort)
    turns.add(task)
    begin()
  }

  return {
    async work(work) {
      if (closed) throw closedError()
      work.signal?.throwIfAborted()
      const weight = workBytesOf(work)
      if (weight > memoryBytes) throw tooHeavy(weight, memoryBytes)
      const settle = Promise.withResolvers<WorkDone>()
      enqueue({ work, weight, urgent: work.urgent ?? false, crashes: 0, kills: 0, settle, stopListening: () => {} })
      return settle.promise
    },
    get waiting() {
      return turns.length
    },
    async close(graceMs = graceMsUsual) {
      closed = true
      for (const task of turns.drain()) {
        task.stopListening()
        task.settle.reject(closedError())
      }
      const timer = setTimeout(() => {
        graceIsOver = true
        for (const guard of guards) guard.stop(closedError())
      }, graceMs)
      await Promise.all(running.values())
      clearTimeout(timer)
      for (const child of children) child.kill()
      await Promise.all([...children].map(child => child.ended))
    },
  }
}

interface Guard {
  /** Why it was ended, where it was. */
  reason: Error | undefined
  stop(why: Error): void
  end(): void
}

/** Ends a process whose work takes too long or too much, or that nobody wants any more. */
function watchOver({ child, task, timeoutMs }: { child: Child; task: Task; timeoutMs: number }): Guard {
  const { work, weight } = task
  const onAbort = () => guard.stop(abortError(work.signal!))
  const timer = setTimeout(() => guard.stop(new PictureBroken(`It took longer than ${timeoutMs} ms.`)), timeoutMs)
  const memory = watchMemory(child.pid, weight, () => {
    guard.stop(new PictureBroken(`It took more memory than the ${weight} bytes that its header asks for.`))
  })
  const guard: Guard = {
    reason: undefined,
    stop(why) {
      guard.reason ??= why
      child.kill()
    },
    end() {
      clearTimeout(timer)
      memory.stop()
      work.signal?.removeEventListener('abort', onAbort)
    },
  }
  work.signal?.addEventListener('abort', onAbort)
  if (work.signal?.aborted) onAbort()
  return guard
}

function finish({ settle }: Task, answer: Exclude<Answer, { kind: 'ready' }>) {
  if (answer.kind === 'broken') return settle.reject(new PictureBroken(answer.message))
  if (answer.kind === 'failed') return settle.reject(new Error(answer.message))
  const { made, description } = answer.results
  settle.resolve({ made, description: describedBy(description), peakBytes: answer.peakBytes })
}

function describedBy(description: Results['description']): WorkDone['description'] {
  return description && { ...description, thumbhash: Buffer.from(description.thumbhash, 'base64') }
}

function abortError(signal: AbortSignal): Error {
  return signal.reason instanceof Error ? signal.reason : new Error('The work was aborted.', { cause: signal.reason })
}

function closedError(): Error {
  return new Error('The processes that decode are being ended.')
}

function tooManyKills(inARow: number, signal: NodeJS.Signals): PictureBroken {
  return new PictureBroken(
    `The process that decodes it was killed ${inARow} times in a row, at last by ${signal}: it may take more memory than this machine has.`,
  )
}

function tooHeavy(weight: number, memoryBytes: number): PictureBroken {
  return new PictureBroken(
    `It takes ${weight} bytes of memory; at most ${memoryBytes} are given here. Ask for less, or send it smaller.`,
  )
}
