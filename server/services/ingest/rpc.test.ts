/** Records over gRPC, and route A between a front and an ingest server. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Code, ConnectError, createClient } from '@connectrpc/connect'
import { createGrpcTransport } from '@connectrpc/connect-node'
import { makeTestApp } from '../../../test/support/app.ts'
import { Ingest } from '../../proto/capstan/ingest/v1/ingest_pb.js'
import { relayHeader } from './relay.ts'
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
