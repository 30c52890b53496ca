/** Reads records in their order, and lets them be followed live. */
import type { Database } from '#platform/database/pool.ts'
import { isAppError } from '#platform/errors.ts'
import { assertScope } from '#platform/http/guard.ts'
import type { LiveEvent, TopicSource } from '#platform/live/live.ts'
import { errors } from './errors.ts'
import { findOffsetOfKafka, findOldest, listSegments } from './segment-store.ts'
import { findHeads } from './stream-store.ts'
import type { ReadyStream, Streams } from './streams.ts'
import type { StoredRecord, StreamRow } from './types.ts'

export interface Reading {
  /**
   * At most `limit` records above `after`, ascending, and no more than have 4 MiB together, but one at least. What
   * retention has removed is passed over.
   */
  read(stream: Pick<StreamRow, 'id'>, given: { after: number; limit: number }): Promise<StoredRecord[]>
  /**
   * The number a text stands for that was answered as an offset; undefined while the record lies in a Kafka topic.
   * @throws bad_offset
   */
  resolve(stream: Pick<StreamRow, 'id'>, offset: string): Promise<number | undefined>
  readonly source: TopicSource
}

/** Of the records of a page: a thousand long ones would be too much for whoever writes them and whoever reads them. */
export const pageBytesMax = 4 * 1024 * 1024

interface Page {
  records: StoredRecord[]
  /** Whether it ends where it does for its length. */
  isCut: boolean
}

export function makeReading(deps: {
  db: Database
  streams: Pick<Streams, 'get' | 'getReadable'>
  /** Called when those who follow a stream were given less than there may be, for its length. */
  onCut: (streamName: string) => void
}): Reading {
  const { db, streams, onCut } = deps

  async function readPage(streamId: number, { after, limit }: { after: number; limit: number }): Promise<Page> {
    const found = await readFrom(streamId, after, limit)
    if (found.records.length > 0) return found
    const oldest = await findOldest(db, { streamId, after })
    return oldest === undefined ? found : readFrom(streamId, oldest - 1, limit)
  }

  async function readFrom(streamId: number, after: number, limit: number): Promise<Page> {
    const segments = await listSegments(db, { streamId, after, records: limit, bytes: pageBytesMax })
    const records: StoredRecord[] = []
    let bytes = 0
    for (const segment of segments) {
      let offset = segment.first_offset
      for (const text of segment.lines.split('\n')) {
        if (offset > after) {
          bytes += Buffer.byteLength(text)
          if (bytes > pageBytesMax && records.length > 0) return { records, isCut: true }
          records.push({ offset, at: segment.at, route: segment.route, text })
          if (records.length === limit) return { records, isCut: false }
        }
        offset++
      }
    }
    const read = segments.reduce((sum, { lines }) => sum + Buffer.byteLength(lines), 0)
    return { records, isCut: read >= pageBytesMax }
  }

  async function findStream(name: string): Promise<ReadyStream | undefined> {
    try {
      return await streams.get(name)
    } catch (error) {
      if (isAppError(error) && error.status === 404) return undefined
      throw error
    }
  }

  return {
    read: async ({ id }, given) => (await readPage(id, given)).records,
    async resolve({ id }, offset) {
      const [, partition, place] = /^k(\d{1,6})\.(\d{1,15})$/.exec(offset) ?? []
      if (partition !== undefined) {
        return findOffsetOfKafka(db, { streamId: id, partition: Number(partition), place: Number(place) })
      }
      if (!/^\d{1,15}$/.test(offset)) throw errors.badOffset()
      return Number(offset)
    },
    source: {
      kind: 'streams',
      async authorize(caller, name) {
        assertScope(caller, 'streams:read')
        await streams.getReadable(caller, name)
      },
      async read(name, after, limit) {
        const stream = await findStream(name)
        const { records, isCut } = stream ? await readPage(stream.id, { after, limit }) : { records: [], isCut: false }
        // Who is given less than a full page thinks that it was the last one.
        if (isCut) onCut(name)
        if (records.length > 0) return records.map(toEvent)
        // Followers know numbers of a stream that was deleted; another of its name begins with 1 again.
        const isGone = !stream || after > ((await findHeads(db, [name])).get(name) ?? 0)
        return isGone ? [{ seq: after + 1, type: 'deleted', data: null, final: true }] : []
      },
      heads: names => findHeads(db, names),
    },
  }
}

function toEvent({ offset, at, route, text }: StoredRecord): LiveEvent {
  return { seq: offset, type: 'record', data: { at, route, record: JSON.parse(text) } }
}
