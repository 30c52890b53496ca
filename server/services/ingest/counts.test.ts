/** Counts against what a plain tally of the same records says, at any time, in any steps. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeBus } from '#platform/bus.ts'
import { readSettings } from '#platform/config.ts'
import { silentLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { makeRandom } from '#platform/random.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { makeConsumer } from './consuming.ts'
import { type CountsQuery, makeCounts, piecesOf } from './counts.ts'
import { listBehind } from './cursor-store.ts'
import { makePostgresLog } from './log-postgres.ts'
import { keysMax, makeMerger } from './merging.ts'
import type { ReaderKind } from './readers.ts'
import { otherValue, prepareRecord } from './record.ts'
import { ingestSettings } from './settings.ts'
import { makeStreams, type ReadyStream } from './streams.ts'
import { routes } from './types.ts'

const minuteMs = 60_000
const hourMs = 3_600_000
const dayMs = 86_400_000
const start = Date.parse('2026-03-01T22:58:30Z')

const { db } = await makeTestDatabase()
let now = start
const clock = () => now
const settings = readSettings(ingestSettings, {})
const bus = makeBus({ db, redisUrl: undefined, log: silentLog })
const streams = makeStreams({ db, bus, settings, clock })
const store = makePostgresLog({
  db,
  metrics: makeMetrics({ processMetrics: false }),
  onAppended: () => {},
  waitingMax: 1000,
  clock,
})
const counts = makeCounts({ db, rollupDays: 400, clock })
const [consumer, merger] = [makeConsumer({ db, streams }), makeMerger({ db, clock })]

async function declare(name: string, dimensions: string[]): Promise<ReadyStream> {
  await streams.declare(name, {
    schema: {},
    dimensions,
    weights: { a: 50, b: 50 },
    stickyBy: null,
    retentionDays: 30,
    writers: 'users',
    readers: 'users',
  })
  return streams.get(name)
}

/** One step of a reader. Answers whether it got on. */
async function step(kind: ReaderKind, stream: ReadyStream): Promise<boolean> {
  const behind = await listBehind(db, { reader: kind.name, counted: kind.counted, limit: 100 })
  const each = behind.find(({ streamId }) => streamId === stream.id)
  return each !== undefined && kind.step(each)
}

async function finish(kind: ReaderKind, stream: ReadyStream) {
  while (await step(kind, stream)) {
    // Until there is no more.
  }
}

interface Seen {
  at: number
  values: Record<string, string>
}

/** What the answer must be. */
function tally(seen: readonly Seen[], { by, everyMs }: CountsQuery, from: number, to: number) {
  const sums = new Map<string, number>()
  for (const { at, values } of seen) {
    if (at < from || at >= to) continue
    const step = everyMs === undefined ? '' : new Date(Math.floor(at / everyMs) * everyMs).toISOString()
    const key = JSON.stringify([step, ...by.map(name => values[name]!)])
    sums.set(key, (sums.get(key) ?? 0) + 1)
  }
  return sums
}

test('counts are those of the records, in any steps and at any time, merged or not', async () => {
  const stream = await declare('tallied', ['x', 'y', 'z'])
  const random = makeRandom(7)
  const pick = (items: readonly string[]) => items[Math.floor(random() * items.length)]!
  const seen: Seen[] = []
  for (let batch = 0; batch < 150; batch++) {
    now += random() < 0.1 ? random() * 9 * hourMs : random() * 3 * minuteMs
    const route = pick(routes) as 'a' | 'b'
    const made = Array.from({ length: 1 + Math.floor(random() * 40) }, () => ({
      x: pick(['1', '2', '3']),
      y: pick(['p', 'q']),
      z: pick(['', 'ä"\\', '\u0000']),
    }))
    const records = made.map(record => prepareRecord(stream.rules, JSON.stringify(record)))
    const bunch = { texts: records.map(each => each.text), keys: records.map(each => each.key) }
    await store.append(stream, { route, bunch })
    seen.push(...made.map(values => ({ at: now, values: { ...values, route } })))
    if (random() < 0.1) await step(merger, stream)
    if (random() < 0.1) await step(consumer, stream)
  }
  await finish(consumer, stream)
  const check = async () => {
    for (const by of [[], ['x'], ['z', 'x'], ['y', 'x', 'z'], ['route']]) {
      for (const everyMs of [undefined, minuteMs, 15 * minuteMs, hourMs, dayMs]) {
        for (const [from, to] of [
          [undefined, undefined],
          [start + 3 * hourMs, start + 29 * hourMs],
          [start + 17 * minuteMs, start + 26 * minuteMs],
        ] as const) {
          const query = {
            by,
            everyMs,
            from: from === undefined ? undefined : new Date(from),
            to: to === undefined ? undefined : new Date(to),
          }
          const answer = await counts.count(stream, query)
          const got = new Map(
            answer.rows.map(row => [JSON.stringify([row.at?.toISOString() ?? '', ...row.values]), row.count]),
          )
          const expected = tally(seen, query, answer.from?.getTime() ?? 0, answer.to.getTime())
          assert.deepEqual(new Map([...got].sort()), new Map([...expected].sort()), JSON.stringify(query))
        }
      }
    }
  }
  await check()
  await finish(merger, stream)
  await check()
  const { rows } = await db.query<{ count: number }>('select count(*) from ingest.deltas where stream_id = $1', [
    stream.id,
  ])
  assert.equal(rows[0]!.count, 0)
})

test('a time is split into few pieces without a gap', () => {
  const from = new Date('2024-02-10T10:10:00Z')
  const to = new Date('2026-03-05T07:03:00Z')
  const pieces = piecesOf({ from, to, everyMs: undefined, finestFrom: 0 })
  assert.deepEqual(
    pieces.map(piece => piece.grain),
    [60, 3600, 86_400, 3600, 60],
  )
  assert.deepEqual([pieces[0]!.from, pieces.at(-1)!.to], [from, to])
  for (const [index, piece] of pieces.slice(1).entries()) assert.deepEqual(piece.from, pieces[index]!.to)
  const buckets = pieces.reduce(
    (sum, { grain, ...piece }) => sum + (piece.to.getTime() - piece.from.getTime()) / grain / 1000,
    0,
  )
  assert.ok(buckets < 1000, String(buckets))
})

test('of values without an end, only so many are counted by themselves, and none is lost', async () => {
  const stream = await declare('endless', ['x', 'y'])
  const total = keysMax + 500
  for (let from = 0; from < total; from += 500) {
    const texts = Array.from({ length: 500 }, (_, index) => `{"x":"${from + index}","y":"${(from + index) % 7}"}`)
    const records = texts.map(text => prepareRecord(stream.rules, text))
    await store.append(stream, { route: 'b', bunch: { texts, keys: records.map(each => each.key) } })
  }
  await finish(merger, stream)
  const { rows } = await counts.count(stream, { by: ['x'], everyMs: undefined, from: undefined, to: undefined })
  assert.equal(
    rows.reduce((sum, row) => sum + row.count, 0),
    total,
  )
  assert.deepEqual(
    rows.filter(row => row.values[0] === otherValue).map(row => row.count),
    [500],
  )
})

test('two consumers and two mergers at once count nothing twice', async () => {
  const stream = await declare('contended', ['x'])
  let total = 0
  for (let n = 0; n < 200; n++) {
    const texts = Array.from({ length: 5 }, (_, index) => `{"x":"${(n + index) % 3}"}`)
    const keys = texts.map(text => prepareRecord(stream.rules, text).key)
    await store.append(stream, { route: n % 2 ? 'a' : 'b', bunch: { texts, keys } })
    total += 5
  }
  const others = [makeConsumer({ db, streams }), makeMerger({ db, clock })]
  await Promise.all([consumer, ...others.slice(0, 1)].map(kind => finish(kind, stream)))
  // One that found the cursor held may have given up while there was more.
  await finish(consumer, stream)
  await Promise.all([merger, ...others.slice(1)].map(kind => finish(kind, stream)))
  await finish(merger, stream)
  const { rows } = await counts.count(stream, { by: [], everyMs: undefined, from: undefined, to: undefined })
  assert.deepEqual(rows, [{ at: undefined, values: [], count: total }])
})

test('dimensions that are declared in another order go on counting where they were counted', async () => {
  const records = [
    { x: '1', y: 'p', z: 'k' },
    { x: '1', y: 'q', z: 'l' },
    { x: '2', y: 'p', z: 'k' },
  ]
  const count = async (stream: ReadyStream, by: string[]) => {
    const { rows } = await counts.count(stream, { by, everyMs: undefined, from: undefined, to: undefined })
    return rows.map(row => [...row.values, row.count])
  }
  const orders = [
    ['x', 'z', 'y'],
    ['y', 'x', 'z'],
    ['z', 'y', 'x'],
  ]
  for (const [round, order] of orders.entries()) {
    await declare('reordered', order)
    const stream = await streams.get('reordered')
    assert.deepEqual(stream.dimensions, order)
    for (const route of routes) {
      const prepared = records.map(record => prepareRecord(stream.rules, JSON.stringify(record)))
      const bunch = { texts: prepared.map(each => each.text), keys: prepared.map(each => each.key) }
      await store.append(stream, { route, bunch })
    }
    await finish(consumer, stream)
    const times = 2 * (round + 1)
    for (const isMerged of [false, true]) {
      if (isMerged) await finish(merger, stream)
      const words = `in round ${round}, ${isMerged ? 'merged' : 'not merged'}`
      assert.deepEqual(
        await count(stream, ['x', 'y']),
        [
          ['1', 'p', times],
          ['1', 'q', times],
          ['2', 'p', times],
        ],
        words,
      )
      assert.deepEqual(
        await count(stream, ['y', 'x']),
        [
          ['p', '1', times],
          ['p', '2', times],
          ['q', '1', times],
        ],
        words,
      )
      assert.deepEqual(
        await count(stream, ['z', 'x', 'y']),
        [
          ['k', '1', 'p', times],
          ['k', '2', 'p', times],
          ['l', '1', 'q', times],
        ],
        words,
      )
      assert.deepEqual(
        await count(stream, ['z']),
        [
          ['k', 2 * times],
          ['l', times],
        ],
        words,
      )
    }
  }
  const { rows } = await db.query('select from ingest.keys where stream_id = $1', [(await streams.get('reordered')).id])
  assert.equal(rows.length, records.length)
})
