/**
 * Which partitions this process reads, and from where. The consumers that are there count themselves in PostgreSQL and
 * share the partitions out in turn; a lease keeps each with one of them. One that is gone is noticed when its lease is
 * over.
 */
import { Admin, type Consumer, ListOffsetTimestamps, type ResponseError } from '@platformatic/kafka'
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import { clientOptions, type KafkaPlace, streamOf } from './kafka-client.ts'
import {
  beat,
  type Leased,
  leasePartitions,
  leave,
  type Partition,
  releasePartitions,
  setPartition,
} from './kafka-store.ts'

/** A partition that this process reads. */
export interface Share extends Partition {
  /** The stream's. */
  name: string
  topic: string
  /** The broker that has it. */
  node: number
  /** The place from which it is read next. */
  next: number
  /** The place after its last record, as far as is known. */
  end: number
}

export interface KafkaShares {
  /** Finds out what there is, and takes and lets go what is to be. Call it more often than leases last. */
  tend(): Promise<void>
  all(): Share[]
  of(node: number): Share[]
  has(share: Share): boolean
  /** Its place is looked up again before it is read on. */
  lose(share: Share): void
  /** Goes on behind what Kafka no longer has, where that is why it could not be read. */
  repair(shares: readonly Share[], error: ResponseError): Promise<void>
  lags(): ReadonlyMap<string, number>
  leave(): Promise<void>
}

interface Found extends Partition {
  name: string
  topic: string
  node: number
}

const leaseSeconds = 8
const outOfRange = 1

export function makeShares(
  deps: KafkaPlace & {
    db: Database
    log: Log
    holder: string
    consumer: Consumer
  },
): KafkaShares {
  const { db, log, holder, consumer } = deps
  const held = new Map<string, Share>()
  const has = (share: Share) => held.get(keyOf(share)) === share

  async function tend() {
    const found = await findPartitions(deps, consumer)
    const members = await beat(db, { holder, seconds: leaseSeconds })
    const wanted = found.filter((_, index) => members[index % members.length] === holder)
    for (const share of held.values()) {
      if (!wanted.some(each => keyOf(each) === keyOf(share))) held.delete(keyOf(share))
    }
    await releasePartitions(db, { holder, kept: wanted })
    const leased = await leasePartitions(db, { holder, seconds: leaseSeconds, wanted })
    const byKey = new Map(leased.map(each => [keyOf(each), each]))
    for (const each of wanted) {
      const lease = byKey.get(keyOf(each))
      if (lease) await adopt(each, lease)
      else held.delete(keyOf(each))
    }
  }

  async function adopt(found: Found, lease: Leased) {
    const share = held.get(keyOf(found))
    if (share?.topicId === found.topicId) {
      share.node = found.node
      return
    }
    if (lease.knownTopicId !== found.topicId) {
      log.error({ topic: found.topic }, 'the Kafka topic is another than before; what was in the old one is not there')
      const { streamId, partition, topicId } = found
      const { next: from, knownTopicId } = lease
      if (!(await setPartition(db, { streamId, partition, from, knownTopicId, to: 0, topicId }))) return
      lease.next = 0
    }
    held.set(keyOf(found), { ...found, next: lease.next, end: lease.next })
  }

  async function repairOne(share: Share) {
    const at = async (timestamp: bigint) => {
      const offsets = await consumer.listOffsets({
        topics: [share.topic],
        partitions: { [share.topic]: [share.partition] },
        timestamp,
      })
      return Number(offsets.get(share.topic)![share.partition]!)
    }
    const [first, end] = [await at(ListOffsetTimestamps.EARLIEST), await at(ListOffsetTimestamps.LATEST)]
    const { streamId, partition, topicId, topic, next } = share
    const to = Math.min(Math.max(next, first), end)
    held.delete(keyOf(share))
    if (to === next) return
    const facts = { topic, partition, from: next, to }
    if (!(await setPartition(db, { ...share, from: next, knownTopicId: topicId, to }))) return
    if (to > next) log.error({ ...facts, streamId }, 'Kafka has dropped records before they were taken over')
    else log.error({ ...facts, streamId }, 'Kafka has lost records that were taken over; going on at its end')
  }

  return {
    tend,
    all: () => [...held.values()],
    of: node => [...held.values()].filter(share => share.node === node),
    has,
    lose(share) {
      if (has(share)) held.delete(keyOf(share))
    },
    async repair(shares, { response }) {
      for (const { topicId, partitions } of (response as FetchAnswer).responses ?? []) {
        for (const { partitionIndex, errorCode } of partitions) {
          const share = shares.find(each => each.topicId === topicId && each.partition === partitionIndex)
          if (share && errorCode === outOfRange && has(share)) await repairOne(share)
        }
      }
    },
    lags() {
      const lags = new Map<string, number>()
      for (const { name, next, end } of held.values()) lags.set(name, (lags.get(name) ?? 0) + Math.max(0, end - next))
      return lags
    },
    async leave() {
      held.clear()
      await releasePartitions(db, { holder, kept: [] })
      await leave(db, holder)
    },
  }
}

interface FetchAnswer {
  responses?: { topicId: string; partitions: { partitionIndex: number; errorCode: number }[] }[]
}

function keyOf({ streamId, partition }: Partition): string {
  return `${streamId} ${partition}`
}

/**
 * Every partition of a stream's topic that has a leader, in one order for all consumers. Asked for on a connection of
 * its own: on the consumer's it would wait behind a reading that waits for records.
 */
async function findPartitions(place: KafkaPlace, consumer: Consumer): Promise<Found[]> {
  const admin = new Admin(clientOptions(place))
  try {
    const topics = (await admin.listTopics()).filter(topic => streamOf(place, topic))
    // The consumer asks for what it tracks before it reads.
    consumer.topics.clear()
    consumer.topics.trackAll(...topics)
    if (topics.length === 0) return []
    const metadata = await admin.metadata({ topics: [...topics], forceUpdate: true })
    const found = topics.flatMap(topic => {
      const { id, name } = streamOf(place, topic)!
      const known = metadata.topics.get(topic)
      return (known?.partitions ?? []).flatMap(({ leader }, partition) =>
        leader < 0 ? [] : [{ streamId: id, name, topic, topicId: known!.id, partition, node: leader }],
      )
    })
    return found.sort((a, b) => a.streamId - b.streamId || a.partition - b.partition)
  } finally {
    await admin.close()
  }
}
