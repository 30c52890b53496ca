/** What the Kafka log and its consumer share: how they connect, how topics are named, what went wrong. */
import { Admin, type BaseOptions, type Consumer, findErrorBy } from '@platformatic/kafka'
import type { StreamRow } from './types.ts'

export interface KafkaPlace {
  /** As `host:port`. */
  brokers: readonly string[]
  /** What topics of this Capstan begin with, such as `capstan.3f9a01bc`: others may use the same Kafka. */
  prefix: string
}

/** What a fetch answers. */
export type Fetched = Awaited<ReturnType<Consumer['fetch']>>
export type FetchedPartition = Fetched['responses'][number]['partitions'][number]

const connectTimeoutMs = 2000
/** Less than half of what a caller waits: a request may need another one before it. */
const requestTimeoutMs = 4000
/** Of requests on one connection; those beyond wait. */
const requestsAtOnce = 16

/** Nothing is tried again by the library: what became of a failed request is not known. */
export function clientOptions({ brokers }: KafkaPlace): BaseOptions {
  return {
    clientId: 'capstan',
    bootstrapBrokers: [...brokers],
    retries: 0,
    connectTimeout: connectTimeoutMs,
    requestTimeout: requestTimeoutMs,
    timeout: requestTimeoutMs,
    maxInflights: requestsAtOnce,
  }
}

/** A stream that is deleted and declared anew gets another topic, since ids are not used again. */
export function topicOf({ prefix }: Pick<KafkaPlace, 'prefix'>, { id, name }: Pick<StreamRow, 'id' | 'name'>): string {
  return `${prefix}.${id}-${name}`
}

/** Removes the topic of a stream that was deleted, whether it is there or not. */
export async function removeTopic(place: KafkaPlace, stream: Pick<StreamRow, 'id' | 'name'>): Promise<true> {
  const admin = new Admin(clientOptions(place))
  try {
    await admin.deleteTopics({ topics: [topicOf(place, stream)] })
  } catch (error) {
    if (!isUnknownTopic(error)) throw error
  } finally {
    await admin.close()
  }
  return true
}

/** The stream a topic is of; undefined for others' topics. */
export function streamOf({ prefix }: Pick<KafkaPlace, 'prefix'>, topic: string) {
  if (!topic.startsWith(`${prefix}.`)) return undefined
  const [, id, name] = /^(\d{1,10})-(.+)$/.exec(topic.slice(prefix.length + 1)) ?? []
  return id === undefined ? undefined : { id: Number(id), name: name! }
}

/** Whether a broker, or the library before it asked any, says this. @param id such as `MESSAGE_TOO_LARGE` */
export function isKafkaError(error: unknown, id: string): boolean {
  return findErrorBy(error as Error, 'apiId', id) !== null
}

/** True when there is no such topic, so that nothing was taken. */
export function isUnknownTopic(error: unknown): boolean {
  // The library makes a sentence of what the broker said.
  return isKafkaError(error, 'UNKNOWN_TOPIC_OR_PARTITION') || /^Unknown topic/.test((error as Error).message)
}

/** True when a broker, or the library for it, refused the whole request since the topic is elsewhere or nowhere yet. */
export function isWrongPlace(error: unknown): boolean {
  const isUnsure = ['PLT_KFK_NETWORK', 'PLT_KFK_TIMEOUT'].some(code => findErrorBy(error as Error, 'code', code))
  return !isUnsure && (isUnknownTopic(error) || findErrorBy(error as Error, 'hasStaleMetadata', true) !== null)
}
