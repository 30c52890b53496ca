import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Redis } from 'ioredis'
import type { Database } from '#platform/database/pool.ts'
import { silentLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { makeTestRedis, redisIsMissing } from '../../../test/support/redis.ts'
import { until } from '../../../test/support/until.ts'
import { makeConsumer } from './consuming.ts'
import { generateCourses } from './courses.ts'
import { listBehind } from './cursor-store.ts'
import { makePostgresLog } from './log-postgres.ts'
import { keysMax, relayName } from './merging.ts'
import { keyOf } from './record.ts'
import { makeRedisCounters, removeCounters } from './redis-counters.ts'
import { makeTestStreams, mergeAll } from './stores-test-support.ts'
import type { StreamRow } from './types.ts'

const skip = redisIsMissing
const server = skip ? undefined : await makeTestRedis()
const { db } = await makeTestDatabase()
const { streams, declare } = makeTestStreams(db)
const redis = new Redis(server?.url ?? '', {
  enableOfflineQueue: false,
  maxRetriesPerRequest: 1,
  retryStrategy: () => 50,
  lazyConnect: true,
}).on('error', () => {})
redis.setMaxListeners(0)
if (!skip) await redis.connect()
atEnd(() => redis.disconnect())
const store = makePostgresLog({
  db,
  metrics: makeMetrics({ processMetrics: false }),
  onAppended: () => {},
  waitingMax: 1000,
  clock: Date.now,
})
const consumer = makeConsumer({ db, streams })
let seed = 0

/** Adds records by both routes and has them counted. */
async function add(stream: StreamRow, records: number) {
  for (const route of ['a', 'b'] as const) {
    const values = [...generateCourses({ count: records / 2, seed: ++seed })]
    const keys = values.map(value => keyOf(stream.dimensions, { ...value }))
    await store.append(stream, { route, bunch: { texts: values.map(value => JSON.stringify(value)), keys } })
  }
  while (await consumer.step({ streamId: stream.id, name: stream.name, position: 0, newest: 0 }));
  await mergeAll(db, stream)
}

function makeCounters(given: { on?: Database; to?: Redis; holder?: string } = {}) {
  const { on = db, to = redis, holder = 'one' } = given
  return makeRedisCounters({ db: on, redis: to, log: silentLog, holder })
}

/** As the loop of the readers does it. */
async function relayAll(counters = makeCounters()) {
  await counters.prepare?.()
  for (let more = true; more; ) {
    more = false
    for (const behind of await listBehind(db, { reader: relayName, counted: 'last_delta', limit: 100 })) {
      more = (await counters.step(behind)) || more
    }
  }
}

/** Every hash of the stream is what the rollups say. */
async function assertEqual(stream: StreamRow) {
  const { rows } = await db.query<{ dimensions: string; key: string; count: number }>(
    `select dimensions, key, sum(count)::bigint as count from ingest.rollups
     where stream_id = $1 and grain = 60 and (length(dimensions) - length(replace(dimensions, ',', ''))) < 2
     group by 1, 2`,
    [stream.id],
  )
  const expected = new Map<string, Record<string, string>>()
  for (const { dimensions, key, count } of rows) {
    const values = JSON.parse(key) as string[]
    const field = values.length === 0 ? 'total' : values.length === 1 ? values[0]! : key
    const name = `capstan:streams:${stream.name}${dimensions === '' ? '' : `:${dimensions}`}`
    expected.set(name, { ...expected.get(name), [field]: String(count) })
  }
  const found = new Map<string, Record<string, string>>()
  for (const name of await redis.keys(`capstan:streams:${stream.name}*`)) {
    const { stream: _, position: __, hashes: ___, ...counts } = await redis.hgetall(name)
    found.set(name, counts)
  }
  assert.ok(expected.size > 0)
  assert.deepEqual(sorted(found), sorted(expected))
}

function sorted(map: Map<string, unknown>) {
  return Object.fromEntries([...map].sort(([a], [b]) => (a < b ? -1 : 1)))
}

test('counts by dimension, by two of them, by route and in all are those of the rollups', { skip }, async () => {
  const stream = await declare()
  await add(stream, 300)
  await relayAll()
  await assertEqual(stream)
  await add(stream, 100)
  await add(stream, 50)
  await relayAll()
  await assertEqual(stream)
  assert.equal(await redis.hget(`capstan:streams:${stream.name}`, 'total'), '450')
  assert.deepEqual(await redis.hgetall(`capstan:streams:${stream.name}:route`), { a: '225', b: '225' })
})

test('a relay that dies before, or right after, its script counts nothing twice', { skip }, async () => {
  const stream = await declare()
  for (const cut of ['before', 'after'] as const) {
    await add(stream, 40)
    await relayAll()
    await add(stream, 40)
    const cutting = new Proxy(redis, {
      get(target, name) {
        if (name !== 'call') return Reflect.get(target, name).bind?.(target)
        return async (command: string, given: string[]) => {
          if (cut === 'after') await target.call(command, given)
          throw new Error('cut')
        }
      },
    })
    await assert.rejects(relayAll(makeCounters({ to: cutting })), /cut/)
    await relayAll()
    await assertEqual(stream)
  }
})

test('two relays of one stream at once count nothing twice', { skip }, async () => {
  const stream = await declare()
  await add(stream, 20)
  await relayAll()
  for (let round = 0; round < 5; round++) {
    await add(stream, 20)
    const [behind] = await listBehind(db, { reader: relayName, counted: 'last_delta', limit: 1 })
    // Both think that they hold it.
    const steps = ['one', 'two'].map(async holder => {
      await db.query(`update ingest.cursors set held_until = null where name = $1`, [relayName])
      return makeCounters({ holder }).step(behind!)
    })
    await Promise.all(steps)
    await relayAll()
  }
  await assertEqual(stream)
})

test('a relay that was overtaken on its way counts nothing', { skip }, async () => {
  const stream = await declare()
  await add(stream, 20)
  await relayAll()
  await add(stream, 20)
  const late = new Proxy(redis, {
    get(target, name) {
      if (name !== 'call') return Reflect.get(target, name).bind?.(target)
      return async (command: string, given: string[]) => {
        await relayAll()
        return target.call(command, given)
      }
    },
  })
  await relayAll(makeCounters({ to: late }))
  await assertEqual(stream)
})

test('a Redis that lost everything, or its last writes, is brought back to the rollups', { skip }, async () => {
  const [lost, late] = [await declare(), await declare()]
  const counters = makeCounters()
  await add(lost, 100)
  await add(late, 100)
  await relayAll(counters)
  const before = await redis.hgetall(`capstan:streams:${late.name}`)
  const hashes = JSON.parse(before.hashes!) as string[]
  const kept = await Promise.all(
    hashes.map(async name => [name, await redis.hgetall(`capstan:streams:${late.name}:${name}`)] as const),
  )
  await add(late, 60)
  await relayAll(counters)
  await server!.kill()
  await assert.rejects(redis.ping())
  await server!.start()
  await until(() => redis.status === 'ready')
  assert.deepEqual(await redis.keys('*'), [])
  // As a replica that took over has it: all, but for the last writes.
  await redis.hset(`capstan:streams:${late.name}`, before)
  for (const [name, fields] of kept) await redis.hset(`capstan:streams:${late.name}:${name}`, fields)
  // Nothing new has come: that Redis was away is reason enough to look.
  await relayAll(counters)
  await assertEqual(lost)
  await assertEqual(late)
})

test('what Redis lacks and is no longer there as deltas comes from the rollups, and is counted on', {
  skip,
}, async () => {
  const stream = await declare()
  await add(stream, 30)
  await relayAll()
  await add(stream, 30)
  await db.query('delete from ingest.deltas where stream_id = $1', [stream.id])
  await relayAll()
  await assertEqual(stream)
  await add(stream, 30)
  await db.query('delete from ingest.deltas where stream_id = $1', [stream.id])
  await add(stream, 30)
  await relayAll()
  await assertEqual(stream)
  await add(stream, 30)
  await relayAll()
  await assertEqual(stream)
})

test('counts of a stream that was deleted are not those of its namesake', { skip }, async () => {
  const stream = await declare({ name: 'namesake' })
  await add(stream, 30)
  await relayAll()
  await streams.remove(stream.name)
  const fresh = await declare({ name: 'namesake', dimensions: ['region'] })
  await add(fresh, 10)
  await relayAll()
  await assertEqual(fresh)
})

test('a deleted stream’s counts are removed, unless its namesake’s have replaced them', { skip }, async () => {
  const [gone, renewed] = [await declare({ name: 'gone' }), await declare({ name: 'renewed' })]
  for (const stream of [gone, renewed]) await add(stream, 30)
  await relayAll()
  for (const stream of [gone, renewed]) await streams.remove(stream.name)
  const fresh = await declare({ name: renewed.name })
  await add(fresh, 10)
  await relayAll()
  assert.notDeepEqual(await redis.keys('capstan:streams:gone*'), [])
  for (const stream of [gone, renewed]) await removeCounters(redis, stream)
  assert.deepEqual(await redis.keys('capstan:streams:gone*'), [])
  await assertEqual(fresh)
})

test('what is counted as others in the rollups is counted so in Redis', { skip }, async () => {
  const stream = await declare({ dimensions: ['id'], schema: { type: 'object' } })
  const put = async (from: number, count: number) => {
    const ids = Array.from({ length: count }, (_, n) => String(from + n))
    const texts = ids.map(id => `{"id":"${id}"}`)
    await store.append(stream, { route: 'b', bunch: { texts, keys: ids.map(id => JSON.stringify([id])) } })
    await mergeAll(db, stream)
  }
  await put(0, 10)
  await relayAll()
  await put(5, keysMax + 100)
  await put(0, 20)
  await relayAll()
  await assertEqual(stream)
  assert.equal(await redis.hget(`capstan:streams:${stream.name}:id`, '(other)'), '105')
})

test('counts of as many values as are counted by themselves are made anew in one piece', { skip }, async () => {
  const stream = await declare()
  const sets = ['region', 'facultad', 'carrera', 'curso'].flatMap((name, place, all) => [
    name,
    ...all.slice(place + 1).map(other => `${name},${other}`),
  ])
  await db.query(
    `with head as (update ingest.heads set last_delta = 1 where stream_id = $1),
       merged as (insert into ingest.cursors (stream_id, name, position) values ($1, 'merge', 1))
     insert into ingest.rollups (stream_id, grain, dimensions, bucket, key, count)
     select $1, 86400, d, '2026-01-01T00:00:00Z',
       case when d like '%,%' then json_build_array(n::text, '') else json_build_array(n::text) end, 1
     from unnest($2::text[]) d, generate_series(1, $3::integer) n`,
    [stream.id, sets, keysMax],
  )
  await relayAll()
  for (const set of sets) assert.equal(await redis.hlen(`capstan:streams:${stream.name}:${set}`), keysMax)
})
