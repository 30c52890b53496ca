import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeRandom } from '#platform/random.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { addUser, eventually, makeDeafBus, makeInstance, makeTestSource, seqs, TestClient, upTo } from './test-kit.ts'

const { db } = await makeTestDatabase({ poolMax: 30 })
const source = await makeTestSource(db)
const token = addUser('ann')

/** The sequence that a reader sees who drops at random and comes back with its last number. */
async function readWithDrops(hosts: string[], topic: string, total: number, random: () => number): Promise<number[]> {
  const seen: number[] = []
  while (seen.length < total) {
    const client = await TestClient.connect(hosts[Math.floor(random() * hosts.length)]!, { token })
    client.send({ type: 'subscribe', topic, after: seen.at(-1) ?? 0 })
    const patience = 1 + Math.floor(random() * (total / 4))
    await client.until(() => client.events.length >= Math.min(patience, total - seen.length), 'events')
    seen.push(...seqs(client.events))
    await client.drop()
  }
  return seen
}

test('a reader who comes back at any position gets exactly the rest', async () => {
  const { host, live } = await makeInstance({ db, sources: [source] })
  const total = 20
  await source.append('resume', total - 1)
  await source.append('resume', 1, { final: true })
  for (let after = 0; after <= total; after++) {
    const client = await TestClient.connect(host, { token })
    client.send({ type: 'subscribe', topic: 'runs/resume', after, id: 'x' })
    await client.frame('complete')
    const subscribed = client.frames.find(frame => frame.type === 'subscribed')
    assert.deepEqual(subscribed, { type: 'subscribed', topic: 'runs/resume', seq: total, id: 'x' })
    assert.deepEqual(seqs(client.events), upTo(total).slice(after))
    await client.drop()
  }
  await eventually(() => live.connections === 0, 'all are gone')
})

test('fifty readers who drop and return, on two instances, each see every number once', async () => {
  const first = await makeInstance({ db, sources: [source] })
  const second = await makeInstance({ db, sources: [source] })
  const total = 600
  const readers = Array.from({ length: 50 }, (_, index) =>
    readWithDrops([first.host, second.host], 'runs/many', total, makeRandom(index + 1)),
  )
  const random = makeRandom(99)
  for (let head = 0, turn = 0; head < total; turn++) {
    const size = Math.min(total - head, 1 + Math.floor(random() * 5))
    head = await source.append('many', size)
    ;(turn % 2 ? first : second).live.wake(['runs/many'])
  }
  for (const seen of await Promise.all(readers)) assert.deepEqual(seen, upTo(total))
})

test('one read a wake serves all followers, and wakes during a read make one more', async () => {
  const { host, live } = await makeInstance({ db, sources: [source], options: { pollMs: 60_000 } })
  const clients = await Promise.all(Array.from({ length: 30 }, () => TestClient.connect(host, { token })))
  for (const client of clients) client.send({ type: 'subscribe', topic: 'runs/one-read' })
  await Promise.all(clients.map(client => client.frame('subscribed')))
  const before = source.reads
  await source.append('one-read', 10)
  for (let i = 0; i < 100; i++) live.wake(['runs/one-read'])
  await Promise.all(clients.map(client => client.until(() => client.events.length === 10, 'ten events')))
  assert.ok(source.reads - before <= 2, `${source.reads - before} reads`)
  // More than a page at once, with no poll to help.
  await source.append('one-read', 500)
  live.wake(['runs/one-read'])
  await Promise.all(clients.map(client => client.until(() => client.events.length === 510, 'all events')))
  await Promise.all(clients.map(client => client.drop()))
})

test('a reader far behind is read through in pages while others write', async () => {
  const { host, live } = await makeInstance({ db, sources: [source] })
  await source.append('pages', 1000)
  const client = await TestClient.connect(host, { token })
  client.send({ type: 'subscribe', topic: 'runs/pages' })
  for (let i = 0; i < 50; i++) {
    await source.append('pages', 10)
    live.wake(['runs/pages'])
  }
  await client.until(() => client.events.length >= 1500, 'all events')
  assert.deepEqual(seqs(client.events), upTo(1500))
  await client.drop()
})

test('followers inside the process get events in order, after follow has returned', async () => {
  const { live } = await makeInstance({ db, sources: [source] })
  await source.append('inside', 3)
  const seen: number[] = []
  await new Promise<void>(resolve => {
    let returned = false
    const stop = live.follow('runs/inside', 1, events => {
      assert.ok(returned)
      seen.push(...seqs(events))
      if (seen.length < 4) return
      stop()
      resolve()
    })
    returned = true
    void source.append('inside', 2).then(() => live.wake(['runs/inside']))
  })
  assert.deepEqual(seen, [2, 3, 4, 5])
  assert.throws(() => live.follow('nothing/x', 0, () => {}), { code: 'unknown_topic' })
})

test('a follower who throws is removed and hurts no other', async () => {
  const { live } = await makeInstance({ db, sources: [source] })
  await source.append('throws', 1)
  live.follow('runs/throws', 0, () => {
    throw new Error('mine')
  })
  await new Promise<void>(resolve => {
    live.follow('runs/throws', 0, events => events.at(-1)!.seq === 3 && resolve())
    void source.append('throws', 2).then(() => live.wake(['runs/throws']))
  })
})

test('the poll makes up for wake-ups that never come', async () => {
  const { host } = await makeInstance({ db, sources: [source], bus: makeDeafBus(), options: { pollMs: 50 } })
  const client = await TestClient.connect(host, { token })
  client.send({ type: 'subscribe', topic: 'runs/deaf' })
  await client.frame('subscribed')
  for (let round = 1; round <= 3; round++) {
    await source.append('deaf', 5)
    await client.until(() => client.events.length === 5 * round, 'what the poll finds')
  }
  assert.deepEqual(seqs(client.events), upTo(15))
  await client.drop()
})

test('the poll asks for all topics together', async () => {
  const { live } = await makeInstance({ db, sources: [source], bus: makeDeafBus(), options: { pollMs: 30 } })
  const follow = (id: string) => new Promise<void>(resolve => void live.follow(`runs/${id}`, 0, () => resolve()))
  const ids = Array.from({ length: 40 }, (_, index) => `together-${index}`)
  const done = ids.map(follow)
  const before = source.headCalls
  for (const id of ids) await source.append(id, 1)
  await Promise.all(done)
  // One for the openings, then one a poll.
  assert.ok(source.headCalls - before < 40, `${source.headCalls - before} questions`)
})

test('nothing is lost when the listening connection is killed', async () => {
  const writer = await makeInstance({ db, sources: [source] })
  // No poll: only the bus and its report of a gap can help.
  const reader = await makeInstance({ db, sources: [source], options: { pollMs: 3_600_000 } })
  const client = await TestClient.connect(reader.host, { token })
  client.send({ type: 'subscribe', topic: 'runs/killed' })
  await client.frame('subscribed')
  for (let round = 1; round <= 3; round++) {
    await db.query(`select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and query like 'listen%' and pid <> pg_backend_pid()`)
    await source.append('killed', 7)
    writer.live.wake(['runs/killed'])
    await client.until(() => client.events.length >= 7 * round, 'the events of the gap')
  }
  assert.deepEqual(seqs(client.events), upTo(21))
  await client.drop()
})

test('a source that fails for a while delays events and loses none', async () => {
  let failing = false
  const shaky = {
    ...source,
    read: (id: string, after: number, limit: number) =>
      failing ? Promise.reject(new Error('the database is away')) : source.read(id, after, limit),
  }
  const { host, live } = await makeInstance({ db, sources: [shaky], options: { pollMs: 50 } })
  const client = await TestClient.connect(host, { token })
  await source.append('shaky', 300)
  client.send({ type: 'subscribe', topic: 'runs/shaky', after: 299 })
  await client.until(() => client.events.length === 1, 'the first event')
  failing = true
  const late = await TestClient.connect(host, { token })
  late.send({ type: 'subscribe', topic: 'runs/shaky', after: 0 })
  await late.frame('subscribed')
  await source.append('shaky', 5)
  live.wake(['runs/shaky'])
  failing = false
  await client.until(() => client.events.length === 6, 'the events of the outage')
  await late.until(() => late.events.length === 305, 'everything')
  assert.deepEqual(seqs(late.events), upTo(305))
  assert.deepEqual(seqs(client.events), upTo(305).slice(299))
  await Promise.all([client.drop(), late.drop()])
})

test('stop tells every client that it closes and leaves nobody', async () => {
  const { host, live } = await makeInstance({ db, sources: [source], options: { leaveMs: 300 } })
  const clients = await Promise.all(Array.from({ length: 10 }, () => TestClient.connect(host, { token })))
  // One of them does not listen and must not hold up the others.
  clients[9]!.socket.pause()
  await live.stop()
  assert.equal(live.connections, 0)
  for (const client of clients.slice(0, 9)) {
    assert.equal((await client.toClose()).code, 1001)
    assert.equal(client.frames.at(-1).type, 'closing')
  }
  clients[9]!.socket.terminate()
  const refused = await fetch(`http://${host}/v1/live/events?topic=runs/x`, {
    headers: { authorization: 'Bearer ann' },
  })
  assert.equal(refused.status, 503)
})
