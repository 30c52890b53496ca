/** Every statement on segments: records that shared a commit, a line each. */
import { toArray } from '#platform/database/arrays.ts'
import type { Queryable, Tx } from '#platform/database/pool.ts'
import type { Route } from './types.ts'

/** Records of one route, as they are written. */
export interface NewSegment {
  route: Route
  /** How many. */
  records: number
  /** Their JSON texts, a line each. */
  lines: string
  /** Where they came by Kafka: the place of the first of them; the others' follow it. */
  kafka?: { partition: number; offset: number }
}

export interface NewBatch {
  streamId: number
  segments: readonly NewSegment[]
  /** By this process's clock; taken as a few seconds from now by the database's, where it is later than that. */
  at: Date
  /** What the batch adds to the counts, as in the table of deltas; undefined where that is done later. */
  delta: { dimensions: string; counts: string } | undefined
}

/** Of the statement, before the lines. */
const fixedValues = 10
/** How far a process's clock may be ahead of the database's. Times never run back, so one that is too late stays. */
const aheadSeconds = 5

/**
 * One statement, and so one commit: numbers, segments and what they add to the counts. Answers the number before the
 * first record's; undefined when the stream is gone.
 */
export async function appendBatch(db: Queryable, batch: NewBatch): Promise<number | undefined> {
  const { segments, delta } = batch
  const records = segments.reduce((sum, segment) => sum + segment.records, 0)
  // Each a value of its own: quoting long texts as items of an array takes as long as everything else together.
  const lines = segments.map((_, index) => `$${fixedValues + index + 1}::text`).join(', ')
  const { rows } = await db.query<{ base: number }>(
    `with given as (
       select * from unnest($2::integer[], $3::text[], array[${lines}], $9::integer[], $10::bigint[])
         with ordinality as g(records, route, lines, kafka_partition, kafka_offset, n)
     ), head as (
       update ingest.heads
       set last_offset = last_offset + $4, last_delta = last_delta + $5,
         last_at = greatest(last_at, least($6::timestamptz, now() + interval '${aheadSeconds} seconds'))
       where stream_id = $1
       returning last_offset - $4 as base, last_delta, last_at
     ), put as (
       insert into ingest.segments (stream_id, first_offset, last_offset, at, route, lines, kafka_partition, kafka_offset)
       select $1, h.base + g.upto - g.records + 1, h.base + g.upto, h.last_at, g.route, g.lines, g.kafka_partition,
         g.kafka_offset
       from (select *, sum(records) over (order by n) as upto from given) g cross join head h
     ), counted as (
       insert into ingest.deltas (stream_id, seq, minute, dimensions, counts)
       select $1, h.last_delta, date_trunc('minute', h.last_at, 'UTC'), $7, $8 from head h where $5 > 0
     )
     select base from head`,
    [
      batch.streamId,
      toArray(segments, segment => segment.records),
      toArray(segments, segment => segment.route),
      records,
      delta ? 1 : 0,
      batch.at,
      delta?.dimensions ?? null,
      delta?.counts ?? null,
      toArray(segments, segment => segment.kafka?.partition),
      toArray(segments, segment => segment.kafka?.offset),
      ...segments.map(segment => segment.lines),
    ],
  )
  return rows[0]?.base
}

export interface SegmentRow {
  first_offset: number
  last_offset: number
  at: Date
  route: Route
  lines: string
}

/**
 * Those that hold records above `after`, up to the one numbered `after + records`, ascending; of them as many as have
 * `bytes` together, the last of them whole, and one at least.
 */
export async function listSegments(
  db: Queryable,
  given: { streamId: number; after: number; records: number; bytes: number },
): Promise<SegmentRow[]> {
  // The segment that holds the record after `after` begins at or before it. Lengths are known without the lines.
  const { rows } = await db.query<SegmentRow>(
    `select first_offset, last_offset, at, route, lines
     from (
       select *, sum(octet_length(lines)) over (order by first_offset) - octet_length(lines) as before
       from ingest.segments
       where stream_id = $1
         and first_offset between coalesce((
           select first_offset from ingest.segments
           where stream_id = $1 and first_offset <= $2 + 1 order by first_offset desc limit 1), 0) and $2 + $3
         and last_offset > $2) s
     where before < $4 order by first_offset`,
    [given.streamId, given.after, given.records, given.bytes],
  )
  return rows
}

/** The first number above `after` that is still kept; undefined when there is none. */
export async function findOldest(db: Queryable, given: { streamId: number; after: number }) {
  const { rows } = await db.query<{ first_offset: number }>(
    `select first_offset from ingest.segments where stream_id = $1 and first_offset > $2 order by first_offset limit 1`,
    [given.streamId, given.after],
  )
  return rows[0]?.first_offset
}

/**
 * Whole segments of a route that begin above `after` and not above `upto`, ascending.
 * @param given.kafkaToo whether those that came by Kafka are among them; they are by default
 */
export async function listSegmentsOfRoute(
  db: Queryable,
  given: { streamId: number; after: number; upto: number; route: Route; limit: number; kafkaToo?: boolean },
): Promise<SegmentRow[]> {
  const { rows } = await db.query<SegmentRow>(
    `select first_offset, last_offset, at, route, lines from ingest.segments
     where stream_id = $1 and route = $3 and first_offset > $2 and first_offset <= $5
       and ($6 or kafka_partition is null)
     order by first_offset limit $4`,
    [given.streamId, given.after, given.route, given.limit, given.upto, given.kafkaToo ?? true],
  )
  return rows
}

/** The number of the record that lies there in a Kafka topic; undefined while it was not taken over. */
export async function findOffsetOfKafka(
  db: Queryable,
  given: { streamId: number; partition: number; place: number },
): Promise<number | undefined> {
  const { rows } = await db.query<{ first_offset: number; last_offset: number; kafka_offset: number }>(
    `select first_offset, last_offset, kafka_offset from ingest.segments
     where stream_id = $1 and kafka_partition = $2 and kafka_offset <= $3
     order by kafka_offset desc limit 1`,
    [given.streamId, given.partition, given.place],
  )
  const [row] = rows
  if (!row) return undefined
  const offset = row.first_offset + given.place - row.kafka_offset
  return offset <= row.last_offset ? offset : undefined
}

/** Lets one process at a time change which days have a part. Answers false while another does. */
export async function lockDays(tx: Tx): Promise<boolean> {
  const { rows } = await tx.query<{ locked: boolean }>(
    `select pg_try_advisory_xact_lock('ingest.segments'::regclass::oid::integer, 0) as locked`,
  )
  return rows[0]!.locked
}

export async function makeDays(db: Queryable, given: { first: Date; days: number }) {
  await db.query(`select ingest.make_days(($1::timestamptz at time zone 'utc')::date, $2)`, [given.first, given.days])
}

/** The time that all processes share. */
export async function findNow(db: Queryable): Promise<Date> {
  const { rows } = await db.query<{ now: Date }>('select now() as now')
  return rows[0]!.now
}

/** In days; what nobody's stream keeps that long is nobody's. */
export async function findLongestRetention(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ days: number }>(
    'select coalesce(max(retention_days), 1) as days from ingest.streams',
  )
  return rows[0]!.days
}

/** Names of the days' parts that are over before an instant. */
export async function listOldDays(db: Queryable, before: Date): Promise<string[]> {
  const { rows } = await db.query<{ name: string }>(
    `select c.relname as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'ingest.segments'::regclass and c.relname ~ '^segments_[0-9]{8}$'
       and c.relname < 'segments_' || to_char($1::timestamptz at time zone 'utc', 'YYYYMMDD')
     order by 1`,
    [before],
  )
  return rows.map(row => row.name)
}

/** @param name as `listOldDays` answered it */
export async function dropDay(db: Queryable, name: string) {
  await db.query(`drop table if exists ingest.${name}`)
}

/** Deletes segments that are older than their streams keep them, a bounded number at once. Answers how many. */
export async function deleteOldSegments(db: Queryable, given: { now: Date; limit: number }): Promise<number> {
  const { rowCount } = await db.query(
    `delete from ingest.segments d using (
       select s.ctid as place, s.tableoid as part
       from ingest.streams t
       join ingest.segments s on s.stream_id = t.id and s.at < $1::timestamptz - make_interval(days => t.retention_days)
       limit $2) old
     where d.ctid = old.place and d.tableoid = old.part`,
    [given.now, given.limit],
  )
  return rowCount
}
