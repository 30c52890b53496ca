/**
 * Takes over what was read from a stream's Kafka partitions: segments, what they add to the counts, and the places
 * come to, in one transaction. It moves each place from where the reading began, so that of two consumers, or of a
 * consumer that was cut off and its heir, one alone can take a record over, and none is passed by.
 */
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import type { FetchedPartition } from './kafka-client.ts'
import { type Move, movePartitions } from './kafka-store.ts'
import { countKeys, segmentCharsMax, segmentRecordsMax, writeDelta } from './log-postgres.ts'
import { keyOf, onOneLine } from './record.ts'
import { appendBatch, type NewSegment } from './segment-store.ts'
import type { StreamRow } from './types.ts'

/** What was read from a partition. */
export interface Piece extends Move {
  messages: readonly Message[]
}

export interface Message {
  offset: number
  value: Buffer | null
}

/** Thrown when another consumer has moved a place meanwhile: nothing was written. */
export class Overtaken extends Error {}

/** Of a batch's attributes: what Kafka itself wrote. */
const controlBit = 0x20

/** What a fetch brought of a partition from a place on; undefined when that is nothing. */
export function readPiece(
  fetched: Pick<FetchedPartition, 'partitionIndex' | 'records'>,
  given: { topicId: string; from: number },
): Piece | undefined {
  const messages: Message[] = []
  let to = given.from
  for (const batch of fetched.records ?? []) {
    const first = Number(batch.firstOffset)
    // Kafka answers whole batches, whatever place was asked for.
    to = Math.max(to, first + batch.lastOffsetDelta + 1)
    if (batch.attributes & controlBit) continue
    for (const { offsetDelta, value } of batch.records) {
      if (first + offsetDelta >= given.from) messages.push({ offset: first + offsetDelta, value })
    }
  }
  return to === given.from ? undefined : { partition: fetched.partitionIndex, ...given, to, messages }
}

export interface Taking {
  /** Answers how many records it took over. @throws Overtaken; whatever it throws, nothing is written twice */
  takeOver(stream: StreamRow, pieces: readonly Piece[]): Promise<number>
}

export function makeTaking(deps: {
  db: Database
  log: Log
  /** Called after the commit. */
  onAppended: (streamName: string) => void
  clock: () => number
}): Taking {
  return {
    async takeOver(stream, pieces) {
      const { segments, counts, refused } = layOut(stream, pieces)
      await deps.db.tx(async tx => {
        const moved = movePartitions(tx, { streamId: stream.id, moves: pieces })
        const put =
          segments.length === 0
            ? undefined
            : appendBatch(tx, {
                streamId: stream.id,
                segments,
                at: new Date(deps.clock()),
                delta: writeDelta(stream, 'a', counts),
              })
        // Both are on their way; what the second says is of no interest when the first says no.
        put?.catch(() => {})
        if ((await moved) < pieces.length) throw new Overtaken(`Others read the topic of ${stream.name}.`)
        if (put && (await put) === undefined) throw new Error(`The stream ${stream.name} was deleted.`)
      })
      for (const { partition, offset } of refused) {
        deps.log.error({ stream: stream.name, partition, offset }, 'what lies there in Kafka is no record; passed over')
      }
      if (segments.length > 0) deps.onAppended(stream.name)
      return segments.reduce((sum, segment) => sum + segment.records, 0)
    },
  }
}

interface LaidOut {
  segments: NewSegment[]
  counts: Map<string, number>
  /** What is no JSON object: not of Capstan's front. */
  refused: { partition: number; offset: number }[]
}

/** Sorts messages into segments whose records follow each other in Kafka. */
function layOut(stream: Pick<StreamRow, 'dimensions'>, pieces: readonly Piece[]): LaidOut {
  const laid: LaidOut = { segments: [], counts: new Map(), refused: [] }
  for (const { partition, messages } of pieces) {
    let texts: string[] = []
    let chars = 0
    let first = 0
    const close = () => {
      const kafka = { partition, offset: first }
      if (texts.length > 0) laid.segments.push({ route: 'a', records: texts.length, lines: texts.join('\n'), kafka })
      texts = []
      chars = 0
    }
    const keys: string[] = []
    for (const { offset, value } of messages) {
      const record = readRecord(stream.dimensions, value)
      if (!record) laid.refused.push({ partition, offset })
      if (offset !== first + texts.length || texts.length >= segmentRecordsMax || chars >= segmentCharsMax) close()
      if (!record) continue
      if (texts.length === 0) first = offset
      texts.push(record.text)
      keys.push(record.key)
      chars += record.text.length
    }
    close()
    countKeys(laid.counts, keys)
  }
  return laid
}

function readRecord(dimensions: readonly string[], value: Buffer | null): { text: string; key: string } | undefined {
  if (value === null) return undefined
  const text = value.toString()
  try {
    const record = JSON.parse(text)
    if (typeof record !== 'object' || record === null || Array.isArray(record)) return undefined
    return { text: onOneLine(text), key: keyOf(dimensions, record) }
  } catch {
    return undefined
  }
}
