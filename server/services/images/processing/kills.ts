/**
 * Tells what ended a process that decodes: a decoder that ran into something, which is the file's doing, or a signal from
 * outside, by the kernel that was out of memory or by somebody's hand, which says nothing about the file. Until it happens
 * to one piece of work again and again.
 */
import { makeRecentMap } from '#platform/recent-map.ts'

export interface Kills {
  /** Counts one. Answers how many in a row that makes, where it is one too many; the next begins a new row. */
  add(id: string): number | undefined
  /** Its process was not killed this time. */
  forget(id: string): void
}

/** With the queue's pauses, somebody has a minute to give the machine memory; and a file that takes it all has not longer. */
const killsMax = 8
/** Pieces of work whose kills are known; whoever is forgotten is tried for longer. */
const rememberedMax = 10_000

/** Counts in this process alone: others and the next one begin anew. */
export function makeKills(): Kills {
  const counts = makeRecentMap<number>(rememberedMax)
  return {
    add(id) {
      const count = (counts.get(id) ?? 0) + 1
      if (count < killsMax) {
        counts.set(id, count)
        return undefined
      }
      counts.delete(id)
      return count
    },
    forget: id => counts.delete(id),
  }
}

/** What a process does to itself: broken memory, an assertion, a call that is not allowed. */
const ownSignals = new Set<NodeJS.Signals>(['SIGABRT', 'SIGBUS', 'SIGFPE', 'SIGILL', 'SIGSEGV', 'SIGSYS', 'SIGTRAP'])

/** @param signal that ended a process, and that was not sent here */
export function isFromOutside(signal: NodeJS.Signals | null): signal is NodeJS.Signals {
  return signal !== null && !ownSignals.has(signal)
}
