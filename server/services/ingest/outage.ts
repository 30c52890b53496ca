/** Tells of an outage once, and once of its end: under load each record would have a line of its own. */
import type { Log } from '#platform/log.ts'

export interface Outage {
  failed(facts: Record<string, unknown>): void
  worked(): void
}

export function makeOutage(log: Log, words: { began: string; ended: string }): Outage {
  let isAway = false
  return {
    failed(facts) {
      if (!isAway) log.warn(facts, words.began)
      isAway = true
    },
    worked() {
      if (isAway) log.info(words.ended)
      isAway = false
    },
  }
}
