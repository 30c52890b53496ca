/** What is configured besides PostgreSQL: Kafka as route A's log, copies in MongoDB, counters in Redis. */
import { hash, randomUUID } from 'node:crypto'
import type { Redis } from 'ioredis'
import type { Bus } from '#platform/bus.ts'
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import type { Metrics } from '#platform/metrics.ts'
import { releaseLeases } from './cursor-store.ts'
import { type KafkaPlace, removeTopic } from './kafka-client.ts'
import { type KafkaConsumer, makeKafkaConsumer } from './kafka-consuming.ts'
import { makeTaking } from './kafka-taking.ts'
import { makeLeftovers, type Remove } from './leftovers.ts'
import { type KafkaLog, makeKafkaLog } from './log-kafka.ts'
import { makeMongo } from './mongo.ts'
import type { ReaderKind } from './readers.ts'
import { makeRedisCounters, removeCounters } from './redis-counters.ts'
import type { IngestSettings } from './settings.ts'
import type { Streams } from './streams.ts'

export interface StoresDeps {
  db: Database
  bus: Bus
  redis: Redis | undefined
  streams: Pick<Streams, 'get'>
  log: Log
  metrics: Metrics
  settings: IngestSettings
  /** What all processes on this database share, in hexadecimal. */
  key: string
  /** Whether this process takes route A's records, takes HTTP requests, copies what was taken. */
  parts: { log: boolean; front: boolean; consumer: boolean }
  onStored: (stream: string, records: number) => void
  onAppended: (stream: string) => void
  clock: () => number
}

export interface Stores {
  /** Where Kafka is route A's log and this process writes to it. */
  logA: KafkaLog | undefined
  kinds: ReaderKind[]
  start(): void
  /** Call it when the readers have stopped. */
  stop(): Promise<void>
}

const topicsChannel = 'ingest:topics'
const prefixChars = 8

export function makeStores(deps: StoresDeps): Stores {
  const { db, redis, log, settings, parts } = deps
  const holder = randomUUID()
  const kafka = makeKafkaParts({ ...deps, holder })
  const refused = deps.metrics.counter('ingest_mongo_refused', 'Records MongoDB does not take, by stream.', ['stream'])
  const onRefused = (stream: string, records: number) => refused.inc({ stream }, records)
  const url = parts.consumer || parts.front ? settings.MONGODB_URL : undefined
  const mongo = url === undefined ? undefined : makeMongo({ db, log, holder, onRefused, url })
  const counters = parts.front ? redis : undefined
  const kinds: ReaderKind[] = []
  if (mongo && parts.consumer) kinds.push(mongo.readerOf('a'))
  if (mongo && parts.front) kinds.push(mongo.readerOf('b'))
  if (counters) kinds.push(makeRedisCounters({ db, redis: counters, log, holder }))
  const leftovers = makeLeftovers({
    db,
    log,
    removers: {
      ...(kafka.remove ? { kafka: kafka.remove } : {}),
      ...(mongo ? { mongodb: mongo.remove } : {}),
      ...(counters ? { redis: stream => removeCounters(counters, stream) } : {}),
    },
  })
  return {
    logA: kafka.log,
    kinds,
    start() {
      kafka.consumer?.start()
      leftovers.start()
    },
    async stop() {
      await leftovers.stop()
      await kafka.stop()
      await mongo?.stop()
      // Where the database is away, the leases run out.
      await releaseLeases(db, holder).catch(error => log.debug({ err: error }, 'leases were not given back'))
    },
  }
}

function makeKafkaParts(deps: StoresDeps & { holder: string }) {
  const { bus, settings, parts } = deps
  const place: KafkaPlace = {
    brokers: settings.KAFKA_BROKERS ?? [],
    // Another database has other streams of the same ids.
    prefix: `capstan.${hash('sha256', `kafka ${deps.key}`).slice(0, prefixChars)}`,
  }
  const isUsed = settings.KAFKA_BROKERS !== undefined
  const log =
    isUsed && parts.log
      ? makeKafkaLog({
          ...deps,
          ...place,
          partitions: settings.KAFKA_PARTITIONS,
          replicas: settings.KAFKA_REPLICAS,
          waitingMax: settings.INGEST_WAITING_MAX,
          onTopic: () => bus.publish(topicsChannel, ['made']),
        })
      : undefined
  const consumer =
    isUsed && parts.consumer ? makeKafkaConsumer({ ...deps, ...place, taking: makeTaking(deps) }) : undefined
  const unsubscribe = consumer && bus.subscribe(topicsChannel, consumer.wake)
  if (consumer) showLags(deps.metrics, consumer)
  const remove: Remove | undefined = log || consumer ? stream => removeTopic(place, stream) : undefined
  return {
    log,
    consumer,
    remove,
    async stop() {
      unsubscribe?.()
      await log?.idle()
      await log?.stop()
      await consumer?.stop()
    },
  }
}

function showLags(metrics: Metrics, consumer: KafkaConsumer) {
  const help = 'Records in Kafka that were not taken over yet, of this process’s share, by stream.'
  metrics.gauge('ingest_kafka_lag', help, ['stream'], gauge => {
    gauge.reset()
    for (const [stream, lag] of consumer.lags()) gauge.set({ stream }, lag)
  })
}
