/** Every statement on what the consumers of Kafka topics share: who there is, who reads what, and how far. */
import { toArray, toTextArray } from '#platform/database/arrays.ts'
import type { Queryable, Tx } from '#platform/database/pool.ts'
import { holdStream } from './stream-store.ts'

/** Says that this consumer is there for a while. Answers all that are, in one order for all of them. */
export async function beat(db: Queryable, given: { holder: string; seconds: number }): Promise<string[]> {
  const { rows } = await db.query<{ holder: string }>(
    `with gone as (
       delete from ingest.kafka_consumers where held_until < now() and holder <> $1
     ), me as (
       insert into ingest.kafka_consumers (holder, held_until) values ($1, now() + make_interval(secs => $2))
       on conflict (holder) do update set held_until = excluded.held_until
     )
     select holder from ingest.kafka_consumers where held_until >= now() and holder <> $1
     union select $1 order by holder`,
    [given.holder, given.seconds],
  )
  return rows.map(row => row.holder)
}

export async function leave(db: Queryable, holder: string) {
  await db.query('delete from ingest.kafka_consumers where holder = $1', [holder])
}

/** A partition of a stream's topic. */
export interface Partition {
  streamId: number
  partition: number
  /** Kafka's own id of the topic: a topic that is made anew has another. */
  topicId: string
}

export interface Leased extends Partition {
  /** The place up to which it was taken over, and the topic that was of. */
  next: number
  knownTopicId: string
}

/** Takes partitions for a while. Answers those that no other consumer holds and whose stream is there. */
export async function leasePartitions(
  db: Queryable,
  given: { holder: string; seconds: number; wanted: readonly Partition[] },
): Promise<Leased[]> {
  const { holder, seconds, wanted } = given
  const { rows } = await db.query<{
    stream_id: number
    partition: number
    topic_id: string
    next_offset: number
    known_topic_id: string
  }>(
    `with wanted as (
       select w.* from unnest($1::integer[], $2::integer[], $3::text[]) as w(stream_id, partition, topic_id)
       join ingest.streams s on s.id = w.stream_id order by 1, 2
     ), put as (
       insert into ingest.kafka_offsets (stream_id, partition, topic_id) select * from wanted on conflict do nothing
     ), held as (
       insert into ingest.cursors as c (stream_id, name, holder, held_until)
       select stream_id, 'kafka:' || partition, $4, now() + make_interval(secs => $5) from wanted
       on conflict (stream_id, name) do update set holder = excluded.holder, held_until = excluded.held_until
         where c.holder = excluded.holder or c.held_until is null or c.held_until < now()
       returning stream_id, name
     )
     select w.*, coalesce(o.next_offset, 0) as next_offset, coalesce(o.topic_id, w.topic_id) as known_topic_id
     from held h
     join wanted w on w.stream_id = h.stream_id and h.name = 'kafka:' || w.partition
     left join ingest.kafka_offsets o on o.stream_id = w.stream_id and o.partition = w.partition`,
    [
      toArray(wanted, each => each.streamId),
      toArray(wanted, each => each.partition),
      toTextArray(wanted, each => each.topicId),
      holder,
      seconds,
    ],
  )
  return rows.map(row => ({
    streamId: row.stream_id,
    partition: row.partition,
    topicId: row.topic_id,
    next: row.next_offset,
    knownTopicId: row.known_topic_id,
  }))
}

/** Lets others take the partitions that this consumer holds, but those it keeps. */
export async function releasePartitions(db: Queryable, given: { holder: string; kept: readonly Partition[] }) {
  const { holder, kept } = given
  await db.query(
    `update ingest.cursors c set holder = null, held_until = null
     where c.holder = $1 and c.name ^@ 'kafka:' and not exists (
       select from unnest($2::integer[], $3::integer[]) as k(stream_id, partition)
       where k.stream_id = c.stream_id and c.name = 'kafka:' || k.partition)`,
    [holder, toArray(kept, each => each.streamId), toArray(kept, each => each.partition)],
  )
}

/** A step of a partition: from the place it must be at to the one it comes to. */
export interface Move {
  partition: number
  topicId: string
  from: number
  to: number
}

/** Answers how many of a stream's partitions were where they must be, and have moved. */
export async function movePartitions(tx: Tx, given: { streamId: number; moves: readonly Move[] }): Promise<number> {
  const { streamId, moves } = given
  holdStream(tx, streamId)
  const { rowCount } = await tx.query(
    `update ingest.kafka_offsets o set next_offset = m.upto
     from unnest($2::integer[], $3::text[], $4::bigint[], $5::bigint[]) as m(partition, topic_id, since, upto)
     where o.stream_id = $1 and o.partition = m.partition and o.topic_id = m.topic_id and o.next_offset = m.since`,
    [
      streamId,
      toArray(moves, move => move.partition),
      toTextArray(moves, move => move.topicId),
      toArray(moves, move => move.from),
      toArray(moves, move => move.to),
    ],
  )
  return rowCount
}

/** Goes on elsewhere in a partition, or in its new topic. Answers false when another has changed its place meanwhile. */
export async function setPartition(
  db: Queryable,
  given: { streamId: number; partition: number; from: number; knownTopicId: string; to: number; topicId: string },
): Promise<boolean> {
  const { rowCount } = await db.query(
    `update ingest.kafka_offsets set next_offset = $5, topic_id = $6
     where stream_id = $1 and partition = $2 and next_offset = $3 and topic_id = $4`,
    [given.streamId, given.partition, given.from, given.knownTopicId, given.to, given.topicId],
  )
  return rowCount > 0
}
