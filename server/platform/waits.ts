/**
 * Requests that wait for something to happen to a thing: a run to end, an image to be ready. The process that makes it
 * happen says so over the bus; behind it, once a second, all things waited for are looked up together. So a wait costs
 * no query of its own.
 */
import type { Bus } from './bus.ts'
import type { Log } from './log.ts'

export interface Waits {
  /**
   * Resolves when it has happened, or after `waitMs`, or when the signal is aborted. Answers whether it has happened.
   * `isNew` says that it cannot have happened before it was last told on the bus.
   */
  waitFor(given: { id: string; waitMs: number; signal?: AbortSignal; isNew: boolean }): Promise<boolean>
  /** Gives waits that last to their end, or for `graceMs`; from then on nobody waits. Call it when the process stops. */
  end(graceMs: number): Promise<void>
}

const pollMs = 1000
/** What happened lately: it may happen before the request that made the thing has begun to wait. */
const recentMax = 10_000

/** @param find answers those of the ids to which it has happened */
export function makeWaits(given: {
  bus: Bus
  log: Log
  /** Where the ids of things are told to which it has happened. */
  channel: string
  find: (ids: string[]) => Promise<string[]>
}): Waits {
  const { bus, log, channel, find } = given
  const waiting = new Map<string, Set<(happened: boolean) => void>>()
  const recent = new Set<string>()
  let _timer: NodeJS.Timeout | undefined
  let onNone: (() => void) | undefined
  let stopping = false

  bus.subscribe(channel, ids => {
    for (const id of ids) {
      recent.add(id)
      resolveAll(id, true)
    }
    for (const id of recent) {
      if (recent.size <= recentMax) break
      recent.delete(id)
    }
  })
  bus.onGap(() => void look([...waiting.keys()]))

  function resolveAll(id: string, happened: boolean) {
    for (const resolve of waiting.get(id) ?? []) resolve(happened)
  }

  async function look(ids: string[]) {
    if (ids.length === 0) return
    try {
      for (const id of await find(ids)) resolveAll(id, true)
    } catch (error) {
      log.debug({ err: error }, 'could not look up what requests wait for')
    }
  }

  function poll() {
    _timer ??= setTimeout(() => {
      _timer = undefined
      void look([...waiting.keys()]).finally(() => waiting.size > 0 && poll())
    }, pollMs).unref()
  }

  return {
    waitFor({ id, waitMs, signal, isNew }) {
      if (recent.has(id)) return Promise.resolve(true)
      if (stopping || signal?.aborted) return Promise.resolve(false)
      return new Promise(resolve => {
        const done = (happened: boolean) => {
          clearTimeout(late)
          signal?.removeEventListener('abort', onAbort)
          const others = waiting.get(id)
          others?.delete(done)
          if (others?.size === 0) waiting.delete(id)
          resolve(happened)
          if (waiting.size === 0) onNone?.()
        }
        const onAbort = () => done(false)
        const late = setTimeout(() => done(false), waitMs)
        signal?.addEventListener('abort', onAbort, { once: true })
        waiting.set(id, (waiting.get(id) ?? new Set()).add(done))
        if (isNew) poll()
        else void look([id]).finally(poll)
      })
    },
    async end(graceMs) {
      const none = new Promise<void>(resolve => {
        onNone = resolve
      })
      const late = setTimeout(() => {
        for (const id of [...waiting.keys()]) resolveAll(id, false)
      }, graceMs)
      if (waiting.size > 0) await none
      clearTimeout(late)
      stopping = true
    },
  }
}
