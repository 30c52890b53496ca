/** The ledger over gRPC, by a client of another make; REST beside it says what must come out. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromDate } from '@bufbuild/protobuf/wkt'
import { Code, ConnectError, createClient } from '@connectrpc/connect'
import { createGrpcTransport } from '@connectrpc/connect-node'
import type { Caller } from '#platform/http/guard.ts'
import { silentLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { makeRpc } from '#platform/rpc/rpc.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeGrpcClient, statusOf } from '../../../test/support/grpc.ts'
import { until } from '../../../test/support/until.ts'
import {
  AccountSchema,
  AccountStatus,
  EntrySchema,
  Ledger,
  type LineOutcome,
  type LineSchema,
  type NewTransferSchema,
  TransferSchema,
  TransferStatus,
} from '../../proto/capstan/ledger/v1/ledger_pb.js'
import { ErrorInfoSchema } from '../../proto/google/rpc/error_details_pb.js'
import { fromAccount, fromEntry, fromTransfer } from './messages.ts'
import { makeTestLedger, type TestUser } from './test-support.ts'

type Line = MessageInitShape<typeof LineSchema>

const ledger = await makeTestLedger({ poolMax: 20 })
const rpc = makeRpc({
  settings: { HOST: '127.0.0.1', TRUST_PROXY: false },
  log: silentLog,
  metrics: makeMetrics({ processMetrics: false }),
  // A token is the caller itself.
  authenticate: async ({ headers }) => callerIn(headers.authorization!),
  rateLimiter: { take: async () => {}, reset: async () => {} },
  isServing: async () => true,
})
ledger.service.rpc(rpc)
const port = await rpc.start(0)
atEnd(() => rpc.stop(1000))

function callerIn(authorization: string): Caller {
  return JSON.parse(Buffer.from(authorization.replace('Bearer ', ''), 'base64url').toString()) as Caller
}
const tokenOf = ({ caller }: TestUser) => Buffer.from(JSON.stringify(caller)).toString('base64url')
const clientOf = (user: TestUser) => makeGrpcClient(Ledger, port, { token: tokenOf(user) })

let users = 0
async function newUser(balance = 0) {
  const user = ledger.user(`user${++users}`)
  const account = BigInt(await user.open(balance))
  return { user, account, client: clientOf(user) }
}

const pay = (from: bigint, to: bigint, amount: bigint, more: Line = {}): Line => ({
  what: { case: 'transfer', value: { from, to, amount, currency: 'USD' } },
  ...more,
})
const failureOf = async (call: Promise<unknown>) =>
  statusOf(
    await call.then(
      () => assert.fail('It succeeded.'),
      (error: unknown) => error,
    ),
  )
const codesOf = (outcomes: readonly LineOutcome[]) =>
  outcomes.map(({ error, status }) => error?.code ?? TransferStatus[status]!.toLowerCase())

test('every read answers what REST does', async () => {
  const ann = await newUser(1000)
  const bob = await newUser()
  const { client } = ann
  const metadata = { order: 7, tags: ['a', null, { deep: true }] }
  const made = await client.unary('createTransfer', {
    transfer: { from: ann.account, to: bob.account, amount: 100n, currency: 'USD', metadata },
  })
  const held = await client.unary('createTransfer', {
    transfer: { from: ann.account, to: bob.account, amount: 50n, currency: 'USD', pending: true, timeoutSeconds: 60 },
  })
  const given = { from: String(ann.account), to: String(bob.account) }
  const shown = async (path: string) => (await ann.user.get(path)).body

  assert.deepEqual(made, create(TransferSchema, fromTransfer(await shown(`/v1/transfers/${made.id}`))))
  assert.deepEqual(held, create(TransferSchema, fromTransfer(await shown(`/v1/transfers/${held.id}`))))
  assert.deepEqual(await client.unary('getTransfer', { id: made.id }), made)
  assert.equal(made.toBalance, undefined)
  assert.deepEqual(made.metadata, metadata)
  assert.equal((await bob.client.unary('getTransfer', { id: made.id })).toBalance, 100n)

  const account = create(AccountSchema, fromAccount(await shown(`/v1/accounts/${given.from}`)))
  assert.deepEqual(await client.unary('getAccount', { id: ann.account }), account)
  assert.deepEqual([account.balance, account.pendingOut, account.available], [900n, 50n, 850n])
  assert.deepEqual((await client.unary('listAccounts', {})).accounts, [account])
  const { entries } = await shown(`/v1/accounts/${given.from}/entries`)
  const expected = entries.map((entry: Parameters<typeof fromEntry>[0]) => create(EntrySchema, fromEntry(entry)))
  assert.deepEqual((await client.unary('listEntries', { accountId: ann.account })).entries, expected)
  const pages = await Array.fromAsync(client.serverStream('exportStatement', { accountId: ann.account }))
  assert.deepEqual(
    pages.flatMap(page => page.entries),
    expected,
  )
  assert.deepEqual((await client.unary('listTransfers', { accountId: ann.account })).transfers[0], made)
  assert.deepEqual((await client.unary('listHolds', { accountId: ann.account })).holds, [held])
  const { currencies } = await makeGrpcClient(Ledger, port).unary('listCurrencies', {})
  assert.equal(currencies.find(({ code }) => code === 'JPY')!.exponent, 0)
})

test('lists go on where a cursor says, and times bound them', async () => {
  const ann = await newUser(100)
  const bob = await newUser()
  for (let n = 0; n < 4; n++)
    await ann.client.unary('createTransfer', { transfer: pay(ann.account, bob.account, 1n).what!.value as never })
  const seen: bigint[] = []
  let cursor = ''
  do {
    const page = await ann.client.unary('listEntries', { accountId: ann.account, limit: 2, cursor })
    seen.push(...page.entries.map(entry => entry.version))
    cursor = page.nextCursor
  } while (cursor)
  assert.deepEqual(seen, [1n, 2n, 3n, 4n, 5n])
  const { entries } = await ann.client.unary('listEntries', { accountId: ann.account })
  const [first, second] = entries
  const before = await ann.client.unary('listEntries', { accountId: ann.account, to: second!.createdAt })
  assert.deepEqual(
    before.entries.map(entry => entry.version),
    [1n],
  )
  const { balance, version } = await ann.client.unary('getBalanceAt', { accountId: ann.account, at: first!.createdAt })
  assert.deepEqual([balance, version], [100n, 1n])
})

test('accounts are opened, once a key, and closed', async () => {
  const { client } = await newUser()
  const wish = { currency: 'EUR', name: 'savings', metadata: { a: 1, b: 2 }, idempotencyKey: 'open' }
  const opened = await client.unary('openAccount', wish)
  assert.equal(opened.status, AccountStatus.OPEN)
  // Some clients send the fields of a map in another order each time.
  assert.equal((await client.unary('openAccount', { ...wish, metadata: { b: 2, a: 1 } })).id, opened.id)
  assert.equal((await failureOf(client.unary('openAccount', { ...wish, name: 'x' }))).code, 'idempotency_key_reused')
  const again = await failureOf(client.unary('openAccount', { ...wish, idempotencyKey: '' }))
  assert.deepEqual([again.status, again.code], ['ALREADY_EXISTS', 'account_exists'])
  assert.equal((await client.unary('closeAccount', { id: opened.id })).status, AccountStatus.CLOSED)
})

test('a transfer with a key is made once, by whatever call', async () => {
  const ann = await newUser(100)
  const bob = await newUser()
  const { client } = ann
  const transfer = { from: ann.account, to: bob.account, amount: 10n, currency: 'USD', metadata: { x: 1, y: 2 } }
  const first = await client.unary('createTransfer', { transfer, idempotencyKey: 'k' })
  const reordered = { ...transfer, metadata: { y: 2, x: 1 } }
  assert.equal((await client.unary('createTransfer', { transfer: reordered, idempotencyKey: 'k' })).id, first.id)
  const header = { metadata: { 'idempotency-key': 'k' } }
  assert.equal((await client.unary('createTransfer', { transfer }, header)).id, first.id)
  const line: Line = { what: { case: 'transfer', value: transfer }, idempotencyKey: 'k' }
  assert.equal((await client.unary('createTransfers', { lines: [line] })).outcomes[0]!.id, first.id)
  const stream = client.clientStream('streamTransfers')
  stream.call.write({ lines: [line] })
  stream.call.end()
  assert.equal((await stream.answer).outcomes[0]!.id, first.id)
  const other = { transfer: { ...transfer, amount: 11n }, idempotencyKey: 'k' }
  const reused = await failureOf(client.unary('createTransfer', other))
  assert.deepEqual([reused.status, reused.code], ['FAILED_PRECONDITION', 'idempotency_key_reused'])
  const bad = await failureOf(client.unary('createTransfer', { transfer, idempotencyKey: 'é' }))
  assert.deepEqual([bad.status, bad.code], ['INVALID_ARGUMENT', 'bad_idempotency_key'])
  assert.equal((await client.unary('getAccount', { id: ann.account })).balance, 90n)
})

const refusals: [what: string, change: MessageInitShape<typeof NewTransferSchema>, status: string, code: string][] = [
  ['an amount of nothing', { amount: 0n }, 'INVALID_ARGUMENT', 'amount_zero'],
  ['a negative amount', { amount: -5n }, 'INVALID_ARGUMENT', 'amount_negative'],
  ['no account', { to: 0n }, 'INVALID_ARGUMENT', 'bad_id'],
  ['an id past what is exact', { to: 2n ** 60n }, 'INVALID_ARGUMENT', 'bad_id'],
  ['an unknown account', { to: 999_999n }, 'NOT_FOUND', 'account_not_found'],
  ['a currency that is none', { currency: 'QQQ' }, 'INVALID_ARGUMENT', 'unknown_currency'],
  ['another currency', { currency: 'EUR' }, 'INVALID_ARGUMENT', 'currency_mismatch'],
  ['too much money', { amount: 1001n }, 'FAILED_PRECONDITION', 'insufficient_funds'],
  ['all there can be', { amount: 2n ** 63n - 1n }, 'FAILED_PRECONDITION', 'insufficient_funds'],
  ['a time without a hold', { timeoutSeconds: 5 }, 'INVALID_ARGUMENT', 'bad_timeout'],
  ['a hold of no time', { pending: true, timeoutSeconds: 0 }, 'INVALID_ARGUMENT', 'bad_timeout'],
  ['large metadata', { metadata: { x: 'x'.repeat(5000) } }, 'INVALID_ARGUMENT', 'bad_metadata'],
]

test('what is wrong with a transfer is said by its own code, alone, in a batch and in a stream', async () => {
  const ann = await newUser(1000)
  const bob = await newUser()
  const good = { from: ann.account, to: bob.account, amount: 1n, currency: 'USD' }
  for (const [what, change, status, code] of refusals) {
    const failed = await failureOf(ann.client.unary('createTransfer', { transfer: { ...good, ...change } }))
    assert.deepEqual([failed.status, failed.code], [status, code], what)
  }
  const lines = refusals.map(([, change]): Line => ({ what: { case: 'transfer', value: { ...good, ...change } } }))
  lines.push({}, { what: { case: 'void', value: { id: 999_999n } } })
  const expected = [...refusals.map(([, , , code]) => code), 'amount_zero', 'hold_not_found']
  const { outcomes } = await ann.client.unary('createTransfers', { lines })
  assert.deepEqual(codesOf(outcomes), expected)
  assert.equal(outcomes[4]!.error!.details.account_id, '999999')
  const stream = ann.client.clientStream('streamTransfers')
  stream.call.write({ lines })
  stream.call.end()
  assert.deepEqual(codesOf((await stream.answer).outcomes), expected)
  const other = await failureOf(bob.client.unary('createTransfer', { transfer: good }))
  assert.deepEqual([other.status, other.code], ['PERMISSION_DENIED', 'foreign_account'])
})

test('requests that are not as they must be are refused', async () => {
  const { client, account } = await newUser()
  const calls: [Promise<unknown>, string][] = [
    [client.unary('listAccounts', { limit: 1001 }), 'validation_failed'],
    [client.unary('listAccounts', { limit: -1 }), 'validation_failed'],
    [client.unary('listAccounts', { cursor: 'x' }), 'bad_cursor'],
    [client.unary('getBalanceAt', { accountId: account }), 'validation_failed'],
    [client.unary('getBalanceAt', { accountId: account, at: { seconds: 2n ** 62n } }), 'bad_range'],
    [client.unary('createTransfers', {}), 'batch_empty'],
    [client.unary('openAccount', { currency: 'EUR', floor: -1n }), 'overdraft_not_yours'],
    [client.unary('openAccount', { currency: 'EUR', floor: 1n }), 'bad_floor'],
    [client.unary('openAccount', { currency: 'EUR', name: 'a\0' }), 'bad_text'],
    [client.unary('getTransfer', { id: 999_999n }), 'transfer_not_found'],
  ]
  for (const [call, code] of calls) assert.equal((await failureOf(call)).code, code)
  const range = { from: timestampFromDate(new Date(1000)), to: timestampFromDate(new Date(0)) }
  const backwards = Array.fromAsync(client.serverStream('exportStatement', { accountId: account, ...range }))
  assert.equal((await failureOf(backwards)).code, 'bad_range')
})

test('callers need their scopes and roles, as over HTTP', async () => {
  const ann = await newUser(10)
  const reader = clientOf(ledger.user(`user${users}`, 'user', ['ledger:read']))
  assert.equal((await reader.unary('getAccount', { id: ann.account })).balance, 10n)
  const wanting = [reader.unary('closeAccount', { id: ann.account }), streamOf(reader).answer]
  for (const call of wanting) assert.equal((await failureOf(call)).code, 'missing_scope')
  assert.equal((await failureOf(makeGrpcClient(Ledger, port).unary('getAccount', { id: 1n }))).code, 'unauthenticated')
  const deposit = { to: ann.account, amount: 5n, currency: 'USD' }
  assert.equal((await failureOf(ann.client.unary('deposit', deposit))).code, 'forbidden')

  const bank = clientOf(ledger.banker)
  const deposited = await bank.unary('deposit', { ...deposit, idempotencyKey: 'd' })
  assert.equal((await bank.unary('deposit', { ...deposit, idempotencyKey: 'd' })).id, deposited.id)
  assert.equal(deposited.toBalance, 15n)
  const withdrawn = await bank.unary('withdraw', { from: ann.account, amount: 15n, currency: 'USD' })
  assert.equal(withdrawn.fromBalance, 0n)
})

function streamOf(client: typeof ledgerClient) {
  const stream = client.clientStream('streamTransfers')
  stream.call.on('error', () => {})
  stream.call.end()
  return stream
}
const ledgerClient = makeGrpcClient(Ledger, port)

test('holds are posted and voided, and transfers reversed, alone and in batches that stand or fall together', async () => {
  const ann = await newUser(100)
  const bob = await newUser()
  const hold = (amount: bigint) => ({ from: ann.account, to: bob.account, amount, currency: 'USD', pending: true })
  const [one, two, three] = await Promise.all(
    [10n, 20n, 30n].map(amount => ann.client.unary('createTransfer', { transfer: hold(amount) })),
  )
  const posted = await bob.client.unary('postTransfer', { id: one!.id, amount: 4n, idempotencyKey: 'p' })
  assert.deepEqual([posted.amount, posted.holdId, posted.toBalance], [4n, one!.id, 4n])
  assert.equal((await bob.client.unary('postTransfer', { id: one!.id, amount: 4n, idempotencyKey: 'p' })).id, posted.id)
  assert.equal((await failureOf(ann.client.unary('voidTransfer', { id: two!.id }))).code, 'hold_not_yours')
  assert.equal((await bob.client.unary('voidTransfer', { id: two!.id })).status, TransferStatus.VOIDED)
  const reversed = await bob.client.unary('reverseTransfer', { id: posted.id, metadata: { why: 'mistake' } })
  assert.deepEqual([reversed.reversesId, reversed.metadata], [posted.id, { why: 'mistake' }])
  const post: Line = { what: { case: 'post', value: { id: three!.id } }, linked: true }
  const reverse: Line = { what: { case: 'reverse', value: { id: posted.id } } }
  const { outcomes } = await bob.client.unary('createTransfers', { lines: [post, reverse] })
  assert.deepEqual(codesOf(outcomes), ['chain_failed', 'already_reversed'])
  const alone = await bob.client.unary('createTransfers', { lines: [{ ...post, linked: false }] })
  assert.deepEqual(codesOf(alone.outcomes), ['posted'])
})

test('five thousand transfers go through one stream, each carried out before the next, refused ones among them', async () => {
  const ann = await newUser(10_000)
  const bob = await newUser()
  const stream = ann.client.clientStream('streamTransfers')
  const lines = Array.from({ length: 5000 }, (_, n) =>
    // Every tenth is refused; bob's money is never ann's to send.
    n % 10 === 0 ? pay(bob.account, ann.account, 1n) : pay(ann.account, bob.account, 2n),
  )
  for (const line of lines) if (!stream.call.write({ lines: [line] })) await once(stream.call, 'drain')
  stream.call.end()
  const { received, done, refused, refusedByCode, outcomes } = await stream.answer
  assert.deepEqual([received, done, refused], [5000n, 4500n, 500n])
  assert.deepEqual(refusedByCode, { foreign_account: 500n })
  assert.deepEqual(
    codesOf(outcomes),
    lines.map((_, n) => (n % 10 === 0 ? 'foreign_account' : 'posted')),
  )
  const ids = outcomes.map(outcome => outcome.id).filter(Boolean)
  assert.deepEqual(
    ids.toSorted((a, b) => Number(a - b)),
    ids,
  )
  assert.equal((await ann.client.unary('getAccount', { id: ann.account })).balance, 1000n)
})

test('a summary has the first ten thousand outcomes, and counts the rest', async () => {
  const ann = await newUser(1)
  const stream = ann.client.clientStream('streamTransfers')
  const wrong = Array.from({ length: 1000 }, () => pay(ann.account, ann.account, 1n))
  for (let n = 0; n < 11; n++) stream.call.write({ lines: wrong })
  stream.call.end()
  const { received, outcomes, refusedByCode } = await stream.answer
  assert.deepEqual([received, outcomes.length, refusedByCode], [11_000n, 10_000, { same_account: 11_000n }])
})

test('a pipe answers while more is sent, so that what comes in can be sent on', async () => {
  const ann = await newUser(5)
  const savings = BigInt(await ann.user.open(0, { name: 'savings' }))
  const pipe = ann.client.bidi('pipeTransfers')
  const answers = pipe[Symbol.asyncIterator]()
  pipe.write({ lines: [pay(ann.account, savings, 5n)] })
  assert.deepEqual(codesOf((await answers.next()).value!.outcomes), ['posted'])
  // Each needs the one before it.
  pipe.write({ lines: [pay(ann.account, savings, 5n), pay(savings, ann.account, 5n)] })
  pipe.write({ lines: [pay(ann.account, savings, 5n)] })
  pipe.end()
  const rest: LineOutcome[] = []
  for (let next = await answers.next(); !next.done; next = await answers.next()) rest.push(...next.value.outcomes)
  assert.deepEqual(codesOf(rest), ['insufficient_funds', 'posted', 'posted'])
})

test('what a stream that is cut off acknowledged is there, and sent again all of it is there once', async () => {
  const ann = await newUser(10_000)
  const bob = await newUser()
  const lines = Array.from({ length: 3000 }, (_, n) => pay(ann.account, bob.account, 1n, { idempotencyKey: `cut${n}` }))
  const pipe = ann.client.bidi('pipeTransfers')
  const acknowledged: bigint[] = []
  pipe.on('error', () => {})
  pipe.on('data', ({ outcomes }) => {
    acknowledged.push(...outcomes.map((outcome: LineOutcome) => outcome.id))
    pipe.cancel()
  })
  for (const line of lines) pipe.write({ lines: [line] })
  await once(pipe, 'error')
  assert.ok(acknowledged.length > 0 && acknowledged.length < lines.length)
  const { rows } = await ledger.db.query<{ id: number }>('select id from ledger.transfers where from_id = $1', [
    Number(ann.account),
  ])
  const stored = new Set(rows.map(row => BigInt(row.id)))
  for (const id of acknowledged) assert.ok(stored.has(id), `transfer ${id}`)

  const again = ann.client.bidi('pipeTransfers')
  for (const line of lines) again.write({ lines: [line] })
  again.end()
  const outcomes = (await Array.fromAsync(again)).flatMap(message => message.outcomes)
  assert.deepEqual(
    outcomes.slice(0, acknowledged.length).map(outcome => outcome.id),
    acknowledged,
  )
  assert.equal((await ann.client.unary('getAccount', { id: ann.account })).balance, 7000n)
})

test('a message with too many lines ends a stream, and what came before it is done', async () => {
  const ann = await newUser(10)
  const bob = await newUser()
  const pipe = ann.client.bidi('pipeTransfers')
  const outcomes: LineOutcome[] = []
  pipe.on('data', message => outcomes.push(...message.outcomes))
  pipe.write({ lines: [pay(ann.account, bob.account, 1n)] })
  pipe.write({ lines: Array.from({ length: 1001 }, () => pay(ann.account, bob.account, 1n)) })
  const [error] = await once(pipe, 'error')
  assert.deepEqual([statusOf(error).status, statusOf(error).code], ['RESOURCE_EXHAUSTED', 'batch_too_long'])
  assert.deepEqual(codesOf(outcomes), ['posted'])
  assert.equal((await ann.client.unary('getAccount', { id: ann.account })).balance, 9n)
})

test('Connect’s own client gets the same answers and codes', async () => {
  const ann = await newUser(10)
  const bob = await newUser()
  const client = createClient(Ledger, createGrpcTransport({ baseUrl: `http://127.0.0.1:${port}` }))
  const headers = { authorization: `Bearer ${tokenOf(ann.user)}` }
  const transfer = { from: ann.account, to: bob.account, amount: 4n, currency: 'USD' }
  assert.equal((await client.createTransfer({ transfer }, { headers })).fromBalance, 6n)
  const error = await client
    .createTransfer({ transfer: { ...transfer, amount: 7n } }, { headers })
    .catch(thrown => thrown)
  assert.ok(error instanceof ConnectError)
  assert.equal(error.code, Code.FailedPrecondition)
  const [info] = error.findDetails(ErrorInfoSchema)
  assert.deepEqual([info!.reason, info!.domain], ['insufficient_funds', 'capstan'])
  async function* lines() {
    for (let n = 0; n < 3; n++) yield { lines: [pay(ann.account, bob.account, 1n)] }
  }
  const answers = await Array.fromAsync(client.pipeTransfers(lines(), { headers }))
  assert.deepEqual(codesOf(answers.flatMap(answer => answer.outcomes)), ['posted', 'posted', 'posted'])
})

test('a stop answers what a stream has read, and says that it stopped', async () => {
  const graceMs = 5000
  const other = makeRpc({
    settings: { HOST: '127.0.0.1', TRUST_PROXY: false },
    log: silentLog,
    metrics: makeMetrics({ processMetrics: false }),
    authenticate: async ({ headers }) => callerIn(headers.authorization!),
    rateLimiter: { take: async () => {}, reset: async () => {} },
    isServing: async () => true,
  })
  ledger.service.rpc(other)
  const ann = await newUser(10_000)
  const bob = await newUser()
  const client = makeGrpcClient(Ledger, await other.start(0), { token: tokenOf(ann.user) })
  const pipe = client.bidi('pipeTransfers')
  const acknowledged: bigint[] = []
  pipe.on('data', ({ outcomes }) => acknowledged.push(...outcomes.map((outcome: LineOutcome) => outcome.id)))
  const errored = once(pipe, 'error')
  for (let n = 0; n < 2000; n++) pipe.write({ lines: [pay(ann.account, bob.account, 1n)] })
  await until(() => acknowledged.length > 0)
  const begun = performance.now()
  await other.stop(graceMs)
  assert.ok(performance.now() - begun < graceMs, 'the lines that nobody read hold nothing up')
  const [error] = await errored
  assert.equal(statusOf(error).status, 'UNAVAILABLE')
  // Everything that was made was told.
  const account = await ann.client.unary('getAccount', { id: ann.account })
  assert.equal(account.balance, BigInt(10_000 - acknowledged.length))
})

test('after all of it the books are in order', () => ledger.assertSound())
