/** Every statement on what records add to the counts before it is merged. */
import type { Queryable, Tx } from '#platform/database/pool.ts'

export interface NewDelta {
  minute: Date
  dimensions: string
  counts: string
}

/** Numbers deltas and writes them. */
export async function insertDeltas(tx: Tx, given: { streamId: number; deltas: readonly NewDelta[] }) {
  const { streamId, deltas } = given
  if (deltas.length === 0) return
  await tx.query(
    `with head as (
       update ingest.heads set last_delta = last_delta + $2 where stream_id = $1 returning last_delta - $2 as base)
     insert into ingest.deltas (stream_id, seq, minute, dimensions, counts)
     select $1, h.base + d.n, d.minute, d.dimensions, d.counts
     from head h cross join unnest($3::timestamptz[], $4::text[], $5::text[]) with ordinality as d(minute, dimensions, counts, n)`,
    [
      streamId,
      deltas.length,
      deltas.map(delta => delta.minute),
      deltas.map(delta => delta.dimensions),
      deltas.map(delta => delta.counts),
    ],
  )
}

export interface DeltaRow {
  seq: number
  minute: Date
  dimensions: string
  counts: string
}

/** Of the deltas of one list, in bytes: a batch of values that are all different is as long as its records. */
const listBytesMax = 32 * 1024 * 1024
/** The first ones that are no longer together; one at least. */
const notTooLong = (deltas: string, bytesMax: string) =>
  `select seq, minute, dimensions, counts
   from (select d.*, sum(octet_length(counts)) over (order by seq) - octet_length(counts) as before from (${deltas}) d) d
   where before < ${bytesMax} order by seq`

/** The first of those above `after`, ascending. */
export async function listDeltas(
  db: Queryable,
  given: { streamId: number; after: number; limit: number },
): Promise<DeltaRow[]> {
  const { rows } = await db.query<DeltaRow>(
    notTooLong(`select * from ingest.deltas where stream_id = $1 and seq > $2 order by seq limit $3`, '$4'),
    [given.streamId, given.after, given.limit, listBytesMax],
  )
  return rows
}

/** The first of those above `after` that are merged into the rollups, ascending. */
export async function listMergedDeltas(
  db: Queryable,
  given: { streamId: number; after: number; merger: string; limit: number },
): Promise<DeltaRow[]> {
  const { rows } = await db.query<DeltaRow>(
    notTooLong(
      `select * from ingest.deltas
       where stream_id = $1 and seq > $2
         and seq <= (select position from ingest.cursors where stream_id = $1 and name = $3)
       order by seq limit $4`,
      '$5',
    ),
    [given.streamId, given.after, given.merger, given.limit, listBytesMax],
  )
  return rows
}

/**
 * Deletes a stream's deltas up to `upto` that are older than `before`, but those that another reader named here still
 * lacks, unless they are older than `beforeAll`.
 */
export function deleteDeltas(
  tx: Tx,
  given: { streamId: number; upto: number; reader: string; before: Date; beforeAll: Date },
) {
  tx.send(
    `delete from ingest.deltas d
     where d.stream_id = $1 and d.seq <= $2
       and (not exists (select from ingest.cursors c where c.stream_id = $1 and c.name = $3)
         or (d.minute < $4 and d.seq <= (select position from ingest.cursors c where c.stream_id = $1 and c.name = $3))
         or d.minute < $5)`,
    [given.streamId, given.upto, given.reader, given.before, given.beforeAll],
  )
}
