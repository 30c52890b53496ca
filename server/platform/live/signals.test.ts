import assert from 'node:assert/strict'
import type { Socket } from 'node:net'
import { test } from 'node:test'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { makeTestRedis, redisIsMissing } from '../../../test/support/redis.ts'
import { makeBus } from '../bus.ts'
import { silentLog } from '../log.ts'
import {
  addUser,
  eventually,
  type Instance,
  makeInstance,
  makeTestSource,
  openStream,
  seqs,
  TestClient,
  upTo,
} from './test-kit.ts'

const { db } = await makeTestDatabase({ poolMax: 20 })
const source = {
  ...(await makeTestSource(db)),
  presence: true,
  presenceOf: async (caller: { name: string }) => `@${caller.name}`,
}
for (const name of ['ann', 'bob', 'cleo']) addUser(name)

const presence = { graceMs: 200, windowMs: 20 }

async function openPair(redisUrl?: string): Promise<[Instance, Instance]> {
  const open = () =>
    makeInstance({
      db,
      sources: [source],
      bus: makeBus({ db, redisUrl, log: silentLog }),
      options: { presence, pollMs: 100 },
    })
  const pair: [Instance, Instance] = [await open(), await open()]
  await heard(pair)
  return pair
}

/** Resolves when each hears the other. */
async function heard([one, two]: [Instance, Instance]) {
  for (const [from, to] of [
    [one, two],
    [two, one],
  ] as const) {
    let isHeard = false
    const stop = to.bus.subscribe('test', () => {
      isHeard = true
    })
    let turn = 0
    await eventually(() => {
      if (turn++ % 100 === 0) from.bus.publish('test', [String(turn)])
      return isHeard
    }, 'one hears the other')
    stop()
  }
}

async function follow(host: string, token: string, topic: string) {
  const client = await TestClient.connect(host, { token })
  client.send({ type: 'subscribe', topic })
  await client.frame('subscribed')
  return client
}

/** Signals of one type that a client was sent. */
function signalsOf(client: TestClient, type = 'typing') {
  return client.frames.filter(frame => frame.type === 'signal' && frame.signal.type === type)
}

test('a signal reaches the followers of its topic in all processes but its sender, and nobody else', async () => {
  const [one, two] = await openPair()
  const ann = await follow(one.host, 'ann', 'runs/typing')
  const bob = await follow(one.host, 'bob', 'runs/typing')
  const cleo = await follow(two.host, 'cleo', 'runs/typing')
  const annAlso = await follow(two.host, 'ann', 'runs/typing')
  const other = await follow(two.host, 'bob', 'runs/other')
  one.live.signal('runs/typing', { type: 'typing', data: { by: 'ann' } }, { except: 'ann' })
  one.live.signal('runs/typing', { type: 'typing', data: 'to all' })
  for (const [client, expected] of [
    [ann, ['to all']],
    [bob, [{ by: 'ann' }, 'to all']],
    [cleo, [{ by: 'ann' }, 'to all']],
    [annAlso, ['to all']],
  ] as const) {
    await client.until(() => signalsOf(client).length >= expected.length, 'the signals')
    assert.deepEqual(
      signalsOf(client),
      expected.map(data => ({ type: 'signal', topic: 'runs/typing', signal: { type: 'typing', data } })),
    )
  }
  assert.equal(signalsOf(other).length, 0)
  await Promise.all([ann, bob, cleo, annAlso, other].map(client => client.drop()))
})

test('on an event stream a signal is an event without an id', async () => {
  const [one, two] = await openPair()
  const path = '/v1/live/events?topic=runs/stream&topic=runs/second'
  const stream = await openStream(one.host, path, { authorization: 'Bearer ann' })
  await stream.until(() => stream.text.includes('retry'))
  two.live.signal('runs/stream', { type: 'typing', data: { by: 'ann' } }, { except: 'ann' })
  two.live.signal('runs/stream', { type: 'typing', data: { by: 'bob\n' } })
  await stream.until(() => stream.text.includes('typing'))
  const text = 'event: signal\ndata: {"topic":"runs/stream","signal":{"type":"typing","data":{"by":"bob\\n"}}}\n\n'
  assert.ok(stream.text.includes(text), stream.text)
  assert.ok(!stream.text.includes('"ann"'))
  assert.ok(!stream.text.includes('id:'))
  stream.drop()
})

test('a signal that is too long, or no JSON, is not sent; a flood is cut', async () => {
  const { live, host } = await makeInstance({ db, sources: [source] })
  const ann = await follow(host, 'ann', 'runs/long')
  const loop: { self?: unknown } = {}
  loop.self = loop
  live.signal('runs/long', { type: 'typing', data: 'x'.repeat(990) })
  live.signal('runs/long', { type: 'typing', data: 'ä'.repeat(510) })
  live.signal('runs/long', { type: 'typing', data: loop })
  live.signal('runs/nobody', { type: 'typing', data: 1 })
  live.signal('no topic', { type: 'typing', data: 1 })
  for (const n of upTo(1000)) live.signal('runs/long', { type: 'typing', data: n })
  assert.equal((await ann.ask({ type: 'ping' })).type, 'signal')
  await ann.frame('pong')
  const seen = signalsOf(ann).map(frame => frame.signal.data)
  assert.equal(seen[0], 'x'.repeat(990))
  assert.deepEqual(seen.slice(1, 100), upTo(99))
  assert.ok(seen.length < 150, `${seen.length} of a thousand`)
  // Presence is not held back by it.
  const bob = await follow(host, 'bob', 'runs/long')
  await ann.until(() => JSON.stringify(signalsOf(ann, 'presence')).includes('@bob'), 'bob is there')
  await Promise.all([ann.drop(), bob.drop()])
})

test('a client that does not read gets no signals, and is not cut off for them', async () => {
  const { live, host, app } = await makeInstance({ db, sources: [source], settings: { LIVE_BUFFER_BYTES: 65_536 } })
  const lines: Socket[] = []
  app.server.on('connection', line => lines.push(line))
  for (let i = 0; i < 10; i++) await source.append('deaf', Array(40).fill({ data: 'y'.repeat(40_000) }))
  const [ann, bob] = [
    await TestClient.connect(host, { token: 'ann' }),
    await TestClient.connect(host, { token: 'bob' }),
  ]
  ann.socket.pause()
  for (const client of [ann, bob]) client.send({ type: 'subscribe', topic: 'runs/deaf' })
  await bob.until(() => bob.events.length === 400, 'the other has everything')
  await eventually(() => lines.some(line => line.writableNeedDrain), 'what nobody reads has filled the line')
  for (const n of upTo(100)) live.signal('runs/deaf', { type: 'typing', data: 'x'.repeat(900) + n })
  await bob.until(() => signalsOf(bob).length === 100, 'the other has them')
  ann.socket.resume()
  await ann.until(() => ann.events.length === 400, 'everything')
  assert.deepEqual(seqs(ann.events), upTo(400))
  assert.equal(signalsOf(ann).length, 0)
  await Promise.all([ann.drop(), bob.drop()])
})

test('who follows is present, in all processes, under the name its source gives', async () => {
  const [one, two] = await openPair()
  const ann = await follow(one.host, 'ann', 'runs/room')
  const bob = await follow(two.host, 'bob', 'runs/room')
  const stream = await openStream(two.host, '/v1/live/events?topic=runs/room', { authorization: 'Bearer cleo' })
  const all = ['@ann', '@bob', '@cleo']
  for (const { live } of [one, two]) {
    await eventually(() => live.present('runs/room').length === 3, 'all are there')
    assert.deepEqual(live.present('runs/room'), all)
  }
  const joined = () => signalsOf(ann, 'presence').flatMap(frame => frame.signal.data.joined)
  await ann.until(() => joined().length === 3, 'told of all')
  assert.deepEqual(joined().sort(), all)
  await stream.until(() => stream.text.includes('"presence"'))
  // A connection that is lost and comes back within the grace is no news.
  await bob.drop()
  const back = await follow(one.host, 'bob', 'runs/room')
  stream.drop()
  await eventually(() => one.live.present('runs/room').length === 2, 'one has left')
  await ann.until(() => signalsOf(ann, 'presence').at(-1).signal.data.left.length > 0, 'told of it')
  assert.deepEqual(
    signalsOf(ann, 'presence').flatMap(frame => frame.signal.data.left),
    ['@cleo'],
  )
  // Whose right has ended leaves, too, as does who unsubscribes.
  back.send({ type: 'unsubscribe', topic: 'runs/room' })
  await eventually(() => two.live.present('runs/room').join() === '@ann', 'only one is left')
  await Promise.all([ann.drop(), back.drop()])
  await eventually(() => two.live.present('runs/room').length === 0, 'nobody is left')
})

test('a source without presence tells nobody, and a name that cannot be had refuses the topic', async () => {
  const silent = { ...(await makeTestSource(db, 'silent')) }
  const broken = {
    ...(await makeTestSource(db, 'broken')),
    presence: true,
    presenceOf: () => Promise.reject(new Error('away')),
  }
  const { live, host } = await makeInstance({ db, sources: [silent, broken], options: { presence } })
  const ann = await follow(host, 'ann', 'silent/a')
  assert.deepEqual(live.present('silent/a'), [])
  assert.equal((await ann.ask({ type: 'subscribe', topic: 'broken/a' })).code, 'internal')
  await ann.drop()
})

test('a Redis that dies takes signals between processes with it, and no event', { skip: redisIsMissing }, async () => {
  const redis = await makeTestRedis()
  const pair = await openPair(redis.url)
  const [one, two] = pair
  const ann = await follow(one.host, 'ann', 'runs/redis')
  const bob = await follow(two.host, 'bob', 'runs/redis')
  await eventually(() => one.live.present('runs/redis').length === 2, 'both are seen')
  await redis.kill()
  for (const n of upTo(5)) {
    await source.append('redis', 2)
    one.live.wake(['runs/redis'])
    one.live.signal('runs/redis', { type: 'typing', data: n })
    await ann.until(() => ann.events.length === 2 * n && signalsOf(ann).length === n, 'here at once')
    await bob.until(() => bob.events.length === 2 * n, 'there by the poll')
  }
  assert.deepEqual([seqs(ann.events), seqs(bob.events)], [upTo(10), upTo(10)])
  assert.equal(signalsOf(bob).length, 0)
  const cleo = await follow(two.host, 'cleo', 'runs/redis')
  await redis.start()
  await heard(pair)
  one.live.signal('runs/redis', { type: 'typing', data: 'again' })
  await bob.until(() => signalsOf(bob).length === 1, 'signals travel again')
  await eventually(() => one.live.present('runs/redis').includes('@cleo'), 'presence is made up for')
  await Promise.all([ann.drop(), bob.drop(), cleo.drop()])
})
