import assert from 'node:assert/strict'
import { once } from 'node:events'
import http2 from 'node:http2'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import { create, toBinary } from '@bufbuild/protobuf'
import { makeGrpcClient, statusOf } from '../../../test/support/grpc.ts'
import { until } from '../../../test/support/until.ts'
import { errors } from '../errors.ts'
import { callerOf } from './call.ts'
import { type MethodRule, makeRpc, type RpcService } from './rpc.ts'
import { Echo, type EchoImplementation, makeTestRpc, revoke, rulesForUsers, type Text } from './test-kit.ts'

const messageBytesMax = 4 * 1024 * 1024
const idleMs = 300
const slowMs = 50
let chunksTaken = 0
const ended: string[] = []

const implementation: EchoImplementation = {
  async say({ text }, context) {
    if (text === 'refuse') throw errors.rateLimited(7)
    if (text === 'break') throw new Error('a secret of the server')
    if (text === 'hang') await new Promise(resolve => context.signal.addEventListener('abort', resolve))
    if (text === 'hang') ended.push('say')
    if (text === 'deaf') await new Promise(() => {})
    if (text === 'slow') await sleep(slowMs)
    return { text: text === 'who' ? callerOf(context).name : text }
  },
  async gather(requests) {
    const texts: string[] = []
    for await (const { text } of requests) texts.push(text)
    return { text: texts.join(' ') }
  },
  async *count({ text }, { signal }) {
    try {
      if (text === 'forever') yield { text }
      if (text === 'forever') await new Promise(resolve => signal.addEventListener('abort', resolve))
      for (let n = 1; n <= Number(text); n++) {
        chunksTaken = n
        yield { text: 'x'.repeat(64 * 1024) }
      }
    } finally {
      ended.push(`count ${text}`)
    }
  },
  async *repeat(requests) {
    for await (const { text } of requests) {
      if (text === 'refuse') throw errors.conflict('This one not.')
      yield { text }
    }
  },
}

const server = await makeTestRpc({
  implementation,
  rules: { count: { access: 'user', isEndless: true } },
  options: { idleMs },
})
const ann = server.client({ token: 'ann' })
const failureOf = async (call: Promise<unknown>) =>
  statusOf(
    await call.then(
      () => assert.fail('It succeeded.'),
      error => error,
    ),
  )
const textsOf = async (stream: AsyncIterable<unknown>) =>
  (await Array.fromAsync(stream)).map(each => (each as Text).text)

/** A call as its parts, for what no client would send. */
function openRaw(method: string, headers: Record<string, string> = {}) {
  const session = http2.connect(`http://127.0.0.1:${server.port}`)
  const request = session.request({
    ':method': 'POST',
    ':path': `/test.v1.Echo/${method}`,
    'content-type': 'application/grpc',
    authorization: 'Bearer ann',
    ...headers,
  })
  request.on('error', () => {})
  return { session, request, trailers: async () => (await once(request.resume(), 'trailers'))[0] }
}

const encode = (text: string) => envelope(toBinary(Echo.method.say!.input, create(Echo.method.say!.input, { text })))

/** A message as it goes over the wire. */
function envelope(message: Uint8Array, compressed = false): Buffer {
  const prefix = Buffer.alloc(5)
  prefix.writeUInt8(compressed ? 1 : 0)
  prefix.writeUInt32BE(message.length, 1)
  return Buffer.concat([prefix, message])
}

test('each kind of method is answered', async () => {
  assert.equal(((await ann.unary('say', { text: 'hello' })) as Text).text, 'hello')
  assert.equal(((await ann.unary('say', { text: 'who' })) as Text).text, 'ann')
  const gathering = ann.clientStream('gather')
  for (const text of ['a', 'b', 'c']) gathering.call.write({ text })
  gathering.call.end()
  assert.equal(((await gathering.answer) as Text).text, 'a b c')
  const counted = await textsOf(ann.serverStream('count', { text: '3' }))
  assert.equal(counted.length, 3)
  const repeating = ann.bidi('repeat')
  repeating.write({ text: 'one' })
  const [first] = await once(repeating, 'data')
  assert.equal(first.text, 'one')
  repeating.write({ text: 'two' })
  repeating.end()
  assert.deepEqual(await textsOf(repeating), ['two'])
})

test('a service whose method states no rule is not added', () => {
  const { say: _, ...others } = rulesForUsers
  const unused = makeRpc({
    settings: { HOST: '127.0.0.1', TRUST_PROXY: false },
    log: undefined as never,
    metrics: server.metrics,
    authenticate: async () => undefined,
    rateLimiter: { take: async () => {}, reset: async () => {} },
    isServing: async () => true,
  })
  const wrong = { implementation, rules: others } as unknown as RpcService<typeof Echo>
  assert.throws(() => unused.addService(Echo, wrong), /test\.v1\.Echo\/Say does not state who may call it/)
})

const admissions: [who: string, token: string | undefined, rule: MethodRule, expected: string | undefined][] = [
  ['nobody', undefined, { access: 'public' }, undefined],
  ['nobody', undefined, { access: 'optional' }, undefined],
  ['nobody', undefined, { access: 'user' }, 'unauthenticated'],
  ['a stranger', 'mallory', { access: 'user' }, 'unauthenticated'],
  ['a stranger', 'mallory', { access: 'optional' }, 'unauthenticated'],
  ['a user', 'ann', { access: 'user', scope: 'echo:read' }, undefined],
  ['a user', 'ann', { access: 'admin' }, 'forbidden'],
  ['an admin', 'root', { access: 'admin' }, undefined],
  ['a key', 'key', { access: 'user', scope: 'echo:write' }, undefined],
  ['a key', 'key', { access: 'user', scope: 'echo:read' }, 'missing_scope'],
]
const statuses: Record<string, string> = {
  unauthenticated: 'UNAUTHENTICATED',
  forbidden: 'PERMISSION_DENIED',
  missing_scope: 'PERMISSION_DENIED',
}

for (const [who, token, rule, code] of admissions) {
  test(`${who} is ${code ? 'not ' : ''}let in by ${JSON.stringify(rule)}`, async () => {
    const guarded = await makeTestRpc({ implementation, rules: { say: rule, gather: rule } })
    const client = guarded.client({ token })
    const gathering = client.clientStream('gather')
    gathering.call.end()
    const calls = [client.unary('say', { text: 'x' }), gathering.answer]
    if (code === undefined) return void (await Promise.all(calls))
    for (const call of calls) {
      const { status, code: found } = await failureOf(call)
      assert.deepEqual([status, found], [statuses[code], code])
    }
  })
}

test('an error has its status, its code and when to come back; a mistake of ours says nothing but its request', async () => {
  const refused = await ann.unary('say', { text: 'refuse' }).catch(error => error)
  assert.deepEqual(statusOf(refused), { status: 'RESOURCE_EXHAUSTED', code: 'rate_limited', about: {} })
  assert.match(refused.metadata.get('grpc-status-details-bin')[0].toString('latin1'), /google\.rpc\.RetryInfo/)
  const before = server.complaints.length
  const broken = await ann
    .unary('say', { text: 'break' }, { metadata: { 'x-request-id': 'mine-7' } })
    .catch(error => error)
  assert.deepEqual(statusOf(broken), { status: 'INTERNAL', code: 'internal', about: {} })
  assert.ok(!JSON.stringify(broken).includes('secret'))
  const complaints = server.complaints.slice(before).join('')
  assert.match(complaints, /a secret of the server/)
  assert.match(complaints, /"request_id":"mine-7"/)
})

test('a stream that fails midway gives what came before', async () => {
  const repeating = ann.bidi('repeat')
  const seen: string[] = []
  repeating.on('data', ({ text }) => seen.push(text))
  for (const text of ['a', 'b', 'refuse', 'c']) repeating.write({ text })
  const [error] = await once(repeating, 'error')
  assert.deepEqual(statusOf(error), { status: 'FAILED_PRECONDITION', code: 'conflict', about: {} })
  assert.deepEqual(seen, ['a', 'b'])
})

test('a method that is not there is unimplemented, and what is not gRPC is not taken', async () => {
  const elsewhere = { ...Echo, typeName: 'test.v1.Nowhere' } as typeof Echo
  const { status } = await failureOf(
    makeGrpcClient(elsewhere, server.port, { token: 'ann' }).unary('say', { text: 'x' }),
  )
  assert.equal(status, 'UNIMPLEMENTED')
  const { session, request } = openRaw('Say', { 'content-type': 'application/json' })
  request.end('{}')
  const [headers] = await once(request, 'response')
  assert.equal(headers[':status'], 415)
  session.close()
})

test('messages are taken up to their limit, and strangers have a lower one', async () => {
  const rules = { gather: { access: 'public' } } as const
  const { client } = await makeTestRpc({ implementation, rules })
  const fits = 'x'.repeat(messageBytesMax - 10)
  assert.equal(((await client({ token: 'ann' }).unary('say', { text: fits })) as Text).text.length, fits.length)
  const { status } = await failureOf(client({ token: 'ann' }).unary('say', { text: `${fits}${fits}` }))
  assert.equal(status, 'RESOURCE_EXHAUSTED')
  const gathering = client().clientStream('gather')
  gathering.call.on('error', () => {})
  gathering.call.write({ text: 'x'.repeat(100_000) })
  assert.equal((await failureOf(gathering.answer)).status, 'RESOURCE_EXHAUSTED')
})

test('a small message that unpacks to a large one is refused', async () => {
  const bomb = gzipSync(Buffer.alloc(messageBytesMax * 20))
  const { session, request, trailers } = openRaw('Say', { 'grpc-encoding': 'gzip' })
  request.end(envelope(bomb, true))
  assert.equal((await trailers())['grpc-status'], '8')
  session.close()
})

test('a call ends at its deadline, whatever is done for it', async () => {
  assert.equal((await failureOf(ann.unary('say', { text: 'hang' }, { deadlineMs: 100 }))).status, 'DEADLINE_EXCEEDED')
  await until(() => ended.includes('say'))
  const { session, request, trailers } = openRaw('Say', { 'grpc-timeout': '100m' })
  request.end(encode('deaf'))
  assert.equal((await trailers())['grpc-status'], '4')
  session.close()
})

test('the longest deadline, which is more than a timer holds, is none', async () => {
  const { session, request, trailers } = openRaw('Say', { 'grpc-timeout': '99999999H' })
  request.end(encode('slow'))
  assert.equal((await trailers())['grpc-status'], '0')
  session.close()
})

test('callers are counted, probes are not', async () => {
  const { client, port } = await makeTestRpc({ implementation, perMinute: 2 })
  const [one, other] = [client({ token: 'ann' }), client({ token: 'root' })]
  for (let n = 0; n < 2; n++) await one.unary('say', { text: 'x' })
  assert.deepEqual((await failureOf(one.unary('say', { text: 'x' }))).code, 'rate_limited')
  await other.unary('say', { text: 'x' })
  const { Health } = await import('../../proto/grpc/health/v1/health_pb.js')
  const probe = makeGrpcClient(Health, port)
  for (let n = 0; n < 5; n++) await probe.unary('check', {})
})

test('refused credentials are counted against whoever sends them', async () => {
  const { client } = await makeTestRpc({ implementation, perMinute: 3 })
  const codes: (string | undefined)[] = []
  for (let n = 0; n < 4; n++)
    codes.push((await failureOf(client({ token: `guess${n}` }).unary('say', { text: 'x' }))).code)
  assert.deepEqual(codes, ['unauthenticated', 'unauthenticated', 'unauthenticated', 'rate_limited'])
})

test('a stream on which nothing comes is ended, one that goes on is not', async () => {
  const gathering = ann.clientStream('gather')
  gathering.call.on('error', () => {})
  gathering.call.write({ text: 'a' })
  assert.deepEqual(await failureOf(gathering.answer), { status: 'DEADLINE_EXCEEDED', code: 'stream_idle', about: {} })
  const repeating = ann.bidi('repeat')
  const begun = performance.now()
  let sent = 0
  repeating.on('data', () => {
    if (performance.now() - begun > 2 * idleMs) return repeating.end()
    setTimeout(() => repeating.write({ text: `${++sent}` }), idleMs / 3)
  })
  repeating.write({ text: '0' })
  await once(repeating, 'end')
  assert.ok(sent > 3)
})

test('a message that never comes whole is not waited for', async () => {
  const { session, request, trailers } = openRaw('Say')
  // Drop by drop, so that it is never idle.
  const drops = setInterval(() => request.write(Buffer.from([0])), idleMs / 4)
  const { 'grpc-status': status } = await trailers()
  clearInterval(drops)
  assert.equal(status, '4')
  session.destroy()
})

test('a client that does not read is sent no more than it has room for, and is cut off in the end', async () => {
  const chunks = 1000
  const { session, request } = openRaw('Count')
  request.end(encode(`${chunks}`))
  await until(() => ended.includes(`count ${chunks}`))
  assert.ok(chunksTaken < chunks / 10, `${chunksTaken} of ${chunks} messages were made`)
  session.destroy()
})

test('a client that leaves ends what was done for it', async () => {
  const stream = ann.serverStream('count', { text: 'forever' })
  stream.on('error', () => {})
  await once(stream, 'data')
  const before = ended.filter(each => each === 'count forever').length
  stream.cancel()
  await until(() => ended.filter(each => each === 'count forever').length > before)
})

test('streams end with their credential', async () => {
  const { client } = await makeTestRpc({ implementation, options: { recheckMs: 20 } })
  const streams = ['ann', 'bob'].flatMap(token => {
    const counting = client({ token }).serverStream('count', { text: 'forever' })
    const repeating = client({ token }).bidi('repeat')
    repeating.write({ text: 'x' })
    return [counting, repeating]
  })
  await Promise.all(streams.map(stream => once(stream, 'data')))
  const ended = streams.slice(2).map(stream => once(stream, 'error'))
  revoke('bob')
  for (const [error] of await Promise.all(ended)) {
    assert.deepEqual(statusOf(error), { status: 'UNAUTHENTICATED', code: 'unauthenticated', about: {} })
  }
  for (const stream of streams.slice(0, 2)) {
    stream.on('error', () => {})
    assert.ok(!stream.destroyed)
    stream.cancel()
  }
})

test('calls are timed and streams are counted', async () => {
  const text = await server.metrics.registry.metrics()
  assert.match(text, /capstan_grpc_request_seconds_count\{method="test.v1.Echo\/Say",code="ok"\} [1-9]/)
  assert.match(text, /capstan_grpc_request_seconds_count\{method="test.v1.Echo\/Say",code="deadline_exceeded"\} [1-9]/)
  assert.match(text, /capstan_grpc_streams_total\{method="test.v1.Echo\/Count",code="canceled"\} [1-9]/)
  await until(async () =>
    /grpc_open_streams\{method="test.v1.Echo\/Count"\} 0/.test(await server.metrics.registry.metrics()),
  )
})
