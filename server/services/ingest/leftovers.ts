/**
 * Removes what other stores have of a stream that was deleted. Its deletion leaves a row for each store, which stays
 * until the process that has the store has removed everything, whatever dies or is away meanwhile.
 *
 * States of a row: due a moment after the deletion → taken by a process for a while → removed, and due once more when
 * nobody can be writing for the stream any more → removed for good, and the row with it. One whose process dies, or
 * whose store is away, is due again later. Removing is by the stream's id, so its namesake loses nothing.
 */
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import {
  claimLeftover,
  keepLeftover,
  type Leftover,
  type LeftoverStore,
  postponeLeftover,
  settleLeftover,
} from './leftover-store.ts'
import type { StreamRow } from './types.ts'

/** Removes a bounded piece of what a store has of a stream. Answers whether that was all. */
export type Remove = (stream: Pick<StreamRow, 'id' | 'name'>) => Promise<boolean>

export interface Leftovers {
  start(): void
  /** Does what is due. */
  remove(): Promise<void>
  /** Finishes the piece that is under way. */
  stop(): Promise<void>
}

const pollMs = 5000
/** Longer than a piece takes. */
const leaseSeconds = 120

export function makeLeftovers(deps: {
  db: Database
  log: Log
  removers: Readonly<Partial<Record<LeftoverStore, Remove>>>
}): Leftovers {
  const { db, log, removers } = deps
  const stores = Object.keys(removers) as LeftoverStore[]
  let timer: NodeJS.Timeout | undefined
  let working: Promise<void> | undefined
  let stopped = false

  async function remove() {
    for (;;) {
      const leftover = stopped ? undefined : await claimLeftover(db, { stores, seconds: leaseSeconds })
      if (!leftover) return
      await removeOne(leftover)
    }
  }

  async function removeOne(leftover: Leftover) {
    const { streamId: id, name, store } = leftover
    try {
      while (!(await removers[store]!({ id, name }))) {
        // The rest is another's, or this one's when it is back.
        if (stopped) return
        await keepLeftover(db, leftover, leaseSeconds)
      }
    } catch (error) {
      log.warn(
        { err: error, stream: name, store },
        'what a store has of a deleted stream was not removed; it is tried again',
      )
      return postponeLeftover(db, leftover)
    }
    await settleLeftover(db, leftover)
    log.debug({ stream: name, streamId: id, store }, 'what a store had of a deleted stream is removed')
  }

  function later() {
    timer = setTimeout(() => {
      working = remove()
        .catch(error => log.debug({ err: error }, 'what deleted streams left cannot be looked up just now'))
        .finally(() => {
          if (!stopped) later()
        })
    }, pollMs)
  }

  return {
    start() {
      if (stores.length > 0) later()
    },
    remove,
    async stop() {
      stopped = true
      clearTimeout(timer)
      await working
    },
  }
}
