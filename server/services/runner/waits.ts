/**
 * Requests that wait for a run to end. The process that ends a run says so over the bus; behind it, once a second, all
 * runs waited for are looked up together. So a wait costs no query of its own.
 */
import type { Bus } from '#platform/bus.ts'
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import * as store from './store.ts'

export const endedChannel = 'runs.ended'

export interface Waits {
  /** Resolves when the run has ended, or after `waitMs`, or when the signal is aborted. Answers whether it has ended. */
  waitFor(given: { id: string; waitMs: number; signal?: AbortSignal; isNew: boolean }): Promise<boolean>
  /** Gives waits that last to their end, or for `graceMs`; from then on nobody waits. Call it when the process stops. */
  end(graceMs: number): Promise<void>
}

const pollMs = 1000
/** Runs that ended lately: one may end before the request that made it has begun to wait. */
const recentMax = 10_000

export function makeWaits(given: { db: Database; bus: Bus; log: Log }): Waits {
  const { db, bus, log } = given
  const waiting = new Map<string, Set<(ended: boolean) => void>>()
  const recent = new Set<string>()
  let _timer: NodeJS.Timeout | undefined
  let onNone: (() => void) | undefined
  let stopping = false

  bus.subscribe(endedChannel, ids => {
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

  function resolveAll(id: string, ended: boolean) {
    for (const resolve of waiting.get(id) ?? []) resolve(ended)
  }

  async function look(ids: string[]) {
    if (ids.length === 0) return
    try {
      for (const id of await store.findEnded(db, ids)) resolveAll(id, true)
    } catch (error) {
      log.debug({ err: error }, 'could not look for runs that ended')
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
        const done = (ended: boolean) => {
          clearTimeout(late)
          signal?.removeEventListener('abort', onAbort)
          const others = waiting.get(id)
          others?.delete(done)
          if (others?.size === 0) waiting.delete(id)
          resolve(ended)
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
