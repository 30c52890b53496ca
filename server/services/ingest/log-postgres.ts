/**
 * The log and the store in PostgreSQL: records that come at the same time share a statement, a stream each, which
 * numbers them, writes them as segments and, for route B, what they add to the counts. Records of route A are counted
 * by their consumer.
 */
import { type Batcher, makeBatcher, type Outcome } from '#platform/batch.ts'
import { type Database, isConnectionLoss, type Queryable } from '#platform/database/pool.ts'
import type { Metrics } from '#platform/metrics.ts'
import { type Routed, weighBunch } from './bunch.ts'
import { errors } from './errors.ts'
import { appendBatch, type NewSegment } from './segment-store.ts'
import { type Bunch, type Placed, type Route, routes, type StreamRow } from './types.ts'

export interface PostgresLog {
  /** Durable when this resolves. What is added to a stream first comes first. @throws overloaded, stream_changed */
  append(stream: StreamRow, given: { route: Route; bunch: Bunch }): Promise<Placed>
  /** The same inside a transaction of the caller's, after whose commit `wake` is to be called. */
  appendIn(tx: Queryable, stream: StreamRow, bunches: readonly Routed[]): Promise<Placed[]>
  wake(name: string): void
  /** Shows records among those accepted that another log has taken. */
  count(name: string, given: { route: Route; records: number }): void
  /** Resolves when nothing is under way. */
  idle(): Promise<void>
}

interface Item extends Routed {
  stream: StreamRow
}

/** Of records that share a batch, in characters. */
const batchCharsMax = 2 * 1024 * 1024
/** So that whoever reads one record does not read a hundred thousand. */
export const segmentRecordsMax = 2000
export const segmentCharsMax = 256 * 1024
/** Streams whose batchers are kept. */
const lanesMax = 4096
const batchBuckets = [1, 10, 100, 1000, 10_000]

export function makePostgresLog(deps: {
  db: Database
  metrics: Metrics
  /** Called after the commit. */
  onAppended: (streamName: string) => void
  waitingMax: number
  clock: () => number
}): PostgresLog {
  const { db, clock } = deps
  const sizes = deps.metrics.histogram('ingest_batch_records', 'Records that shared a commit.', [], batchBuckets)
  const stored = deps.metrics.counter('ingest_records', 'Records accepted, by stream and route.', ['stream', 'route'])
  const lanes = new Map<string, Batcher<Item, Placed>>()

  function laneOf(stream: StreamRow): Batcher<Item, Placed> {
    // What is declared decides how a batch is counted, so that a new declaration has a lane of its own.
    const name = `${stream.id} ${stream.version}`
    let lane = lanes.get(name)
    if (lane) return lane
    if (lanes.size >= lanesMax) lanes.delete(lanes.keys().next().value!)
    lane = makeBatcher<Item, Placed>({
      name: `the stream ${stream.name}`,
      size: batchCharsMax,
      weigh: item => weighBunch(item.bunch),
      waitingMax: deps.waitingMax,
      isCommon: isConnectionLoss,
      run: write,
    })
    lanes.set(name, lane)
    return lane
  }

  async function write(items: Item[]): Promise<Outcome<Placed>[]> {
    const { stream } = items.at(-1)!
    const places = await appendAll(db, stream, items)
    deps.onAppended(stream.name)
    return places.map(value => ({ value }))
  }

  async function appendAll(on: Queryable, stream: StreamRow, items: readonly Routed[]): Promise<Placed[]> {
    const { segments, places } = layOut(items)
    const base = await appendBatch(on, {
      streamId: stream.id,
      segments,
      at: new Date(clock()),
      delta: deltaOf(stream, items),
    })
    if (base === undefined) throw errors.streamChanged(stream.name)
    const records = { a: 0, b: 0 }
    for (const { route, bunch } of items) records[route] += bunch.texts.length
    for (const route of routes) if (records[route] > 0) stored.inc({ stream: stream.name, route }, records[route])
    sizes.observe(records.a + records.b)
    return places.map(place => ({ partition: undefined, first: base + place }))
  }

  return {
    append: (stream, { route, bunch }) => laneOf(stream).push({ stream, route, bunch }),
    appendIn: appendAll,
    wake: deps.onAppended,
    count: (name, { route, records }) => stored.inc({ stream: name, route }, records),
    async idle() {
      await Promise.all([...lanes.values()].map(lane => lane.idle()))
    },
  }
}

/** Sorts bunches into segments of one route each. Answers the place of each bunch's first record, from 1 on. */
function layOut(items: readonly Routed[]): { segments: NewSegment[]; places: number[] } {
  const segments: NewSegment[] = []
  const places: number[] = []
  let next = 1
  for (const route of routes) {
    let texts: string[] = []
    let chars = 0
    const close = () => {
      if (texts.length > 0) segments.push({ route, records: texts.length, lines: texts.join('\n') })
      texts = []
      chars = 0
    }
    for (const [index, item] of items.entries()) {
      if (item.route !== route) continue
      places[index] = next
      next += item.bunch.texts.length
      for (const text of item.bunch.texts) {
        if (texts.length >= segmentRecordsMax || chars >= segmentCharsMax) close()
        texts.push(text)
        chars += text.length
      }
    }
    close()
  }
  return { segments, places }
}

function deltaOf(stream: StreamRow, items: readonly Routed[]) {
  const counts = new Map<string, number>()
  for (const { route, bunch } of items) if (route === 'b') countKeys(counts, bunch.keys)
  return counts.size === 0 ? undefined : writeDelta(stream, 'b', counts)
}

export function countKeys(counts: Map<string, number>, keys: readonly string[]) {
  for (const key of keys) counts.set(key, (counts.get(key) ?? 0) + 1)
}

/** What stands in the table of deltas: `{"<route>": [[[value, …], count], …]}`. */
export function writeDelta(stream: Pick<StreamRow, 'dimensions'>, route: Route, counts: ReadonlyMap<string, number>) {
  const pairs = [...counts].map(([key, count]) => `[${key},${count}]`).join(',')
  return { dimensions: stream.dimensions.join(','), counts: `{"${route}":[${pairs}]}` }
}
