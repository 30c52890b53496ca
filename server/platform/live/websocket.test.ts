import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { makeTestDatabase } from '../../../test/support/database.ts'
import {
  addUser,
  eventually,
  type Instance,
  makeInstance,
  makeTestSource,
  seqs,
  TestClient,
  tokens,
  upTo,
} from './test-kit.ts'

const { db } = await makeTestDatabase({ poolMax: 20 })
const source = await makeTestSource(db)
const token = addUser('ann')

/** Closed at the end of the test that opens it. */
function openInstance() {
  const settings = { LIVE_TOPICS_MAX: 3, PUBLIC_URL: 'https://capstan.example' }
  return makeInstance({ db, sources: [source], settings, options: { authMs: 300 } })
}

async function metric(instance: Instance, name: string): Promise<number> {
  const found = await instance.metrics.registry.getSingleMetric(`capstan_${name}`)!.get()
  return found.values.reduce((sum, each) => sum + each.value, 0)
}

/** The status that a handshake is answered with. */
async function handshake(host: string, headers: Record<string, string>): Promise<number> {
  const client = new TestClient(host, { headers })
  const status = await Promise.race([
    once(client.socket, 'unexpected-response').then(([request, response]) => {
      request.destroy()
      return response.statusCode as number
    }),
    once(client.socket, 'open').then(() => 101),
  ])
  client.socket.terminate()
  return status
}

test('a bad frame is answered with an error and the connection is kept', async () => {
  const shared = await openInstance()
  const client = await TestClient.connect(shared.host, { token })
  const cases: [frame: unknown, code: string][] = [
    ['', 'bad_frame'],
    ['no json', 'bad_frame'],
    ['{"type":"ping"', 'bad_frame'],
    ['[]', 'bad_frame'],
    ['null', 'bad_frame'],
    ['7', 'bad_frame'],
    ['"ping"', 'bad_frame'],
    ['{}', 'bad_frame'],
    ['{"type":"__proto__"}', 'bad_frame'],
    [Buffer.from([0, 1, 2, 255]), 'bad_frame'],
    [Buffer.from('{"type":"ping"}'), 'bad_frame'],
    [{ type: 7 }, 'bad_frame'],
    [{ type: 'dance' }, 'bad_frame'],
    [{ type: 'PING' }, 'bad_frame'],
    [{ type: 'auth' }, 'bad_frame'],
    [{ type: 'auth', token: '' }, 'bad_frame'],
    [{ type: 'auth', token: 7 }, 'bad_frame'],
    [{ type: 'auth', token: 'x'.repeat(9000) }, 'bad_frame'],
    [{ type: 'subscribe' }, 'bad_frame'],
    [{ type: 'subscribe', topic: ['runs/a'] }, 'bad_frame'],
    [{ type: 'subscribe', topic: 'runs' }, 'bad_topic'],
    [{ type: 'subscribe', topic: 'runs/' }, 'bad_topic'],
    [{ type: 'subscribe', topic: '/a' }, 'bad_topic'],
    [{ type: 'subscribe', topic: 'runs/a/b' }, 'bad_topic'],
    [{ type: 'subscribe', topic: 'runs/a b' }, 'bad_topic'],
    [{ type: 'subscribe', topic: 'runs/a\n' }, 'bad_topic'],
    [{ type: 'subscribe', topic: 'runs/\u0000' }, 'bad_topic'],
    [{ type: 'subscribe', topic: `runs/${'x'.repeat(129)}` }, 'bad_topic'],
    [{ type: 'subscribe', topic: '__proto__/a' }, 'bad_topic'],
    [{ type: 'subscribe', topic: 'constructor/a' }, 'unknown_topic'],
    [{ type: 'subscribe', topic: 'chats/a' }, 'unknown_topic'],
    [{ type: 'subscribe', topic: 'runs/missing' }, 'not_found'],
    [{ type: 'subscribe', topic: 'runs/a', after: -1 }, 'bad_position'],
    [{ type: 'subscribe', topic: 'runs/a', after: 1.5 }, 'bad_position'],
    [{ type: 'subscribe', topic: 'runs/a', after: '1' }, 'bad_position'],
    [{ type: 'subscribe', topic: 'runs/a', after: null }, 'bad_position'],
    ['{"type":"subscribe","topic":"runs/a","after":1e999}', 'bad_position'],
    [{ type: 'subscribe', topic: 'runs/a', after: 2 ** 53 }, 'bad_position'],
    [{ type: 'subscribe', topic: 'runs/a', id: 7 }, 'bad_frame'],
    [{ type: 'subscribe', topic: 'runs/a', id: 'x'.repeat(129) }, 'bad_frame'],
    [{ type: 'unsubscribe', topic: 7 }, 'bad_frame'],
    [{ type: 'unsubscribe', topic: 'x' }, 'bad_topic'],
  ]
  for (const [frame, code] of cases) {
    const answer = await client.ask(frame)
    assert.equal(answer.type, 'error', JSON.stringify(frame))
    assert.equal(answer.code, code, JSON.stringify(frame))
    assert.ok(answer.message.length > 10)
  }
  assert.deepEqual(await client.ask({ type: 'ping' }), { type: 'pong' })
  // Unsubscribing from what is not followed is no error and has no answer.
  client.send({ type: 'unsubscribe', topic: 'runs/never' })
  assert.deepEqual(await client.ask({ type: 'ping' }), { type: 'pong' })
  await client.drop()
})

test('an error says which subscription it is about', async () => {
  const shared = await openInstance()
  const client = await TestClient.connect(shared.host, { token })
  source.denied.add('ann secret')
  const answer = await client.ask({ type: 'subscribe', topic: 'runs/secret', id: 'mine' })
  assert.deepEqual(answer, {
    type: 'error',
    code: 'forbidden',
    message: 'This run is not yours.',
    topic: 'runs/secret',
    id: 'mine',
  })
  assert.equal((await client.ask({ type: 'ping' })).type, 'pong')
  // What was refused takes no place.
  for (const id of ['a', 'b', 'c']) client.send({ type: 'subscribe', topic: `runs/${id}` })
  await client.until(() => client.frames.filter(frame => frame.type === 'subscribed').length === 3, 'three topics')
  assert.equal((await client.ask({ type: 'subscribe', topic: 'runs/a' })).code, 'already_subscribed')
  const fourth = await client.ask({ type: 'subscribe', topic: 'runs/d' })
  assert.deepEqual([fourth.code, fourth.details], ['too_many_topics', { limit: 3 }])
  client.send({ type: 'unsubscribe', topic: 'runs/a' })
  assert.equal((await client.ask({ type: 'subscribe', topic: 'runs/d' })).type, 'subscribed')
  await client.drop()
})

test('a frame that is too large closes the connection with 1009', async () => {
  const shared = await openInstance()
  const client = await TestClient.connect(shared.host, { token })
  client.send({ type: 'auth', token: 'x'.repeat(70_000) })
  assert.equal((await client.toClose()).code, 1009)
})

test('a client that sends too many frames is told and closed', async () => {
  const shared = await openInstance()
  const client = await TestClient.connect(shared.host, { token })
  for (let i = 0; i < 400; i++) client.send({ type: 'ping' })
  assert.equal((await client.toClose()).code, 4029)
  assert.equal(client.frames.at(-1).code, 'too_many_frames')
  const pinger = await TestClient.connect(shared.host, { token })
  // More than 60 unanswered pings at once ws itself cuts off.
  while (!pinger.closed) {
    for (let i = 0; i < 20 && pinger.socket.readyState === pinger.socket.OPEN; i++) pinger.socket.ping()
    await Promise.race([once(pinger.socket, 'pong'), pinger.toClose()])
  }
  assert.equal(pinger.closed.code, 4029)
})

test('without a credential in the handshake an auth frame makes a caller', async () => {
  const shared = await openInstance()
  const client = new TestClient(shared.host)
  await once(client.socket, 'open')
  assert.equal((await client.ask({ type: 'subscribe', topic: 'runs/auth' })).code, 'unauthenticated')
  // What follows an auth frame waits for its answer.
  client.send({ type: 'auth', token })
  client.send({ type: 'subscribe', topic: 'runs/auth' })
  await client.frame('subscribed')
  assert.deepEqual(
    client.frames.map(frame => frame.type),
    ['error', 'ready', 'subscribed'],
  )
  // A fresh token of the same user is taken, another user's is not.
  assert.equal((await client.ask({ type: 'auth', token })).type, 'ready')
  assert.equal((await client.ask({ type: 'auth', token: addUser('eve') })).code, 'other_user')
  await client.drop()
})

test('a wrong token and a missing one close with 4001', async () => {
  const shared = await openInstance()
  const wrong = new TestClient(shared.host)
  await once(wrong.socket, 'open')
  wrong.send({ type: 'auth', token: 'nobody' })
  assert.equal((await wrong.toClose()).code, 4001)
  assert.equal(wrong.frames.at(-1).code, 'unauthenticated')
  const silent = new TestClient(shared.host)
  assert.equal((await silent.toClose()).code, 4001)
})

test('a page of another origin cannot connect with a cookie', async () => {
  const { host } = await openInstance()
  const cookie = `Authorization=${token}`
  const cases: [headers: Record<string, string>, status: number][] = [
    [{ cookie, origin: `http://${host}` }, 101],
    [{ cookie, origin: 'https://capstan.example' }, 101],
    [{ cookie }, 403],
    [{ cookie, origin: 'https://evil.example' }, 403],
    [{ cookie, origin: 'null' }, 403],
    [{ cookie, origin: `http://${host}.evil.example` }, 403],
    [{ cookie, origin: `http://evil.example/${host}` }, 403],
    [{ cookie, origin: 'http://capstan.example' }, 403],
    [{ authorization: `Bearer ${token}`, origin: 'https://elsewhere.example' }, 101],
    [{ origin: 'https://elsewhere.example' }, 101],
    [{ authorization: 'Bearer nobody' }, 401],
  ]
  for (const [headers, status] of cases) assert.equal(await handshake(host, headers), status, JSON.stringify(headers))
})

test('plain HTTP is told to upgrade, and a full process says so', async () => {
  const shared = await openInstance()
  const plain = await fetch(`http://${shared.host}/v1/live`)
  assert.equal(plain.status, 426)
  const small = await makeInstance({ db, sources: [source], settings: { LIVE_CONNECTIONS_MAX: 2 } })
  const first = await TestClient.connect(small.host, { token })
  await TestClient.connect(small.host, { token })
  assert.equal(await handshake(small.host, { authorization: `Bearer ${token}` }), 503)
  assert.equal(await metric(small, 'live_connections'), 2)
  await first.drop()
  await eventually(() => small.live.connections === 1, 'one has gone')
  assert.equal(await handshake(small.host, { authorization: `Bearer ${token}` }), 101)
})

test('a slow reader is cut off with 4008 and loses nothing by coming back', async () => {
  const slow = await makeInstance({ db, sources: [source], settings: { LIVE_BUFFER_BYTES: 65_536 } })
  const total = 400
  const client = await TestClient.connect(slow.host, { token })
  client.send({ type: 'subscribe', topic: 'runs/slow' })
  await client.frame('subscribed')
  client.socket.pause()
  const quick = await TestClient.connect(slow.host, { token })
  quick.send({ type: 'subscribe', topic: 'runs/slow' })
  await quick.frame('subscribed')
  const data = 'x'.repeat(50_000)
  for (let head = 0; head < total; ) {
    head = await source.append('slow', [{ data }, { data }, { data }, { data }])
    slow.live.wake(['runs/slow'])
    await quick.until(() => quick.events.length === head, 'a quick reader sees it')
  }
  await eventually(async () => (await metric(slow, 'live_slow_closed')) === 1, 'it is cut off')
  client.socket.resume()
  const { code } = await client.toClose()
  assert.equal(code, 4008)
  const seen = seqs(client.events)
  assert.ok(seen.length < total)
  const again = await TestClient.connect(slow.host, { token })
  again.send({ type: 'subscribe', topic: 'runs/slow', after: seen.at(-1) })
  await again.until(() => seen.length + again.events.length === total, 'the rest')
  assert.deepEqual([...seen, ...seqs(again.events)], upTo(total))
  await Promise.all([again.drop(), quick.drop()])
})

test('a reader who catches up slowly is waited for, not cut off', async () => {
  const slow = await makeInstance({ db, sources: [source], settings: { LIVE_BUFFER_BYTES: 65_536 } })
  const data = 'x'.repeat(40_000)
  for (let i = 0; i < 10; i++) await source.append('patient', Array(40).fill({ data }))
  const [patient, quick] = await Promise.all([1, 2].map(() => TestClient.connect(slow.host, { token })))
  patient!.socket.pause()
  for (const client of [patient!, quick!]) client.send({ type: 'subscribe', topic: 'runs/patient' })
  await quick!.until(() => quick!.events.length === 400, 'the other has everything')
  // The patient one got as far as its socket's buffers, and no further.
  assert.ok((await metric(slow, 'live_events_delivered')) < 800)
  patient!.socket.resume()
  await patient!.until(() => patient!.events.length === 400, 'everything')
  assert.deepEqual(seqs(patient!.events), upTo(400))
  assert.equal(await metric(slow, 'live_slow_closed'), 0)
  await Promise.all([patient!.drop(), quick!.drop()])
})

test('a revoked credential closes the connection, an outage of the check does not', async () => {
  let down = false
  const instance = await makeInstance({
    db,
    sources: [source],
    options: {
      checkMs: 50,
      reauthenticate: async request => {
        if (down) throw new Error('the database is away')
        return tokens.get(request.headers.authorization!.replace('Bearer ', ''))
      },
    },
  })
  const client = await TestClient.connect(instance.host, { token: addUser('gone') })
  const other = await TestClient.connect(instance.host, { token })
  const byFrame = new TestClient(instance.host)
  await once(byFrame.socket, 'open')
  byFrame.send({ type: 'auth', token: addUser('gone-too') })
  await byFrame.frame('ready')
  tokens.delete('gone')
  tokens.delete('gone-too')
  assert.equal((await client.toClose()).code, 4001)
  assert.equal(client.frames.at(-1).code, 'unauthenticated')
  assert.equal((await byFrame.toClose()).code, 4001)
  down = true
  // Pings come with the visits: one ping is five checks.
  await once(other.socket, 'ping')
  await once(other.socket, 'ping')
  assert.equal(other.closed, undefined)
  await other.drop()
})

test('a topic that is no longer allowed is taken away, at once when asked and at last by itself', async () => {
  const quick = await makeInstance({ db, sources: [source], options: { checkMs: 40 } })
  const calm = await makeInstance({ db, sources: [source] })
  for (const [instance, topic] of [
    [quick, 'by-itself'],
    [calm, 'asked'],
  ] as const) {
    const client = await TestClient.connect(instance.host, { token })
    client.send({ type: 'subscribe', topic: `runs/${topic}` })
    await client.frame('subscribed')
    source.denied.add(`ann ${topic}`)
    // Asked of the other process: it travels over the bus.
    if (instance === calm) quick.live.recheck([`runs/${topic}`])
    const { code } = await client.frame('error', `runs/${topic}`)
    assert.equal(code, 'forbidden')
    const answer = await client.ask({ type: 'ping' })
    assert.equal(answer.type, 'pong')
    await source.append(topic, 3)
    instance.live.wake([`runs/${topic}`])
    assert.equal((await client.ask({ type: 'ping' })).type, 'pong')
    assert.equal(client.events.length, 0)
    await client.drop()
  }
})

test('a client that answers no ping is dropped', async () => {
  const instance = await makeInstance({ db, sources: [source], options: { checkMs: 20 } })
  const client = await TestClient.connect(instance.host, { token })
  client.socket.pause()
  await eventually(() => instance.live.connections === 0, 'it is dropped')
  client.socket.terminate()
})

test('nothing of a topic comes after unsubscribe, and it can be followed again', async () => {
  const shared = await openInstance()
  const client = await TestClient.connect(shared.host, { token })
  await source.append('again', 2)
  client.send({ type: 'subscribe', topic: 'runs/again' })
  client.send({ type: 'unsubscribe', topic: 'runs/again' })
  client.send({ type: 'subscribe', topic: 'runs/again', after: 1, id: 'second' })
  await client.until(() => client.events.length > 0, 'an event')
  assert.deepEqual(
    client.frames.map(frame => [frame.type, frame.id]),
    [
      ['ready', undefined],
      ['subscribed', 'second'],
      ['events', undefined],
    ],
  )
  assert.deepEqual(seqs(client.events), [2])
  await client.drop()
})

test('topics are counted while they are followed', async () => {
  const instance = await makeInstance({ db, sources: [source] })
  const client = await TestClient.connect(instance.host, { token })
  await source.append('counted', 3)
  client.send({ type: 'subscribe', topic: 'runs/counted' })
  await client.until(() => client.events.length === 3, 'events')
  assert.equal(await metric(instance, 'live_topics'), 1)
  assert.equal(await metric(instance, 'live_events_delivered'), 3)
  await client.drop()
  await eventually(async () => (await metric(instance, 'live_topics')) === 0, 'the hub is dropped')
})
