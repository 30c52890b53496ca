/** Every statement on what other stores still have of streams that were deleted. */
import type { Queryable, Tx } from '#platform/database/pool.ts'

export const leftoverStores = ['kafka', 'mongodb', 'redis'] as const
export type LeftoverStore = (typeof leftoverStores)[number]

export interface Leftover {
  streamId: number
  store: LeftoverStore
  name: string
  /** Nobody writes for the stream any more: what is removed from now on stays so. */
  isLast: boolean
}

/** By then every process knows that the stream is gone, so that few write for it what is to be removed. */
const firstSeconds = 10
/** By then whoever still wrote for the stream has ended, or been cut off. */
const lastSeconds = 600
const retrySecondsMax = 3600

/** Whichever stores there are: another process may know those that this one does not. */
export async function addLeftovers(tx: Tx, given: { streamId: number; name: string }) {
  await tx.query(
    `insert into ingest.leftovers (stream_id, store, name, due_at)
     select $1, store, $2, now() + make_interval(secs => $4) from unnest($3::text[]) as store`,
    [given.streamId, given.name, leftoverStores, firstSeconds],
  )
}

/** Takes one that is due for a while; undefined when there is none. */
export async function claimLeftover(
  db: Queryable,
  given: { stores: readonly LeftoverStore[]; seconds: number },
): Promise<Leftover | undefined> {
  const { rows } = await db.query<{ stream_id: number; store: LeftoverStore; name: string; is_last: boolean }>(
    `update ingest.leftovers l set due_at = now() + make_interval(secs => $2)
     from (
       select stream_id, store from ingest.leftovers where store = any($1::text[]) and due_at <= now()
       order by due_at limit 1 for update skip locked) due
     where l.stream_id = due.stream_id and l.store = due.store
     returning l.stream_id, l.store, l.name, l.deleted_at <= now() - make_interval(secs => $3) as is_last`,
    [given.stores, given.seconds, lastSeconds],
  )
  const [row] = rows
  return row && { streamId: row.stream_id, store: row.store, name: row.name, isLast: row.is_last }
}

/** Holds it longer, for a piece of work more. */
export async function keepLeftover(db: Queryable, { streamId, store }: Leftover, seconds: number) {
  await db.query(
    `update ingest.leftovers set due_at = now() + make_interval(secs => $3) where stream_id = $1 and store = $2`,
    [streamId, store, seconds],
  )
}

/** All of it was removed: for good, or until it is looked at for the last time. */
export async function settleLeftover(db: Queryable, { streamId, store, isLast }: Leftover) {
  await db.query(
    isLast
      ? `delete from ingest.leftovers where stream_id = $1 and store = $2`
      : `update ingest.leftovers set due_at = deleted_at + make_interval(secs => ${lastSeconds})
         where stream_id = $1 and store = $2`,
    [streamId, store],
  )
}

/** It is tried again after as long as it has been there for. */
export async function postponeLeftover(db: Queryable, { streamId, store }: Leftover) {
  await db.query(
    `update ingest.leftovers set due_at = now() + least(now() - deleted_at, make_interval(secs => $3))
     where stream_id = $1 and store = $2`,
    [streamId, store, retrySecondsMax],
  )
}

/** Forgets those of stores that nobody has used for so long. */
export async function forgetLeftovers(db: Queryable, days: number) {
  await db.query(`delete from ingest.leftovers where deleted_at < now() - make_interval(days => $1)`, [days])
}
