/**
 * Route A's log where Kafka is configured: a topic a stream, a message a record. Records that come at the same time
 * share a request, and those of a request lie in one partition, so that the places of a bunch follow each other.
 *
 * A request whose answer did not come is not made again: its records may lie in the topic, and would lie there twice.
 * Whoever sent them is told. So the producer need not be an idempotent one, of which each connection could have but
 * one request under way.
 */
import { setTimeout as pause } from 'node:timers/promises'
import { Admin, type MessageToProduce, ProduceAcks, Producer } from '@platformatic/kafka'
import { makeBatcher, type Outcome } from '#platform/batch.ts'
import type { Log } from '#platform/log.ts'
import { weighBunch } from './bunch.ts'
import { errors } from './errors.ts'
import { clientOptions, isKafkaError, isUnknownTopic, isWrongPlace, type KafkaPlace, topicOf } from './kafka-client.ts'
import { makeOutage } from './outage.ts'
import { fieldOf } from './record.ts'
import type { Bunch, Placed, RecordLog, StreamRow } from './types.ts'

export interface KafkaLog extends RecordLog {
  /** Resolves when nothing is under way. */
  idle(): Promise<void>
  stop(): Promise<void>
}

export interface KafkaLogDeps extends KafkaPlace {
  /** Of topics that are made. */
  partitions: number
  replicas: number
  waitingMax: number
  log: Log
  /** Called with what has become durable. */
  onStored: (stream: string, records: number) => void
  /** Called when a topic was made. */
  onTopic: () => void
  clock: () => number
  /** For tests: what sends. */
  producer?: Pick<Producer, 'send' | 'close'>
}

interface Item {
  stream: StreamRow
  bunch: Bunch
}

/** Of records that share a request, in characters. */
const requestCharsMax = 1024 * 1024
const requestsAtOnce = 3
/** Of a topic: more than a request, whatever its characters are. */
const messageBytesMax = 16_777_216
const dayMs = 86_400_000
/** A topic that was made is not known to each broker at once. */
const topicTries = 15
const topicWaitMs = 100
const produceTries = 8

export function makeKafkaLog(deps: KafkaLogDeps): KafkaLog {
  const producer = deps.producer ?? new Producer({ ...clientOptions(deps), acks: ProduceAcks.ALL })
  const ensureTopic = makeTopicMaker(deps)
  const outage = makeOutage(deps.log, {
    began: 'records did not get into Kafka for certain; such are answered 503 until they do',
    ended: 'records get into Kafka again',
  })
  /** Counts the requests of a stream, so that they go to the partitions in turn. */
  const turns = new Map<number, number>()

  async function send({ stream, items }: { stream: StreamRow; items: readonly Item[] }): Promise<Outcome<Placed>[]> {
    const turn = (turns.get(stream.id) ?? Math.floor(Math.random() * deps.partitions)) + 1
    turns.set(stream.id, turn)
    const messages = toMessages({ topic: topicOf(deps, stream), turn, items, at: deps.clock() })
    try {
      const placed = await produce(stream, messages)
      outage.worked()
      deps.onStored(stream.name, messages.length)
      let next = placed.first
      return items.map(({ bunch }) => {
        const first = next
        next += bunch.texts.length
        return { value: { partition: placed.partition, first } }
      })
    } catch (error) {
      // It was refused as a whole. A topic that somebody else made may take less than ours.
      if (items.length > 1 && isKafkaError(error, 'MESSAGE_TOO_LARGE')) {
        return (await Promise.all(items.map(item => send({ stream, items: [item] })))).flat()
      }
      outage.failed({ err: error, stream: stream.name })
      return items.map(() => ({ error: errors.routeUnavailable(explain(error)) }))
    }
  }

  async function produce(stream: StreamRow, messages: Message[]): Promise<{ partition: number; first: number }> {
    for (let tries = 1; ; tries++) {
      try {
        return await produceOnce(messages)
      } catch (error) {
        // A topic that is new, or whose leader moves, is refused for a moment, and nothing was taken then.
        if (tries === produceTries || !isWrongPlace(error)) throw error
        if (isUnknownTopic(error)) await ensureTopic(stream)
        if (tries > 1) await pause(topicWaitMs)
      }
    }
  }

  async function produceOnce(messages: Message[]) {
    const { offsets } = await producer.send({ messages, acks: ProduceAcks.ALL })
    const [place] = offsets ?? []
    if (!place) throw new Error('Kafka took records and did not say where.')
    return { partition: place.partition, first: Number(place.offset) }
  }

  const requests = makeBatcher<Item, Placed>({
    name: 'route A',
    size: requestCharsMax,
    weigh: item => weighBunch(item.bunch),
    waitingMax: deps.waitingMax,
    parallel: requestsAtOnce,
    isCommon: () => true,
    run: items => sendAll(items, send),
  })
  return {
    append: (stream, bunch) => requests.push({ stream, bunch }),
    idle: () => requests.idle(),
    async stop() {
      await producer.close()
    },
  }
}

/** A request a stream. Answers in the order of the items. */
async function sendAll(
  items: readonly Item[],
  send: (given: { stream: StreamRow; items: readonly Item[] }) => Promise<Outcome<Placed>[]>,
): Promise<Outcome<Placed>[]> {
  const streams = new Map<number, { stream: StreamRow; indexes: number[] }>()
  for (const [index, { stream }] of items.entries()) {
    const group = streams.get(stream.id)
    if (group) group.indexes.push(index)
    else streams.set(stream.id, { stream, indexes: [index] })
  }
  const outcomes: Outcome<Placed>[] = []
  const put = async ({ stream, indexes }: { stream: StreamRow; indexes: number[] }) => {
    const sent = await send({ stream, items: indexes.map(index => items[index]!) })
    for (const [place, index] of indexes.entries()) outcomes[index] = sent[place]!
  }
  await Promise.all([...streams.values()].map(put))
  return outcomes
}

type Message = MessageToProduce<Buffer, Buffer, Buffer, Buffer>

function toMessages(given: { topic: string; turn: number; items: readonly Item[]; at: number }): Message[] {
  const { topic, turn, items, at } = given
  const timestamp = BigInt(at)
  const messages: Message[] = []
  for (const { stream, bunch } of items) {
    for (const text of bunch.texts) {
      const key = stickyOf(stream, text)
      const value = Buffer.from(text)
      // The library takes the partition modulo how many there are.
      messages.push({ topic, partition: turn, value, timestamp, ...(key === undefined ? {} : { key }) })
    }
  }
  return messages
}

/** The value by which a record stays on its route, for whoever else reads the topic. */
function stickyOf({ stickyBy }: StreamRow, text: string): Buffer | undefined {
  if (stickyBy === null) return undefined
  const value = fieldOf(JSON.parse(text), stickyBy)
  if (value === undefined || value === null) return undefined
  return Buffer.from(typeof value === 'string' ? value : JSON.stringify(value))
}

/** Makes a stream's topic unless it is there; several who ask at once share one request. */
function makeTopicMaker(deps: KafkaLogDeps): (stream: StreamRow) => Promise<void> {
  const underWay = new Map<string, Promise<void>>()

  async function make(stream: StreamRow) {
    const topic = topicOf(deps, stream)
    const admin = new Admin(clientOptions(deps))
    try {
      await admin
        .createTopics({
          topics: [topic],
          partitions: deps.partitions,
          replicas: deps.replicas,
          configs: [
            { name: 'max.message.bytes', value: String(messageBytesMax) },
            // What was not taken over by then would be too old in the store as well.
            { name: 'retention.ms', value: String(stream.retentionDays * dayMs) },
            // An acknowledged record is in all copies but one.
            { name: 'min.insync.replicas', value: String(Math.max(1, deps.replicas - 1)) },
          ],
        })
        .catch(error => {
          if (!isKafkaError(error, 'TOPIC_ALREADY_EXISTS')) throw error
        })
      await untilKnown(admin, topic)
    } finally {
      await admin.close()
    }
    deps.log.info({ topic, partitions: deps.partitions }, 'a Kafka topic was made')
    deps.onTopic()
  }

  return stream => {
    const topic = topicOf(deps, stream)
    const making = underWay.get(topic) ?? make(stream).finally(() => underWay.delete(topic))
    underWay.set(topic, making)
    return making
  }
}

async function untilKnown(admin: Admin, topic: string) {
  for (let tries = 1; ; tries++) {
    try {
      const { topics } = await admin.metadata({ topics: [topic], forceUpdate: true })
      if (topics.get(topic)?.partitions.every(partition => partition.leader >= 0)) return
    } catch (error) {
      if (tries >= topicTries) throw error
    }
    if (tries >= topicTries) throw new Error(`The topic ${topic} has no leader yet.`)
    await pause(topicWaitMs)
  }
}

function explain(error: unknown): string {
  if (isKafkaError(error, 'MESSAGE_TOO_LARGE')) return 'the Kafka topic takes no records that long'
  if (isKafkaError(error, 'NOT_ENOUGH_REPLICAS')) return 'Kafka has too few copies of its topic in step'
  if (isKafkaError(error, 'INVALID_REPLICATION_FACTOR')) return 'Kafka has fewer brokers than KAFKA_REPLICAS asks for'
  return 'Kafka does not answer as it should'
}
