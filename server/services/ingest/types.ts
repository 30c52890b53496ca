/** The ways a record may take: over gRPC and the log, or straight into the store. */
export const routes = ['a', 'b'] as const
export type Route = (typeof routes)[number]

export type Audience = 'users' | 'admins'

/** What is declared of a stream. */
export interface Declaration {
  /** JSON Schema (draft 2020-12) of a record. */
  schema: Record<string, unknown>
  /** Fields of a record by which it is counted. */
  dimensions: readonly string[]
  /** In which proportion records take the routes; they add up to 100. */
  weights: Readonly<Record<Route, number>>
  /** Records with equal values of this field take one route. */
  stickyBy: string | null
  retentionDays: number
  writers: Audience
  readers: Audience
}

export interface StreamRow extends Declaration {
  id: number
  name: string
  version: number
  createdAt: Date
  updatedAt: Date
}

/** A record that may go in. */
export interface Prepared {
  /** Its JSON on one line. */
  text: string
  /** What it counts as: the values of the dimensions, as a JSON array. */
  key: string
  /** What decides its route where the stream says so. */
  sticky: string | undefined
}

/** Records that go in together, in their order, by one route. */
export interface Bunch {
  texts: readonly string[]
  /** What each counts as; none where they are counted by a consumer. */
  keys: readonly string[]
}

/** Where the records of a bunch are: the first one's place, the others follow it. */
export interface Placed {
  /** Undefined in the store itself; the partition where a Kafka topic is the log. */
  partition: number | undefined
  first: number
}

/** What takes records of a route. */
export interface RecordLog {
  /** Durable when this resolves. Records of one call get places that follow each other. */
  append(stream: StreamRow, bunch: Bunch): Promise<Placed>
}

/** A record as it is read. */
export interface StoredRecord {
  offset: number
  at: Date
  route: Route
  /** Its JSON. */
  text: string
}

/**
 * How a record's place is written: its number in the stream, or, while a Kafka topic is what it lies in,
 * `k<partition>.<place>`, by which it can be found as soon as it has a number.
 */
export function writeOffset(placed: Placed, index = 0): string {
  const place = placed.first + index
  return placed.partition === undefined ? String(place) : `k${placed.partition}.${place}`
}
