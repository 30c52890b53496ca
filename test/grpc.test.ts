/** gRPC in a whole Capstan: one login for it and HTTP, one ledger behind both. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Chat } from '../server/proto/capstan/chat/v1/chat_pb.js'
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

test('messages are sent, pulled and followed over gRPC, in either order of the names', async () => {
  const [sam, tom, eve] = [
    await makeUser({ url }, 'sam'),
    await makeUser({ url }, 'tom'),
    await makeUser({ url }, 'eva'),
  ]
  const [sams, toms, eves] = [sam, tom, eve].map(({ token }) => makeGrpcClient(Chat, port, { token }))
  const message = (text: string) => ({ message: { chat: 'Sam:TOM', text, sender: 'Sam' } })
  for (const n of [1, 2, 3]) {
    const sent = await sams!.unary('send', message(`number ${n}`))
    assert.deepEqual([sent.code, sent.seq], [0, BigInt(n)])
  }
  const page = await toms!.unary('pull', { chat: 'tom:sam', limit: 2 })
  assert.deepEqual(
    page.messages.map(({ text, sender, chat }) => [text, sender, chat]),
    [
      ['number 1', 'Sam', 'tom:sam'],
      ['number 2', 'Sam', 'tom:sam'],
    ],
  )
  assert.deepEqual([page.hasMore, page.nextCursor], [true, 2n])
  assert.equal((await toms!.unary('pull', { chat: 'tom:sam' })).messages.length, 3)

  const seen: bigint[] = []
  const stream = toms!.serverStream('subscribe', { chat: 'tom:sam', after: 1n })
  const reading = (async () => {
    for await (const { messages } of stream as AsyncIterable<{ messages: { seq: bigint }[] }>)
      seen.push(...messages.map(({ seq }) => seq))
  })().catch(() => {})
  await until(() => seen.length === 2)
  await Promise.all([4, 5, 6].map(n => sams!.unary('send', message(`number ${n}`))))
  await until(() => seen.length === 5)
  assert.deepEqual(seen, [2n, 3n, 4n, 5n, 6n])
  stream.cancel()
  await reading

  const refused: [() => Promise<unknown>, string][] = [
    [() => sams!.unary('send', { message: { chat: 'sam:tom', text: 'x', sender: 'tom' } }), 'foreign_sender'],
    [() => sams!.unary('send', { message: { chat: 'sam', text: 'x', sender: 'sam' } }), 'not_two_members'],
    [() => sams!.unary('send', {}), 'not_two_members'],
    [() => sams!.unary('send', message('')), 'text_empty'],
    [() => eves!.unary('pull', { chat: 'sam:tom' }), 'not_a_member'],
    [() => toms!.unary('pull', { chat: 'sam:tom', cursor: -1n }), 'bad_message_number'],
    [() => toms!.unary('pull', { chat: 'sam:tom', limit: 10_000 }), 'bad_limit'],
  ]
  for (const [call, code] of refused) assert.equal(statusOf(await call().catch(error => error)).code, code)
})

test('who is removed from a room gets that message as the last one of its stream', async () => {
  const [una, vic] = [await makeUser({ url }, 'una'), await makeUser({ url }, 'vic')]
  const room = await una.post({ url }, '/v1/chats', { kind: 'room', name: 'Quay', members: ['vic'] })
  assert.equal(room.status, 201)
  const { id } = room.body
  const seen: bigint[] = []
  const stream = makeGrpcClient(Chat, port, { token: vic.token }).serverStream('subscribe', { chat: id })
  const ended = (async () => {
    for await (const { messages } of stream as AsyncIterable<{ messages: { seq: bigint }[] }>)
      seen.push(...messages.map(({ seq }) => seq))
  })().catch(error => error)
  const newest = async () => (await una.get({ url }, `/v1/chats/${id}`)).body.last_seq as number
  const before = await newest()
  await until(() => seen.length === before)
  const authorization = { authorization: `Bearer ${una.token}` }
  const removed = await send({ url }, 'DELETE', `/v1/chats/${id}/members/vic`, authorization)
  assert.ok(removed.status < 300, JSON.stringify(removed.body))
  await una.post({ url }, `/v1/chats/${id}/messages`, { text: 'not for vic' })
  assert.equal(statusOf(await ended).code, 'not_a_member')
  assert.equal(seen.length, before + 1)
  const again = makeGrpcClient(Chat, port, { token: vic.token }).serverStream('subscribe', { chat: id })
  const refusal = await new Promise(resolve => again.on('error', resolve).resume())
  assert.equal(statusOf(refusal).code, 'not_a_member')
})

test('nobody foresaw nothing', () => assert.deepEqual(complaints, []))
