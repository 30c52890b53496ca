/** Takes records that are checked into a stream, each by its route. */
import type { Outcome } from '#platform/batch.ts'
import type { Database } from '#platform/database/pool.ts'
import { type Answer, type IdempotencyKey, idempotently } from '#platform/http/idempotency.ts'
import { type Routed, type Sorted, sortByRoute } from './bunch.ts'
import type { PostgresLog } from './log-postgres.ts'
import { makeRouter } from './routing.ts'
import type { ReadyStream } from './streams.ts'
import { type Prepared, type RecordLog, type Route, writeOffset } from './types.ts'

export interface Accepted {
  offset: string
  route: Route
}

export interface Appending {
  /** Each is durable when this resolves. @throws overloaded, route_unavailable, stream_changed */
  appendOne(stream: ReadyStream, record: Prepared): Promise<Accepted>
  /** Several at once; each has its own outcome. */
  appendMany(stream: ReadyStream, records: readonly Prepared[]): Promise<Outcome<Accepted>[]>
  /**
   * The same, once a key: the whole request shares a transaction with the key. Where route A's log is elsewhere, its
   * records go by route B, since only the store can remember the key in the same commit.
   * @param show makes the answer that is kept with the key
   */
  appendOnce<B>(given: {
    stream: ReadyStream
    records: readonly Prepared[]
    key: IdempotencyKey
    show: (accepted: Accepted[]) => Answer<B>
  }): Promise<Answer<B>>
  /** What a request with this key was answered when it was taken; undefined when none was. */
  recall(key: IdempotencyKey): Promise<Answer | undefined>
}

/** Undoes the transaction in which a key was looked for. */
class Unknown extends Error {}

export function makeAppending(deps: {
  db: Database
  store: PostgresLog
  /** Where route A's records go; undefined where they stay in this process and PostgreSQL is the log. */
  logA: RecordLog | undefined
}): Appending {
  const { db, store, logA } = deps
  const router = makeRouter()

  async function append(stream: ReadyStream, { route, bunch }: Routed): Promise<Accepted[]> {
    const placed =
      route === 'a' && logA ? await logA.append(stream, bunch) : await store.append(stream, { route, bunch })
    return bunch.texts.map((_, index) => ({ offset: writeOffset(placed, index), route }))
  }

  return {
    async appendOne(stream, record) {
      const route = router.routeOf(stream, record)
      const [accepted] = await append(stream, { route, bunch: { texts: [record.text], keys: [record.key] } })
      return accepted!
    },
    async appendMany(stream, records) {
      const outcomes: Outcome<Accepted>[] = []
      const put = async ({ route, bunch, indexes }: Sorted) => {
        try {
          const accepted = await append(stream, { route, bunch })
          for (const [place, index] of indexes.entries()) outcomes[index] = { value: accepted[place]! }
        } catch (error) {
          for (const index of indexes) outcomes[index] = { error }
        }
      }
      await Promise.all(sortByRoute(router.routesOf(stream, records), records).map(put))
      return outcomes
    },
    async appendOnce({ stream, records, key, show }) {
      const answer = await idempotently(db, key, async tx => {
        const chosen = logA ? records.map((): Route => 'b') : router.routesOf(stream, records)
        const sorted = sortByRoute(chosen, records)
        const places = await store.appendIn(tx, stream, sorted)
        const accepted: Accepted[] = []
        for (const [group, { route, indexes }] of sorted.entries()) {
          for (const [place, index] of indexes.entries()) {
            accepted[index] = { offset: writeOffset(places[group]!, place), route }
          }
        }
        return show(accepted)
      })
      store.wake(stream.name)
      return answer
    },
    async recall(key) {
      try {
        return await idempotently(db, key, () => Promise.reject(new Unknown()))
      } catch (error) {
        if (error instanceof Unknown) return undefined
        throw error
      }
    },
  }
}
