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
  /** At most `limit` records above `after`, ascending. What retention has removed is passed over. */
  read(stream: Pick<StreamRow, 'id'>, given: { after: number; limit: number }): Promise<StoredRecord[]>
  /**
   * The number a text stands for that was answered as an offset; undefined while the record lies in a Kafka topic.
   * @throws bad_offset
   */
  resolve(stream: Pick<StreamRow, 'id'>, offset: string): Promise<number | undefined>
  readonly source: TopicSource
}

export function makeReading(deps: { db: Database; streams: Pick<Streams, 'get' | 'getReadable'> }): Reading {
  const { db, streams } = deps

  async function read({ id }: Pick<StreamRow, 'id'>, { after, limit }: { after: number; limit: number }) {
    const found = await readFrom(id, after, limit)
    if (found.length > 0) return found
    const oldest = await findOldest(db, { streamId: id, after })
    return oldest === undefined ? [] : readFrom(id, oldest - 1, limit)
  }

  async function readFrom(streamId: number, after: number, limit: number): Promise<StoredRecord[]> {
    const records: StoredRecord[] = []
    for (const segment of await listSegments(db, { streamId, after, records: limit })) {
      let offset = segment.first_offset
      for (const text of segment.lines.split('\n')) {
        if (records.length === limit) return records
        if (offset > after) records.push({ offset, at: segment.at, route: segment.route, text })
        offset++
      }
    }
    return records
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
    read,
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
        const records = stream ? await read(stream, { after, limit }) : []
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
