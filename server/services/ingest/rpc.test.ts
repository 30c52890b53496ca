/** Records over gRPC, and route A between a front and an ingest server. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Code, ConnectError, createClient, type HandlerContext, type ServiceImpl } from '@connectrpc/connect'
import { createGrpcTransport } from '@connectrpc/connect-node'
import { makeBus } from '#platform/bus.ts'
import { readSettings } from '#platform/config.ts'
import { ensureSecret } from '#platform/database/secrets.ts'
import { silentLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { makeTestApp } from '../../../test/support/app.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { Ingest } from '../../proto/capstan/ingest/v1/ingest_pb.js'
import { makeAppending } from './appending.ts'
import { makePostgresLog } from './log-postgres.ts'
import { prepareRecord } from './record.ts'
import { makeRelay, relayHeader } from './relay.ts'
import { appendRight } from './requests.ts'
import { addIngestRpc } from './rpc.ts'
import { ingestSettings } from './settings.ts'
import { findStream } from './stream-store.ts'
import { makeStreams, withCurrent } from './streams.ts'
import { makeAdmin, makeSender, readAll, untilCounted } from './test-support.ts'

const server = await makeTestApp()
const [admin, ann] = [await makeAdmin(server), await makeSender(server, 'ann')]
const transport = createGrpcTransport({ baseUrl: `http://127.0.0.1:${server.app.grpcPort}` })
const client = createClient(Ingest, transport)
const schema = { type: 'object', required: ['id'], properties: { id: { type: 'integer' } } }
for (const name of ['one', 'streamed', 'relayed']) {
  await admin.put(`/v1/streams/${name}`, { schema, readers: 'users', dimensions: ['kind'] })
}

const failsWith = (code: Code) => (error: unknown) => error instanceof ConnectError && error.code === code

test('records of one call go in by route A, the wrong ones are told apart', async () => {
  const records = ['{"id":1}', '{"id":"x"}', '{"id":2}', '{"id":3}', '{', '{"id":4}']
  const { taken, refused } = await client.append({ stream: 'one', records }, { headers: ann.headers })
  assert.deepEqual(
    taken.map(each => [Number(each.index), Number(each.count)]),
    [
      [0, 1],
      [2, 2],
      [5, 1],
    ],
  )
  assert.deepEqual(
    refused.map(each => [Number(each.index), each.code]),
    [
      [1, 'record_invalid'],
      [4, 'record_not_json'],
    ],
  )
  const stored = new Map((await readAll(ann, 'one')).map(each => [each.offset, each]))
  assert.deepEqual(
    taken.map(each => stored.get(each.firstOffset)!.record.id),
    [1, 2, 4],
  )
  assert.ok([...stored.values()].every(each => each.route === 'a'))
  await assert.rejects(
    client.append({ stream: 'none', records: ['{}'] }, { headers: ann.headers }),
    failsWith(Code.NotFound),
  )
  await assert.rejects(client.append({ stream: 'one', records: ['{}'] }), failsWith(Code.Unauthenticated))
})

test('a stream of calls is taken whole, in order, and counted', async () => {
  async function* messages() {
    for (let from = 0; from < 10_000; from += 500) {
      yield {
        stream: 'streamed',
        records: Array.from({ length: 500 }, (_, n) => `{"id":${from + n},"kind":"${n % 3}"}`),
      }
    }
    yield { stream: 'streamed', records: ['{}', '{"id":10000}'] }
  }
  const answer = await client.appendStream(messages(), { headers: ann.headers })
  assert.deepEqual([answer.taken, answer.refused], [10_001n, 1n])
  assert.deepEqual(
    answer.firstRefused.map(each => [each.index, each.code]),
    [[10_000n, 'record_invalid']],
  )
  assert.deepEqual(
    (await readAll(ann, 'streamed')).map(each => each.record.id),
    Array.from({ length: 10_001 }, (_, id) => id),
  )
  await untilCounted(ann, 'streamed', 10_001)
})

test('what fronts call is shut for everybody else', async () => {
  const bunches = [{ stream: 'relayed', texts: ['{"anything":1}'] }]
  for (const headers of [{}, ann.headers, { [relayHeader]: '0'.repeat(64) }, { [relayHeader]: '' }]) {
    await assert.rejects(
      client.relay({ bunches }, { headers: headers as Record<string, string> }),
      failsWith(Code.Unauthenticated),
    )
  }
  assert.deepEqual(await readAll(ann, 'relayed'), [])
})

/** A front of its own that no wake-up reaches, and what it needs to know of its ingest server. */
async function makeFront() {
  const key = (await ensureSecret(server.db, { name: 'ingest.relay', bytes: 32 })).toString('hex')
  const url = `http://127.0.0.1:${server.app.grpcPort}`
  const relay = makeRelay({ url, key, waitingMax: 1000, log: silentLog })
  atEnd(async () => relay.stop())
  const metrics = makeMetrics({ processMetrics: false })
  const { db } = server
  const store = makePostgresLog({ db, metrics, onAppended: () => {}, waitingMax: 1000, clock: Date.now })
  // Time stands still for it: what it has looked up it believes until it is told.
  const settings = readSettings(ingestSettings, {})
  const streams = makeStreams({
    db,
    bus: makeBus({ db, redisUrl: undefined, log: silentLog }),
    settings,
    clock: () => 0,
  })
  return { key, relay, streams, appending: makeAppending({ db, store, logA: relay }) }
}

/** Deletes it and declares another one of its name, whose records have a `word`. */
async function declareAnew(name: string, more: Record<string, unknown> = {}) {
  assert.equal((await admin.delete(`/v1/streams/${name}`)).status, 204)
  const other = { type: 'object', required: ['word'], properties: { word: { type: 'string' } } }
  assert.equal((await admin.put(`/v1/streams/${name}`, { schema: other, readers: 'users', ...more })).status, 201)
}

test('records for a stream that was declared anew do not get into its namesake unchecked', async () => {
  await admin.put('/v1/streams/renewed', { schema, readers: 'users' })
  const { key, relay, streams, appending } = await makeFront()
  const old = await streams.get('renewed')
  const headers = { [relayHeader]: key }
  // The ingest server, too, knows the old one.
  await relay.append(old, { texts: ['{"id":1}'], keys: [] })
  for (const routes of [
    { a: 100, b: 0 },
    { a: 0, b: 100 },
    { a: 50, b: 50 },
  ]) {
    const stale = await streams.get('renewed')
    await declareAnew('renewed', { routes })
    const bunches = [{ stream: 'renewed', streamId: stale.id, texts: ['{"id":2}'] }]
    const { places } = await client.relay({ bunches }, { headers })
    assert.deepEqual(
      places.map(({ code, status, first }) => [code, status, first]),
      [['stream_changed', 409, 0n]],
    )
    const find = () => streams.get('renewed')
    const given = ['{"word":"x"}', '{"id":3}'].map(text => ({ value: { text, key: '[]', sticky: undefined } }))
    const outcomes = await appendRight({ appending, streams, stream: stale, find }, given)
    assert.deepEqual(
      outcomes.map(each => ('value' in each ? each.value.offset : (each.error as { code: string }).code)),
      ['1', 'record_invalid'],
    )
    assert.deepEqual(
      (await readAll(ann, 'renewed')).map(each => each.record),
      [{ word: 'x' }],
    )
  }
})

test('an ingest server that knows an older stream than its front looks it up again', async () => {
  await admin.put('/v1/streams/overtaken', { schema, readers: 'users' })
  const { key, relay, streams } = await makeFront()
  // As the server's: it knows the old one and hears of no other.
  await streams.get('overtaken')
  await declareAnew('overtaken')
  let methods: Partial<ServiceImpl<typeof Ingest>> = {}
  const rpc = {
    addService(_: unknown, { implementation }: { implementation: Partial<ServiceImpl<typeof Ingest>> }) {
      methods = implementation
    },
  }
  addIngestRpc(rpc as unknown as Parameters<typeof addIngestRpc>[0], { streams, log: relay, key, onRefused: () => {} })
  const current = (await findStream(server.db, 'overtaken'))!
  const bunches = [{ stream: 'overtaken', streamId: current.id, texts: ['{"word":"x"}'] }]
  const context = { requestHeader: new Headers({ [relayHeader]: key }) } as unknown as HandlerContext
  const { places } = await methods.relay!({ bunches } as Parameters<NonNullable<typeof methods.relay>>[0], context)
  assert.deepEqual(
    places!.map(({ code, first }) => [code, first]),
    [[undefined, 1n]],
  )
  assert.equal((await readAll(ann, 'overtaken')).length, 1)
})

test('a front that knows a deleted stream looks it up again, once', async () => {
  await admin.put('/v1/streams/passing', { schema, readers: 'users', routes: { a: 100, b: 0 } })
  const { streams, appending } = await makeFront()
  const find = () => streams.get('passing')
  const seen: number[] = []
  const put = (text: string) =>
    withCurrent(streams, find, stream => {
      seen.push(stream.id)
      return appending.appendOne(stream, prepareRecord(stream.rules, text))
    })
  const first = await find()
  assert.equal((await put('{"id":1}')).offset, '1')
  await declareAnew('passing', { routes: { a: 100, b: 0 }, schema: {} })
  assert.equal((await put('{"id":2,"word":"x"}')).offset, '1')
  const second = await find()
  assert.deepEqual(seen, [first.id, first.id, second.id])
  assert.equal((await admin.delete('/v1/streams/passing')).status, 204)
  await assert.rejects(put('{"id":3}'), { code: 'stream_not_found' })
})
