import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { errors } from '../errors.ts'
import { silentLog } from '../log.ts'
import type { Batch } from './batch.ts'
import { makeGate } from './gate.ts'
import { makeHub } from './hub.ts'
import type { LiveEvent, TopicSource } from './source.ts'
import {
  addUser,
  makeInstance,
  makeTestSource,
  openStream,
  seqs,
  TestClient,
  type TestSource,
  upTo,
} from './test-kit.ts'

const { db } = await makeTestDatabase({ poolMax: 20 })
const source = await makeTestSource(db)
for (const name of ['ann', 'bob']) addUser(name)

async function follow(host: string, given: { token: string; topic: string; after?: number }) {
  const client = await TestClient.connect(host, { token: given.token })
  client.send({ type: 'subscribe', topic: given.topic, after: given.after ?? 0 })
  await client.frame('subscribed')
  return client
}

const plain = { data: {} }
const endOf = (...ends: string[]) => ({ data: {}, ends })
const append = async (
  live: { wake(topics: string[]): void },
  id: string,
  events: Parameters<TestSource['append']>[1],
) => {
  const head = await source.append(id, events)
  live.wake([`runs/${id}`])
  return head
}

test('whose right ends inside a batch gets its part of the batch, the refusal, and nothing more', async () => {
  const { host, live } = await makeInstance({ db, sources: [source] })
  const [ann, bob] = [
    await follow(host, { token: 'ann', topic: 'runs/batch' }),
    await follow(host, { token: 'bob', topic: 'runs/batch' }),
  ]
  source.denied.add('ann batch')
  await append(live, 'batch', [plain, plain, endOf('ann'), plain, plain])
  const refusal = await ann.frame('error')
  assert.deepEqual(refusal, {
    type: 'error',
    code: 'forbidden',
    message: 'This run is not yours.',
    topic: 'runs/batch',
  })
  await append(live, 'batch', 3)
  await bob.until(() => bob.events.length === 8, 'all events')
  assert.equal((await ann.ask({ type: 'ping' })).type, 'pong')
  assert.deepEqual([seqs(ann.events), seqs(bob.events)], [upTo(3), upTo(8)])
  // What ended takes no place: it can be followed again once that is allowed.
  source.denied.delete('ann batch')
  ann.send({ type: 'subscribe', topic: 'runs/batch', after: 3 })
  await ann.until(() => ann.events.length === 8, 'the rest')
  assert.deepEqual(seqs(ann.events), upTo(8))
  await Promise.all([ann.drop(), bob.drop()])
})

test('who is let in again goes on by itself, with nothing missed or doubled', async () => {
  const { host, live } = await makeInstance({ db, sources: [source] })
  const ann = await follow(host, { token: 'ann', topic: 'runs/again' })
  for (let round = 0; round < 20; round++) {
    await append(live, 'again', [plain, endOf('ann', 'bob'), plain, endOf('ann')])
  }
  await ann.until(() => ann.events.length === 80, 'all events')
  assert.deepEqual(seqs(ann.events), upTo(80))
  assert.equal(ann.frames.filter(frame => frame.type === 'error').length, 0)
  await ann.drop()
})

test('a right that ended in the past ends catching up there', async () => {
  let isMember = true
  const { host } = await makeInstance({
    db,
    sources: [
      {
        ...source,
        async authorize(_caller, id) {
          // Only the question at the beginning is answered so; the next takes longer than a read.
          if (isMember) {
            isMember = false
            return
          }
          for (let reads = 0; reads < 5; reads++) await source.read(id, 0, 500)
          throw errors.forbidden()
        },
      },
    ],
  })
  await source.append('past', 300)
  await source.append('past', [endOf('ann'), plain])
  await source.append('past', 200)
  for (const [after, expected] of [
    [0, upTo(301)],
    [250, upTo(301).slice(250)],
    [300, [301]],
    [301, upTo(502).slice(301)],
  ] as const) {
    isMember = true
    const client = await follow(host, { token: 'ann', topic: 'runs/past', after })
    if (after < 301) assert.equal((await client.frame('error')).code, 'forbidden')
    else await client.until(() => client.events.length === expected.length, 'all that is above it')
    assert.deepEqual(seqs(client.events), expected, `after ${after}`)
    await client.drop()
  }
})

test('nothing comes while the question is open; when nobody can tell, it is asked again', async () => {
  let answer = Promise.withResolvers<void>()
  let asked = 0
  const slow: TopicSource = {
    ...source,
    authorize: async caller => {
      if (caller.userId !== 'ann' || asked++ === 0) return
      await answer.promise
    },
  }
  const { host, live } = await makeInstance({ db, sources: [slow], options: { pollMs: 30 } })
  const [ann, bob] = [
    await follow(host, { token: 'ann', topic: 'runs/open' }),
    await follow(host, { token: 'bob', topic: 'runs/open' }),
  ]
  await append(live, 'open', [endOf('ann')])
  await ann.until(() => ann.events.length === 1, 'the end')
  for (const total of [11, 21]) {
    await append(live, 'open', 10)
    live.signal('runs/open', { type: 'typing', data: null })
    await bob.until(() => bob.events.length === total, 'the others get it')
    assert.equal((await ann.ask({ type: 'ping' })).type, 'pong')
    assert.equal(ann.events.length, 1)
    if (total === 11) {
      const before = answer
      answer = Promise.withResolvers()
      before.reject(new Error('the database is away'))
    }
  }
  answer.resolve()
  await ann.until(() => ann.events.length === 21, 'the rest')
  assert.deepEqual(seqs(ann.events), upTo(21))
  assert.ok(asked >= 3)
  assert.equal(ann.frames.filter(frame => frame.type === 'signal').length, 0)
  await Promise.all([ann.drop(), bob.drop()])
})

test('a right that ends while it is asked about, or below the number asked for, is asked about again', async () => {
  const gate = Promise.withResolvers<void>()
  const late: TopicSource = {
    ...source,
    async authorize(caller, id) {
      await source.authorize(caller, id)
      // The answer is on its way while the membership ends.
      if (caller.userId === 'ann') await gate.promise
    },
  }
  const { host, live } = await makeInstance({ db, sources: [late] })
  const bob = await follow(host, { token: 'bob', topic: 'runs/race' })
  const ann = await TestClient.connect(host, { token: 'ann' })
  ann.send({ type: 'subscribe', topic: 'runs/race', after: 4 })
  assert.equal((await ann.ask({ type: 'ping' })).type, 'pong')
  source.denied.add('ann race')
  await append(live, 'race', [plain, endOf('ann'), plain])
  await bob.until(() => bob.events.length === 3, 'the end')
  gate.resolve()
  assert.equal((await ann.frame('error', 'runs/race')).code, 'forbidden')
  // From a number on that is still to come.
  source.denied.delete('ann race')
  const ahead = await follow(host, { token: 'ann', topic: 'runs/race', after: 100 })
  source.denied.add('ann race')
  await append(live, 'race', [endOf('ann')])
  assert.equal((await ahead.frame('error', 'runs/race')).code, 'forbidden')
  assert.deepEqual([ann.events, ahead.events], [[], []])
  await Promise.all([ann.drop(), bob.drop(), ahead.drop()])
})

test('a stream ends with the event that ends its reader’s right', async () => {
  const { host, live } = await makeInstance({ db, sources: [source] })
  const headers = { authorization: 'Bearer ann' }
  const path = '/v1/live/events?topic=runs/stream'
  const stream = await openStream(host, path, headers)
  await append(live, 'stream', [plain, endOf('ann'), plain])
  await stream.until(() => stream.events.length === 3)
  source.denied.add('ann stream')
  await append(live, 'stream', [plain, endOf('ann'), plain])
  await assert.rejects(stream.until(() => stream.events.length > 5))
  assert.deepEqual(
    stream.events.map(event => event.data.seq),
    upTo(5),
  )
  const again = await openStream(host, `${path}&after=5`, headers)
  assert.equal(again.status, 403)
})

test('those whose right does not end share one batch', async () => {
  const events: LiveEvent[] = []
  const hub = makeHub({
    topic: 'held/a',
    id: 'a',
    source: {
      kind: 'held',
      authorize: async () => {},
      read: async (_id, after) => events.slice(after),
      heads: async () => new Map(),
    },
    newest: async () => 0,
    gate: makeGate(2),
    log: silentLog,
    onEmpty: () => {},
  })
  const taken: Batch[][] = []
  for (const userId of ['ann', 'bob', 'cleo']) {
    const own: Batch[] = []
    taken.push(own)
    hub.add({ userId, take: batch => own.push(batch), askAgain: async () => {} }, 0)
  }
  const settle = () => new Promise(resolve => setImmediate(resolve))
  await settle()
  events.push(
    { seq: 1, type: 'x', data: 1 },
    { seq: 2, type: 'x', data: 2, ends: ['cleo'] },
    { seq: 3, type: 'x', data: 3 },
  )
  hub.wake()
  await settle()
  const [ann, bob, cleo] = taken
  assert.equal(ann!.length, 1)
  assert.equal(ann![0], bob![0])
  assert.deepEqual(
    cleo!.map(batch => seqs(batch.items.map(item => item.event))),
    [[1, 2], [3]],
  )
})
