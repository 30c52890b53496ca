import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { makeTestDatabase } from '../../test/support/database.ts'
import { makeTestRedis, redisIsMissing } from '../../test/support/redis.ts'
import { until } from '../../test/support/until.ts'
import { type Bus, makeBus } from './bus.ts'
import { type Database, makeDatabase } from './database/pool.ts'
import { silentLog } from './log.ts'

const { db, url } = await makeTestDatabase({ poolMax: 20 })

/** A bus that hears others already when this resolves; stopped at the end of the test. */
async function startBus(redisUrl?: string): Promise<Bus> {
  const bus = makeBus({ db, redisUrl, log: silentLog })
  const listening = nextGap(bus)
  await bus.start()
  after(() => bus.stop())
  await listening
  return bus
}

function nextGap(bus: Bus): Promise<void> {
  return new Promise(resolve => {
    const stop = bus.onGap(() => {
      stop()
      resolve()
    })
  })
}

/** Resolves with everything heard on a channel once it is as much as wanted. */
function hear(bus: Bus, channel: string, wanted: number): Promise<string[]> {
  const heard: string[] = []
  return new Promise(resolve => {
    const stop = bus.subscribe(channel, items => {
      heard.push(...items)
      if (heard.length < wanted) return
      stop()
      resolve(heard)
    })
  })
}

async function killListeners() {
  const { rows } = await db.query(`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and query ~ '^(listen|select 1$)'`)
  assert.ok(rows.length > 0)
}

test('what one bus publishes the other hears, and the publisher itself once', async () => {
  const [here, there] = [await startBus(), await startBus()]
  const own: string[] = []
  here.subscribe('a', items => own.push(...items))
  const other: string[] = []
  there.subscribe('b', items => other.push(...items))
  const heard = hear(there, 'a', 2)
  const last = hear(there, 'last', 1)
  here.publish('a', ['x', 'y'])
  assert.deepEqual(own, ['x', 'y'], 'at once inside the process')
  here.publish('last', ['z'])
  assert.deepEqual(await heard, ['x', 'y'])
  await last
  assert.deepEqual([own, other], [['x', 'y'], []])
})

test('a message longer than NOTIFY takes arrives in parts, whatever it is made of', async () => {
  const [here, there] = [await startBus(), await startBus()]
  const items = Array.from({ length: 2000 }, (_, index) => `runs/${index}-${['"\\', 'ä€😀', '\u0001\n'][index % 3]}`)
  const heard = hear(there, 'long', items.length + 2)
  here.publish('long', ['x'.repeat(20_000), 'before', ...items, 'y'.repeat(7700)])
  // What fits in no message is left to the poll and takes nothing else with it.
  assert.deepEqual(await heard, ['before', ...items, 'y'.repeat(7700)])
})

test('a listener whose connection is lost reports a gap and hears again', async () => {
  const [here, there] = [await startBus(), await startBus()]
  for (let round = 0; round < 2; round++) {
    const gaps = Promise.all([nextGap(here), nextGap(there)])
    await killListeners()
    await gaps
    const heard = hear(there, 'back', 1)
    here.publish('back', [`round ${round}`])
    assert.deepEqual(await heard, [`round ${round}`])
  }
})

test('a listener that throws hurts neither the others nor the publisher', async () => {
  const [here, there] = [await startBus(), await startBus()]
  for (const bus of [here, there]) {
    bus.subscribe('throws', () => {
      throw new Error('mine')
    })
  }
  const heard = [hear(here, 'throws', 1), hear(there, 'throws', 1)]
  here.publish('throws', ['x'])
  assert.deepEqual(await Promise.all(heard), [['x'], ['x']])
})

test('what others send on the same channel is ignored', async () => {
  const bus = await startBus()
  const heard = hear(bus, 'mixed', 1)
  for (const payload of ['', 'no json', 'null', '[]', '{}', '{"channel":"mixed"}', '{"channel":"mixed","items":"x"}']) {
    await db.query(`select pg_notify('capstan', $1)`, [payload])
  }
  await db.query(`select pg_notify('capstan', '{"from":"me","channel":"mixed","items":[7,"good"]}')`)
  assert.deepEqual(await heard, ['good'])
})

test('publish never throws while the database is down, and the bus stops in peace', async () => {
  const away = makeDatabase({
    url: 'postgres://nobody@127.0.0.1:1/x',
    poolMax: 2,
    log: silentLog,
    applicationName: 'x',
  })
  const bus = makeBus({ db: away, redisUrl: undefined, log: silentLog })
  const own: string[] = []
  bus.subscribe('a', items => own.push(...items))
  bus.publish('a', ['before'])
  await bus.start()
  for (let i = 0; i < 100; i++) {
    bus.publish('a', [String(i)])
    await new Promise(resolve => setImmediate(resolve))
  }
  await bus.stop()
  bus.publish('a', ['after'])
  assert.equal(own.length, 102)
  await away.close()
})

test('stopping while it connects leaves no connection behind', async () => {
  const own = makeDatabase({ url, poolMax: 2, log: silentLog, applicationName: `capstan:${process.pid}` })
  const bus = makeBus({ db: own, redisUrl: undefined, log: silentLog })
  await bus.start()
  await bus.stop()
  // Waits for every connection that was taken.
  await own.close()
})

test('a burst of publishes travels in few statements', async () => {
  const [here, there] = [await startBus(), await startBus()]
  const heard = hear(there, 'burst', 5000)
  const commits = async () => {
    await db.query('select pg_stat_force_next_flush()')
    const { rows } = await db.query<{ n: number }>(
      'select xact_commit as n from pg_stat_database where datname = current_database()',
    )
    return rows[0]!.n
  }
  const before = await commits()
  for (let i = 0; i < 5000; i++) here.publish('burst', [`runs/${i}`])
  assert.equal(new Set(await heard).size, 5000)
  assert.ok((await commits()) - before < 50)
})

test('Redis carries messages, and its loss is a gap and no error', { skip: redisIsMissing }, async () => {
  const redis = await makeTestRedis()
  const [here, there] = [await startBus(redis.url), await startBus(redis.url)]
  const items = Array.from({ length: 3000 }, (_, index) => `chats/${index}`)
  const heard = hear(there, 'redis', items.length)
  here.publish('redis', items)
  assert.deepEqual(await heard, items)

  await redis.kill()
  const gaps = Promise.all([nextGap(here), nextGap(there)])
  const own = hear(here, 'redis', 1)
  here.publish('redis', ['lost'])
  assert.deepEqual(await own, ['lost'])
  await redis.start()
  await gaps
  const again = hear(there, 'redis', 1)
  // The publisher's connection comes back on its own time: publish until it is heard.
  const insist = setInterval(() => here.publish('redis', ['again']), 20)
  assert.deepEqual(await again, ['again'])
  clearInterval(insist)
})

test('what cannot be sent just now is kept up to a bound', async () => {
  const sent: number[] = []
  let release = Promise.withResolvers<void>()
  const stuck = {
    connect: () => new Promise(() => {}),
    async query(_text: string, [, payloads]: [string, string[]]) {
      sent.push(payloads.flatMap(payload => JSON.parse(payload).items).length)
      await release.promise
    },
  } as unknown as Database
  const bus = makeBus({ db: stuck, redisUrl: undefined, log: silentLog })
  await bus.start()
  bus.publish('a', ['first'])
  await until(() => sent.length === 1)
  for (let i = 0; i < 30_000; i++) bus.publish('a', [String(i)])
  const before = release
  release = Promise.withResolvers()
  before.resolve()
  await until(() => sent.length === 2)
  release.resolve()
  assert.deepEqual(sent, [1, 10_000])
  await bus.stop()
})
