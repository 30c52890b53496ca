/** gRPC in a whole Capstan: one login for it and HTTP, one ledger behind both. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Ledger, TransferStatus } from '../server/proto/capstan/ledger/v1/ledger_pb.js'
import { Health, HealthCheckResponse_ServingStatus as Status } from '../server/proto/grpc/health/v1/health_pb.js'
import { makeTestApp } from './support/app.ts'
import { makeGrpcClient, statusOf } from './support/grpc.ts'
import { makeUser, send } from './support/http.ts'
import { until } from './support/until.ts'

const { app, url, complaints } = await makeTestApp()
const port = app.grpcPort!
const ann = await makeUser({ url }, 'ann')

test('who is logged in over HTTP is known over gRPC, and what one opens the other shows', async () => {
  const client = makeGrpcClient(Ledger, port, { token: ann.token })
  const opened = await client.unary('openAccount', { currency: 'USD' })
  assert.equal((await ann.get({ url }, `/v1/accounts/${opened.id}`)).body.owner, 'ann')
  const stranger = await makeGrpcClient(Ledger, port, { token: `${ann.token}x` })
    .unary('getAccount', { id: opened.id })
    .catch(error => error)
  assert.equal(statusOf(stranger).code, 'unauthenticated')
})

test('an API key does over gRPC what its scopes say, until it is revoked', async () => {
  const made = await ann.post({ url }, '/v1/auth/api-keys', { name: 'reads', scopes: ['ledger:read'] })
  assert.equal(made.status, 201)
  const client = makeGrpcClient(Ledger, port, { token: made.body.key })
  assert.equal((await client.unary('listAccounts', {})).accounts.length, 1)
  const written = await client.unary('openAccount', { currency: 'EUR' }).catch(error => error)
  assert.deepEqual(statusOf(written), {
    status: 'PERMISSION_DENIED',
    code: 'missing_scope',
    about: { scope: 'ledger:write' },
  })
  const authorization = { authorization: `Bearer ${ann.token}` }
  await send({ url }, 'DELETE', `/v1/auth/api-keys/${made.body.id}`, authorization)
  await until(() =>
    client.unary('listAccounts', {}).then(
      () => false,
      error => statusOf(error).code === 'unauthenticated',
    ),
  )
})

test('a banker’s deposit goes through a stream of transfers', async () => {
  const { id: userId, name, password } = await makeUser({ url }, 'banker')
  await app.identity.setRole({ userId, role: 'banker' })
  // A new role ends the sessions there were.
  const login = await send({ url }, 'POST', '/v1/auth/login', {}, { username: name, password })
  const token = login.body.access_token
  const client = makeGrpcClient(Ledger, port, { token: ann.token })
  const [from] = (await client.unary('listAccounts', {})).accounts
  const to = await client.unary('openAccount', { currency: 'USD', name: 'savings' })
  const bank = makeGrpcClient(Ledger, port, { token })
  await bank.unary('deposit', { to: from!.id, amount: 100n, currency: 'USD' })
  const pipe = client.bidi('pipeTransfers')
  for (let n = 0; n < 100; n++) {
    const transfer = { from: from!.id, to: to.id, amount: 1n, currency: 'USD' }
    pipe.write({ lines: [{ what: { case: 'transfer', value: transfer } }] })
  }
  pipe.end()
  const outcomes = (await Array.fromAsync(pipe)).flatMap(message => message.outcomes)
  assert.deepEqual([outcomes.length, outcomes.every(({ status }) => status === TransferStatus.POSTED)], [100, true])
  assert.equal((await client.unary('getAccount', { id: to.id })).balance, 100n)
})

test('health says that the ledger is served', async () => {
  const { status } = await makeGrpcClient(Health, port).unary('check', { service: 'capstan.ledger.v1.Ledger' })
  assert.equal(status, Status.SERVING)
})

test('nobody foresaw nothing', () => assert.deepEqual(complaints, []))
