/** For the tests of what is outside PostgreSQL: streams of a test's own, and what the store holds of them. */
import { type Bus, makeBus } from '#platform/bus.ts'
import { readSettings } from '#platform/config.ts'
import type { Database } from '#platform/database/pool.ts'
import { silentLog } from '#platform/log.ts'
import { coursesDeclaration } from './courses.ts'
import { inCountedOrder, makeMerger, mergerName } from './merging.ts'
import { ingestSettings } from './settings.ts'
import { makeStreams } from './streams.ts'
import type { Declaration, StreamRow } from './types.ts'

let streamsMade = 0

/** Streams of names that nobody else has. */
export function makeTestStreams(db: Database) {
  const bus: Bus = makeBus({ db, redisUrl: undefined, log: silentLog })
  const settings = readSettings(ingestSettings, {})
  const streams = makeStreams({ db, bus, settings, clock: Date.now })
  return {
    bus,
    streams,
    async declare(given: Partial<Declaration> & { name?: string } = {}): Promise<StreamRow> {
      const { name = `stream${++streamsMade}`, ...declaration } = given
      return (await streams.declare(name, { ...coursesDeclaration, ...declaration })).stream
    },
  }
}

/** Merges what there is to merge. */
export async function mergeAll(db: Database, stream: StreamRow) {
  const merger = makeMerger({ db, clock: Date.now })
  while (await merger.step({ streamId: stream.id, name: stream.name, position: 0, newest: 0 }));
  return mergerName
}

/** What the store holds of a stream: its records with their numbers, and how often each combination was counted. */
export async function inventory(db: Database, stream: StreamRow) {
  const { rows } = await db.query<{ offset: number; line: string }>(
    `select s.first_offset + l.n - 1 as "offset", l.line
     from ingest.segments s cross join lateral string_to_table(s.lines, E'\\n') with ordinality as l(line, n)
     where s.stream_id = $1 order by 1`,
    [stream.id],
  )
  await mergeAll(db, stream)
  const { rows: counted } = await db.query<{ key: string; count: number }>(
    `select key, count from ingest.rollups where stream_id = $1 and grain = 86400 and dimensions = $2`,
    [stream.id, inCountedOrder(stream.dimensions).join(',')],
  )
  return {
    offsets: rows.map(row => row.offset),
    records: rows.map(row => row.line),
    byDimensions: new Map(counted.map(row => [row.key, row.count])),
  }
}
