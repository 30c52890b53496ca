/** The consumer of route A where PostgreSQL is the log: counts what came, and keeps its place with the counts. */
import type { Database } from '#platform/database/pool.ts'
import { findHead, lockCursor, moveCursor } from './cursor-store.ts'
import { insertDeltas, type NewDelta } from './delta-store.ts'
import { countKeys, writeDelta } from './log-postgres.ts'
import type { ReaderKind } from './readers.ts'
import { keyOf } from './record.ts'
import { listSegmentsOfRoute, type SegmentRow } from './segment-store.ts'
import type { Streams } from './streams.ts'
import type { StreamRow } from './types.ts'

const consumerName = 'consumer'
const segmentsMax = 64
/** Between two rounds: within it, batches of a busy stream add up, and share the commit of their counts. */
const restMs = 100
const minuteMs = 60_000

export function makeConsumer(deps: { db: Database; streams: Pick<Streams, 'get'> }): ReaderKind {
  const { db, streams } = deps
  return {
    name: consumerName,
    counted: 'last_offset',
    restMs,
    async step({ streamId, name }) {
      const stream = await streams.get(name)
      // It was deleted and declared anew; the cache will know soon.
      if (stream.id !== streamId) return false
      return db.tx(async tx => {
        const position = await lockCursor(tx, { streamId, reader: consumerName })
        const head = await findHead(tx, streamId)
        if (position === undefined || head === undefined || head.last_offset <= position) return false
        const segments = await listSegmentsOfRoute(tx, {
          streamId,
          after: position,
          upto: head.last_offset,
          route: 'a',
          limit: segmentsMax,
          // Those are counted as they come.
          kafkaToo: false,
        })
        await insertDeltas(tx, { streamId, deltas: countByMinute(stream, segments) })
        const isAll = segments.length < segmentsMax
        moveCursor(tx, {
          streamId,
          reader: consumerName,
          position: isAll ? head.last_offset : segments.at(-1)!.first_offset,
        })
        return true
      })
    },
  }
}

/** What segments of route A add to the counts, by the minute in which they came. */
function countByMinute(stream: Pick<StreamRow, 'dimensions'>, segments: readonly SegmentRow[]): NewDelta[] {
  const minutes = new Map<number, Map<string, number>>()
  for (const { at, lines } of segments) {
    const minute = Math.floor(at.getTime() / minuteMs) * minuteMs
    const counts = minutes.get(minute) ?? new Map<string, number>()
    minutes.set(minute, counts)
    countKeys(
      counts,
      lines.split('\n').map(line => keyOf(stream.dimensions, JSON.parse(line))),
    )
  }
  return [...minutes].map(([minute, counts]) => ({ minute: new Date(minute), ...writeDelta(stream, 'a', counts) }))
}
