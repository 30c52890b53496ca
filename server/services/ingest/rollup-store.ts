/** Every statement on the rollups: how many records a bucket of time has of each combination of values. */
import { toArray, toTextArray, toTimeArray } from '#platform/database/arrays.ts'
import type { Queryable, Tx } from '#platform/database/pool.ts'

/** Seconds of a bucket. */
export const grains = [60, 3600, 86_400] as const
export type Grain = (typeof grains)[number]

export interface RollupRow {
  grain: Grain
  dimensions: string
  bucket: Date
  key: string
  count: number
}

/** Adds to the counts. In the order of the key, so that the index is walked once. */
export function addCounts(tx: Tx, given: { streamId: number; rows: readonly RollupRow[] }) {
  const { streamId, rows } = given
  if (rows.length === 0) return
  tx.send(
    `insert into ingest.rollups as r (stream_id, grain, dimensions, bucket, key, count)
     select $1, * from unnest($2::integer[], $3::text[], $4::timestamptz[], $5::text[], $6::bigint[])
     on conflict (stream_id, grain, dimensions, bucket, key) do update set count = r.count + excluded.count`,
    [
      streamId,
      toArray(rows, row => row.grain),
      toTextArray(rows, row => row.dimensions),
      toTimeArray(rows, row => row.bucket),
      toTextArray(rows, row => row.key),
      toArray(rows, row => row.count),
    ],
  )
}

/** A piece of time that is answered from buckets of one size. */
export interface Piece {
  grain: Grain
  from: Date
  to: Date
}

export interface CountedRow {
  /** Where its step in time begins, or the minute of what is not merged yet; null for the whole time. */
  bucket: Date | null
  /** Null in a row of what is not merged yet. */
  key: string | null
  count: number | null
  /** How many rollups it sums up. */
  read: number | null
  /** As in the table of deltas; null where what is not merged yet is too long to be read. */
  counts: string | null
  dimensions: string | null
}

/**
 * Counts of a set of dimensions in pieces of time that follow each other, summed up by steps in time, and in the same
 * look what is not merged yet.
 */
export async function readCounts(
  db: Queryable,
  given: {
    streamId: number
    dimensions: string
    pieces: readonly Piece[]
    everyMs: number | undefined
    reader: string
    /** Of the answer's rows, and of those that are read for it. */
    limits: { rows: number; read: number; unmergedBytes: number }
  },
): Promise<CountedRow[]> {
  const { streamId, dimensions, pieces, everyMs, reader, limits } = given
  const { rows } = await db.query<CountedRow>(
    `(select case when $10::bigint > 0 then date_bin(make_interval(secs => $10), r.bucket, 'epoch') end as bucket,
        r.key, sum(r.count)::bigint as count, count(*) as read, null as counts, null as dimensions
      from (
        select r.bucket, r.key, r.count
        from unnest($3::integer[], $4::timestamptz[], $5::timestamptz[]) as p(grain, since, upto)
        join ingest.rollups r on r.stream_id = $1 and r.dimensions = $2 and r.grain = p.grain
          and r.bucket >= p.since and r.bucket < p.upto
        limit $11) r
      group by 1, 2 limit $7)
     union all
     (select d.minute, null, null, null, case when d.bytes <= $12 then d.counts end, d.dimensions
      from (
        select minute, counts, dimensions, sum(octet_length(counts)) over () as bytes from ingest.deltas
        where stream_id = $1
          and seq > coalesce((select position from ingest.cursors where stream_id = $1 and name = $6), 0)
          and minute >= $8 and minute < $9) d)`,
    [
      streamId,
      dimensions,
      pieces.map(piece => piece.grain),
      pieces.map(piece => piece.from),
      pieces.map(piece => piece.to),
      reader,
      limits.rows,
      pieces[0]!.from,
      pieces.at(-1)!.to,
      everyMs === undefined ? 0 : everyMs / 1000,
      limits.read,
      limits.unmergedBytes,
    ],
  )
  return rows
}

export interface TotalRow {
  dimensions: string
  key: string
  count: number
}

/** How far the rollups of a stream have come. */
export async function findMerged(db: Queryable, given: { streamId: number; merger: string }): Promise<number> {
  const { rows } = await db.query<{ position: number }>(
    `select position from ingest.cursors where stream_id = $1 and name = $2`,
    [given.streamId, given.merger],
  )
  return rows[0]?.position ?? 0
}

/**
 * Counts over all time of each set of at most so many dimensions, and in the same look how far they have come. As many
 * rows as there are combinations that are counted as themselves, which is bounded.
 */
export async function readTotals(
  db: Queryable,
  given: { streamId: number; merger: string; dimensionsMax: number },
): Promise<{ position: number; rows: TotalRow[] }> {
  const { rows } = await db.query<TotalRow & { position: number }>(
    `select m.position, t.dimensions, t.key, t.count
     from (select coalesce((select position from ingest.cursors where stream_id = $1 and name = $2), 0) as position) m
     left join lateral (
       select dimensions, key, sum(count)::bigint as count from ingest.rollups
       where stream_id = $1 and grain = 86400
         and (dimensions = '' or cardinality(string_to_array(dimensions, ',')) <= $3)
       group by dimensions, key) t on true`,
    [given.streamId, given.merger, given.dimensionsMax],
  )
  return { position: rows[0]!.position, rows: rows.filter(row => row.key !== null) }
}

/** Combinations of values that are counted as themselves. */
export async function listKeys(
  db: Queryable,
  given: { streamId: number; dimensions: string; limit: number },
): Promise<string[]> {
  const { rows } = await db.query<{ key: string }>(
    `select key from ingest.keys where stream_id = $1 and dimensions = $2 limit $3`,
    [given.streamId, given.dimensions, given.limit],
  )
  return rows.map(row => row.key)
}

export function insertKeys(tx: Tx, given: { streamId: number; dimensions: string; keys: readonly string[] }) {
  tx.send(
    `insert into ingest.keys (stream_id, dimensions, key) select $1, $2, unnest($3::text[]) on conflict do nothing`,
    [given.streamId, given.dimensions, given.keys],
  )
}

/** Deletes buckets by minute and hour from before an instant, a bounded number at once. Answers how many. */
export async function deleteOldRollups(db: Queryable, given: { before: Date; limit: number }): Promise<number> {
  const { rowCount } = await db.query(
    `delete from ingest.rollups where ctid in (
       select r.ctid from ingest.streams s
       join ingest.rollups r on r.stream_id = s.id and r.grain in (60, 3600) and r.bucket < $1
       limit $2)`,
    [given.before, given.limit],
  )
  return rowCount
}
