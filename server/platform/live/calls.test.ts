import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { errors } from '../errors.ts'
import { makeRateLimiter } from '../http/rate-limit.ts'
import type { LiveOptions } from './live.ts'
import type { LiveCall } from './source.ts'
import { addUser, eventually, makeInstance, TestClient, tokens, upTo } from './test-kit.ts'

const { db } = await makeTestDatabase()
const token = addUser('ann')

interface Answer {
  id: string
  result?: unknown
  error?: { code: string; message: string; details?: object; retry_after?: number }
}

function answersOf(client: TestClient): Answer[] {
  return client.frames.filter(frame => frame.type === 'results').flatMap(frame => frame.results)
}

async function untilAnswered(client: TestClient, count: number): Promise<Answer[]> {
  await client.until(() => answersOf(client).length >= count, `${count} answers`)
  return answersOf(client)
}

/** A call that is answered when the test says so. */
function makeHeldCall() {
  const begun: unknown[] = []
  const held: (() => void)[] = []
  const call: LiveCall = {
    name: 'test.hold',
    run: (_caller, params) => {
      begun.push(params)
      return new Promise(resolve => held.push(() => resolve(params)))
    },
  }
  return { call, begun, held, releaseAll: () => held.splice(0).forEach(release => void release()) }
}

const calls: LiveCall[] = [
  { name: 'test.echo', run: async (_caller, params) => params },
  { name: 'test.whoami', run: async caller => ({ user: caller.userId, role: caller.role }) },
  { name: 'test.scoped', scope: 'chats:write', run: async () => 'done' },
  { name: 'test.nothing', run: async () => undefined },
  {
    name: 'test.full',
    run: async () => {
      throw errors.overloaded('The box', 3)
    },
  },
  {
    name: 'test.invalid',
    run: async () => {
      throw errors.validation('Wrong.', [{ field: 'text', message: 'is missing' }])
    },
  },
  {
    name: 'test.bug',
    run: () => {
      throw new TypeError('secret')
    },
  },
  { name: 'test.no-json', run: async () => 7n },
]

const openInstance = (more: LiveCall[] = [], options: Partial<LiveOptions> = {}) =>
  makeInstance({ db, sources: [], calls: [...calls, ...more], options })

test('pipelined calls begin in the order in which they came, and wait for no answer', async () => {
  const { call, begun, held } = makeHeldCall()
  const { host } = await openInstance([call])
  const client = await TestClient.connect(host, { token })
  for (const n of upTo(120)) client.send({ type: 'call', id: `c${n}`, call: 'test.hold', params: n })
  await eventually(() => begun.length === 120, 'all have begun')
  assert.deepEqual(begun, upTo(120))
  assert.equal(answersOf(client).length, 0)
  // Answered in the opposite order, in one turn: one frame.
  for (const release of held.reverse()) release()
  const answers = await untilAnswered(client, 120)
  assert.equal(client.frames.filter(frame => frame.type === 'results').length, 1)
  assert.deepEqual(
    answers,
    upTo(120)
      .reverse()
      .map(n => ({ id: `c${n}`, result: n })),
  )
  await client.drop()
})

test('beyond 256 unanswered calls the socket is not read, and nothing is lost', async () => {
  const { call, begun, held } = makeHeldCall()
  const { host } = await openInstance([call])
  const client = await TestClient.connect(host, { token })
  const filling = 'x'.repeat(2000)
  for (const n of upTo(1000)) client.send({ type: 'call', id: `${n}`, call: 'test.hold', params: { n, filling } })
  client.send({ type: 'ping' })
  await eventually(() => begun.length === 256, 'as many as may')
  // Nobody reads what lies behind them.
  for (let turn = 0; turn < 200; turn++) await new Promise(resolve => setImmediate(resolve))
  assert.equal(begun.length, 256)
  assert.deepEqual(client.frames, [{ type: 'ready' }])
  let most = 0
  while (answersOf(client).length < 1000) {
    await eventually(() => held.length > 0 || answersOf(client).length === 1000, 'more have begun')
    most = Math.max(most, held.length)
    for (const release of held.splice(0, 1 + Math.floor(held.length / 2))) release()
  }
  assert.ok(most <= 256, `${most} at once`)
  assert.deepEqual(
    begun.map(params => (params as { n: number }).n),
    upTo(1000),
  )
  assert.equal((await client.frame('pong')).type, 'pong')
  await client.drop()
})

test('each call has its own answer, and an error of one hurts no other', async () => {
  const { host, metrics } = await openInstance()
  const client = await TestClient.connect(host, { token })
  const cases: [call: string, params: unknown, answer: object][] = [
    ['test.echo', { a: ['b'] }, { result: { a: ['b'] } }],
    ['test.nothing', undefined, { result: null }],
    ['test.whoami', undefined, { result: { user: 'ann', role: 'user' } }],
    ['test.missing', {}, { error: { code: 'unknown_call', message: 'There is no call `test.missing` here.' } }],
    ['constructor', {}, { error: { code: 'unknown_call', message: 'There is no call `constructor` here.' } }],
    [
      'test.full',
      {},
      {
        error: {
          code: 'overloaded',
          message: 'The box is full just now. Nothing was accepted; try again shortly.',
          retry_after: 3,
        },
      },
    ],
    [
      'test.invalid',
      {},
      {
        error: {
          code: 'validation_failed',
          message: 'Wrong.',
          details: { fields: [{ field: 'text', message: 'is missing' }] },
        },
      },
    ],
    ['test.bug', {}, { error: { code: 'internal', message: errors.internal().message } }],
    ['test.no-json', {}, { error: { code: 'internal', message: errors.internal().message } }],
    ['test.echo', undefined, { result: null }],
  ]
  for (const [at, [call, params]] of cases.entries()) client.send({ type: 'call', id: `${at}`, call, params })
  const answers = await untilAnswered(client, cases.length)
  for (const [at, [call, , expected]] of cases.entries()) {
    assert.deepEqual(
      answers.find(answer => answer.id === `${at}`),
      { id: `${at}`, ...expected },
      call,
    )
  }
  const counted = await metrics.registry.getSingleMetric('capstan_live_calls')!.get()
  assert.deepEqual(
    counted.values.filter(each => each.labels.call === 'unknown').map(each => [each.labels.outcome, each.value]),
    [['unknown_call', 2]],
    'names that a client made up are no labels',
  )
  await client.drop()
})

test('a call that cannot be answered by its id is a bad frame', async () => {
  const { host } = await openInstance()
  const client = await TestClient.connect(host, { token })
  for (const fields of [
    { call: 'test.echo' },
    { id: '', call: 'test.echo' },
    { id: 7, call: 'test.echo' },
    { id: 'x'.repeat(129), call: 'test.echo' },
    { id: 'a' },
    { id: 'a', call: 7 },
    { id: 'a', call: 'No Such Call' },
    { id: 'a', call: 'x'.repeat(65) },
  ]) {
    const answer = await client.ask({ type: 'call', ...fields })
    assert.deepEqual([answer.type, answer.code], ['error', 'bad_frame'], JSON.stringify(fields))
    assert.equal(answer.id, fields.id === 'a' ? 'a' : fields.id === '' ? '' : undefined)
  }
  client.send({ type: 'call', id: 'after', call: 'test.echo', params: 1 })
  assert.deepEqual(await untilAnswered(client, 1), [{ id: 'after', result: 1 }])
  await client.drop()
})

test('without a caller a call is refused; those behind an auth frame wait for it', async () => {
  const { host } = await openInstance([], {
    // Long enough for all that the client sends to come.
    async authenticate(given) {
      for (let turn = 0; turn < 200; turn++) await new Promise(resolve => setImmediate(resolve))
      return tokens.get(given)
    },
  })
  const client = new TestClient(host)
  await once(client.socket, 'open')
  client.send({ type: 'call', id: 'early', call: 'test.whoami' })
  const [early] = await untilAnswered(client, 1)
  assert.equal(early!.error!.code, 'unauthenticated')
  client.send({ type: 'auth', token })
  // More than may be held, and than other frames may come at once.
  for (const n of upTo(600)) client.send({ type: 'call', id: `${n}`, call: 'test.echo', params: n })
  const answers = await untilAnswered(client, 601)
  assert.deepEqual(
    answers.slice(1).map(answer => answer.result),
    upTo(600),
  )
  assert.deepEqual(await client.ask({ type: 'ping' }), { type: 'pong' })
  await client.drop()
})

test('while a token is looked at no more is read than may be held', async () => {
  const known = Promise.withResolvers<void>()
  const authenticate = async (given: string) => {
    await known.promise
    return tokens.get(given)
  }
  const { host } = await openInstance([], { authenticate })
  const client = new TestClient(host)
  await once(client.socket, 'open')
  client.send({ type: 'auth', token })
  // More than the buffers of both sockets take.
  const params = 'x'.repeat(20_000)
  for (const n of upTo(1500)) client.send({ type: 'call', id: `${n}`, call: 'test.echo', params })
  for (let turn = 0; turn < 3000 && client.socket.bufferedAmount > 0; turn++) {
    await new Promise(resolve => setImmediate(resolve))
  }
  assert.ok(client.socket.bufferedAmount > 0)
  known.resolve()
  await untilAnswered(client, 1500)
  await client.drop()
})

test('calls before the caller is known are counted as other frames are', async () => {
  const { host } = await openInstance()
  const client = new TestClient(host)
  await once(client.socket, 'open')
  for (const n of upTo(400)) client.send({ type: 'call', id: `${n}`, call: 'test.echo' })
  assert.equal((await client.toClose()).code, 4029)
})

test('an API key needs the scope of the call', async () => {
  const { host } = await openInstance()
  tokens.set('key', { ...tokens.get('ann')!, by: 'api_key', scopes: ['chats:read'] })
  tokens.set('better-key', { ...tokens.get('ann')!, by: 'api_key', scopes: ['chats:write'] })
  const ask = async (credential: string) => {
    const client = await TestClient.connect(host, { token: credential })
    client.send({ type: 'call', id: '1', call: 'test.scoped' })
    const [answer] = await untilAnswered(client, 1)
    await client.drop()
    return answer!
  }
  assert.deepEqual((await ask('key')).error, {
    code: 'missing_scope',
    message: 'This API key lacks the scope `chats:write`.',
    details: { scope: 'chats:write' },
  })
  assert.equal((await ask('better-key')).result, 'done')
  assert.equal((await ask('ann')).result, 'done')
})

test('calls are limited as requests are, one by one, and the connection is kept', async () => {
  const rateLimiter = makeRateLimiter({ name: 'calls', points: 5, windowSeconds: 60, redis: undefined })
  await rateLimiter.take('ann')
  const { host } = await openInstance([], { rateLimiter })
  const client = await TestClient.connect(host, { token })
  for (const n of upTo(300)) client.send({ type: 'call', id: `${n}`, call: 'test.echo', params: n })
  const answers = await untilAnswered(client, 300)
  assert.deepEqual(
    answers.filter(answer => 'result' in answer).map(answer => answer.result),
    upTo(4),
  )
  for (const { error } of answers.filter(answer => 'error' in answer)) {
    assert.equal(error!.code, 'rate_limited')
    assert.ok(error!.retry_after! > 0 && error!.retry_after! <= 60)
  }
  assert.deepEqual(await client.ask({ type: 'ping' }), { type: 'pong' })
  await client.drop()
})

test('a slow limiter changes nothing of the order', async () => {
  const begun: unknown[] = []
  const record: LiveCall = { name: 'test.record', run: async (_caller, params) => begun.push(params) }
  let taken = 0
  const rateLimiter = {
    // Those that came first are answered last.
    take: async () => {
      const turns = 20 - (taken++ % 20)
      for (let turn = 0; turn < turns; turn++) await new Promise(resolve => setImmediate(resolve))
    },
    reset: async () => {},
  }
  const { host } = await openInstance([record], { rateLimiter })
  const client = await TestClient.connect(host, { token })
  for (const n of upTo(300)) client.send({ type: 'call', id: `${n}`, call: 'test.record', params: n })
  await untilAnswered(client, 300)
  assert.deepEqual(begun, upTo(300))
  await client.drop()
})

test('a connection that is gone begins no more calls, and those begun end in silence', async () => {
  const { call, begun, held, releaseAll } = makeHeldCall()
  const instance = await openInstance([call])
  const client = await TestClient.connect(instance.host, { token })
  for (const n of upTo(300)) client.send({ type: 'call', id: `${n}`, call: 'test.hold', params: n })
  await eventually(() => begun.length === 256, 'as many as may')
  client.socket.terminate()
  // The server does not read the socket just now, so it learns of its end with the first answers.
  while (instance.live.connections > 0) {
    releaseAll()
    await new Promise(resolve => setImmediate(resolve))
  }
  const known = begun.length
  releaseAll()
  await eventually(() => held.length === 0, 'all are answered')
  assert.equal(begun.length, known)
  const other = await TestClient.connect(instance.host, { token })
  other.send({ type: 'call', id: '1', call: 'test.echo', params: 1 })
  assert.deepEqual(await untilAnswered(other, 1), [{ id: '1', result: 1 }])
  await other.drop()
})

test('calls that wait are not made for a credential that has ended', async () => {
  const { call, begun, held, releaseAll } = makeHeldCall()
  const { host, live } = await openInstance([call], { checkMs: 20, leaveMs: 3_600_000 })
  const client = await TestClient.connect(host, { token: addUser('gone') })
  for (const n of upTo(300)) client.send({ type: 'call', id: `${n}`, call: 'test.hold', params: n })
  await eventually(() => begun.length === 256, 'as many as may')
  tokens.delete('gone')
  assert.equal((await client.toClose()).code, 4001)
  // It is read again, so that the closing comes to its end.
  await eventually(() => live.connections === 0, 'the connection is gone')
  releaseAll()
  const other = await TestClient.connect(host, { token })
  other.send({ type: 'call', id: '1', call: 'test.echo', params: 1 })
  await untilAnswered(other, 1)
  assert.deepEqual([begun.length, held.length], [256, 0])
  await other.drop()
})

test('a server that stops answers what was begun and refuses what comes', async () => {
  const { call, begun, releaseAll } = makeHeldCall()
  const instance = await openInstance([call])
  const client = await TestClient.connect(instance.host, { token })
  client.send({ type: 'call', id: 'begun', call: 'test.hold', params: 1 })
  await eventually(() => begun.length === 1, 'it has begun')
  const stopped = instance.live.stop()
  await client.frame('closing')
  client.send({ type: 'call', id: 'late', call: 'test.echo', params: 2 })
  const [late] = await untilAnswered(client, 1)
  assert.deepEqual([late!.id, late!.error!.code], ['late', 'unavailable'])
  releaseAll()
  assert.equal((await client.toClose()).code, 1001)
  assert.deepEqual(answersOf(client)[1], { id: 'begun', result: 1 })
  await stopped
})

test('a call is made by the caller as the credential stands now', async () => {
  const { host } = await openInstance([], { checkMs: 20 })
  addUser('bob')
  const client = await TestClient.connect(host, { token: 'bob' })
  tokens.set('bob', { ...tokens.get('bob')!, role: 'admin' })
  await eventually(async () => {
    const at = answersOf(client).length
    client.send({ type: 'call', id: `${at}`, call: 'test.whoami' })
    const answers = await untilAnswered(client, at + 1)
    return (answers.at(-1)!.result as { role: string }).role === 'admin'
  }, 'the new role')
  await client.drop()
})

test('two calls of one name are refused at the start', async () => {
  const { live } = await openInstance()
  assert.throws(() => live.addCall(calls[0]!), /two live calls named test.echo/)
})
