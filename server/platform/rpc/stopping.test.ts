import assert from 'node:assert/strict'
import { once } from 'node:events'
import http2 from 'node:http2'
import net from 'node:net'
import { test } from 'node:test'
import { makeGrpcClient, statusOf } from '../../../test/support/grpc.ts'
import { until } from '../../../test/support/until.ts'
import { Health, HealthCheckResponse_ServingStatus as Status } from '../../proto/grpc/health/v1/health_pb.js'
import { silentLog } from '../log.ts'
import { listenOn } from './port.ts'
import { type EchoImplementation, makeTestRpc, type Text } from './test-kit.ts'

const graceMs = 5000

/** Methods that wait until they are told to go on. */
function makeSlow() {
  const { promise: goOn, resolve: release } = Promise.withResolvers<void>()
  const seen: string[] = []
  const implementation: EchoImplementation = {
    async say({ text }) {
      seen.push(text)
      await goOn
      return { text }
    },
    async gather(requests) {
      for await (const { text } of requests) seen.push(text)
      return { text: '' }
    },
    async *count({ text }) {
      seen.push(text)
      yield { text }
      await goOn
      yield { text }
    },
    async *repeat(requests) {
      try {
        for await (const { text } of requests) yield { text }
      } finally {
        // What was begun is finished, and told.
        yield { text: 'the last' }
      }
    },
  }
  return { implementation, release, seen }
}

test('a stop lets calls finish, and ends streams that would not end', async () => {
  const { implementation, release, seen } = makeSlow()
  const { rpc, client } = await makeTestRpc({ implementation })
  const ann = client({ token: 'ann' })
  const saying = ann.unary('say', { text: 'one call' })
  const counting = Array.fromAsync(ann.serverStream('count', { text: 'a stream with an end' }))
  const gathering = ann.clientStream('gather')
  gathering.call.on('error', () => {})
  gathering.call.write({ text: 'a stream of the client' })
  const repeating = ann.bidi('repeat')
  const repeated: string[] = []
  repeating.on('data', ({ text }) => repeated.push(text))
  repeating.write({ text: 'first' })
  await until(() => seen.length === 3 && repeated.length === 1)

  const stopped = rpc.stop(graceMs)
  const failed = await gathering.answer.catch(error => error)
  assert.deepEqual(statusOf(failed), { status: 'UNAVAILABLE', code: 'unavailable', about: {} })
  const [error] = await once(repeating, 'error')
  assert.equal(statusOf(error).status, 'UNAVAILABLE')
  assert.deepEqual(repeated, ['first', 'the last'])
  release()
  assert.equal(((await saying) as Text).text, 'one call')
  assert.equal((await counting).length, 2)
  await stopped
  const late = await client({ token: 'ann' })
    .unary('say', { text: 'late' })
    .catch(error => error)
  assert.equal(statusOf(late).status, 'UNAVAILABLE')
})

test('a stream to the client that has no end is ended by a stop', async () => {
  const { implementation, release } = makeSlow()
  const endless = { access: 'user', isEndless: true } as const
  const { rpc, client } = await makeTestRpc({ implementation, rules: { count: endless } })
  const counting = client({ token: 'ann' }).serverStream('count', { text: 'x' })
  await once(counting, 'data')
  const errored = once(counting, 'error')
  await rpc.stop(graceMs)
  const [error] = await errored
  assert.deepEqual(statusOf(error), { status: 'UNAVAILABLE', code: 'unavailable', about: {} })
  release()
})

test('what does not finish in time is cut off', async () => {
  const { implementation, release, seen } = makeSlow()
  const { rpc, client } = await makeTestRpc({ implementation })
  const saying = client({ token: 'ann' })
    .unary('say', { text: 'x' })
    .catch(error => error)
  await until(() => seen.length === 1)
  const begun = performance.now()
  await rpc.stop(100)
  assert.ok(performance.now() - begun < graceMs)
  assert.equal(statusOf(await saying).status, 'UNAVAILABLE')
  release()
})

test('health says who serves, and that the server stops before it does', async () => {
  const { implementation, release, seen } = makeSlow()
  let serving = true
  const { rpc, port, client } = await makeTestRpc({ implementation, options: { isServing: async () => serving } })
  const health = makeGrpcClient(Health, port)
  assert.equal((await health.unary('check', {})).status, Status.SERVING)
  assert.equal((await health.unary('check', { service: 'test.v1.Echo' })).status, Status.SERVING)
  const unknown = await health.unary('check', { service: 'test.v1.Nowhere' }).catch(error => error)
  assert.equal(statusOf(unknown).status, 'NOT_FOUND')
  const { statuses } = await health.unary('list', {})
  assert.deepEqual(
    Object.keys(statuses).filter(name => name === '' || name.startsWith('test.')),
    ['', 'test.v1.Echo'],
  )

  const watched: Status[] = []
  const watching = health.serverStream('watch', { service: 'test.v1.Echo' })
  watching.on('data', ({ status }) => watched.push(status))
  const unknownWatch = health.serverStream('watch', { service: 'test.v1.Nowhere' })
  unknownWatch.on('error', () => {})
  const [{ status }] = await once(unknownWatch, 'data')
  assert.equal(status, Status.SERVICE_UNKNOWN)
  await until(() => watched.length === 1)
  serving = false
  await until(() => watched.length === 2)
  serving = true
  await until(() => watched.length === 3)
  assert.deepEqual(watched, [Status.SERVING, Status.NOT_SERVING, Status.SERVING])

  const saying = client({ token: 'ann' }).unary('say', { text: 'x' })
  await until(() => seen.length === 1)
  const over = once(watching, 'end')
  const stopped = rpc.stop(graceMs)
  await over
  assert.equal(watched.at(-1), Status.NOT_SERVING)
  release()
  await Promise.all([saying, stopped])
})

test('the usual port may be another process’s, a port that was asked for may not', async () => {
  const taken = Object.assign(new Error('in use'), { code: 'EADDRINUSE' })
  const ports: number[] = []
  const rpc = {
    start: async (port: number) => {
      ports.push(port)
      if (port === 0) return 4000
      throw taken
    },
  }
  assert.equal(await listenOn(rpc, { port: 'off', log: silentLog }), undefined)
  assert.equal(await listenOn(rpc, { port: 0, log: silentLog }), 4000)
  assert.equal(await listenOn(rpc, { port: undefined, log: silentLog }), undefined)
  await assert.rejects(listenOn(rpc, { port: 8081, log: silentLog }), taken)
  assert.deepEqual(ports, [0, 8081, 8081])
})

test('connections that are only open hold no stop up, and a call that never comes whole only for the grace', async () => {
  const { implementation } = makeSlow()
  const { rpc, port } = await makeTestRpc({ implementation })
  const silent = net.connect(port, '127.0.0.1')
  await once(silent, 'connect')
  const idle = http2.connect(`http://127.0.0.1:${port}`)
  await once(idle, 'remoteSettings')
  const begun = performance.now()
  await rpc.stop(graceMs)
  assert.ok(performance.now() - begun < graceMs)

  const other = await makeTestRpc({ implementation })
  const stuck = http2.connect(`http://127.0.0.1:${other.port}`).on('error', () => {})
  const headers = { ':method': 'POST', ':path': '/test.v1.Echo/Say', authorization: 'Bearer ann' }
  const request = stuck.request({ ...headers, 'content-type': 'application/grpc' }).on('error', () => {})
  request.write(Buffer.from([0]))
  await once(stuck, 'remoteSettings')
  await other.rpc.stop(100)
  for (const each of [silent, idle, stuck]) each.destroy()
})
