/** The old bank's contract, as a client written for it sees it. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { makeBus } from '#platform/bus.ts'
import { silentLog } from '#platform/log.ts'
import { makeIdentity } from '#services/identity/index.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { readAllSettings } from '../../app.ts'
import { makeTestLedger } from './test-support.ts'

const secretsDir = mkdtempSync(path.join(tmpdir(), 'capstan-ledger-'))
const settings = readAllSettings({ NODE_ENV: 'test' })
const ledger = await makeTestLedger({
  identity: db => {
    const bus = makeBus({ db, redisUrl: undefined, log: silentLog })
    const identity = makeIdentity({ db, bus, log: silentLog, settings, platform: settings, scopes: [], secretsDir })
    atEnd(() => identity.stop())
    return identity
  },
})
atEnd(() => rmSync(secretsDir, { recursive: true, force: true }))

async function makeClient(username: string) {
  const credentials = { username, password: `password of ${username}` }
  const wish = { ...credentials, full_name: 'Full Name', email: `${username}@example.com` }
  const made = await ledger.send(undefined, 'POST', '/users', { body: wish })
  assert.equal(made.status, 200, made.text)
  const login = await ledger.send(undefined, 'POST', '/users/login', { body: credentials })
  assert.equal(login.status, 200, login.text)
  const token = login.body.access_token as string
  return {
    wish,
    made: made.body,
    login: login.body,
    get: (url: string) => ledger.send(undefined, 'GET', url, { token }),
    post: (url: string, body: unknown, key?: string) =>
      ledger.send(undefined, 'POST', url, { body, token, ...(key ? { key } : {}) }),
  }
}

const ann = await makeClient('ann')
const bob = await makeClient('bob')
const annsAccount = (await ann.post('/accounts', { currency: 'USD' })).body
const bobsAccount = (await bob.post('/accounts', { currency: 'USD' })).body
await ledger.admin.post('/v1/deposits', { to: String(annsAccount.id), amount: '1000', currency: 'USD' })
const order = { from_account_id: annsAccount.id, to_account_id: bobsAccount.id, amount: 100, currency: 'USD' }

test('users are made, log in and renew their access', async () => {
  assert.deepEqual(Object.keys(ann.made), ['username', 'full_name', 'email', 'password_changed_at', 'created_at'])
  assert.deepEqual([ann.made.username, ann.made.full_name, ann.made.email], ['ann', 'Full Name', 'ann@example.com'])
  const taken = await ledger.send(undefined, 'POST', '/users', { body: ann.wish })
  assert.deepEqual([taken.status, Object.keys(taken.body)], [403, ['error']])
  const wrong = await ledger.send(undefined, 'POST', '/users/login', {
    body: { username: 'ann', password: 'no, wrong' },
  })
  assert.deepEqual([wrong.status, Object.keys(wrong.body)], [401, ['error']])
  const { session_id: _, ...shown } = ann.login.user
  assert.deepEqual(shown, ann.made)
  for (const field of ['session_id', 'access_token_expires_at', 'refresh_token_expires_at'])
    assert.ok(ann.login[field], field)
  const { refresh_token } = ann.login
  // An old client keeps its refresh token for ever.
  for (let n = 0; n < 2; n++) {
    const renewed = await ledger.send(undefined, 'POST', '/tokens/renew_access', { body: { refresh_token } })
    assert.deepEqual([renewed.status, Object.keys(renewed.body)], [200, ['access_token', 'access_token_expires_at']])
  }
})

test('a full name comes back as it was given, and what cannot be one is refused', async () => {
  const make = (username: string, full_name: unknown) =>
    ledger.send(undefined, 'POST', '/users', {
      body: { username, password: 'a password', email: `${username}@example.com`, full_name },
    })
  const made = await make('asa', 'Åsa Ñandú 王')
  assert.deepEqual([made.status, made.body.full_name], [200, 'Åsa Ñandú 王'])
  for (const wrong of [
    '',
    'x'.repeat(201),
    'x'.repeat(1001),
    'nul\u0000',
    'two\nlines',
    '\ud800lone',
    7,
    null,
    ['a'],
    {},
  ]) {
    const answer = await make('odd', wrong)
    assert.deepEqual([answer.status, Object.keys(answer.body)], [400, ['error']], JSON.stringify(wrong))
  }
  assert.equal((await make('odd', 'x'.repeat(200))).status, 200, 'no refusal made the user')
})

test('an account is shown to its owner', async () => {
  assert.deepEqual(Object.keys(annsAccount), ['id', 'owner', 'balance', 'currency', 'created_at'])
  assert.deepEqual([annsAccount.owner, annsAccount.balance, annsAccount.currency], ['ann', 0, 'USD'])
  const { status, body } = await ann.get(`/accounts/${annsAccount.id}`)
  assert.equal(status, 200)
  assert.equal(typeof body.balance, 'number')
  const twice = await ann.post('/accounts', { currency: 'USD' })
  assert.deepEqual([twice.status, Object.keys(twice.body)], [403, ['error']])
})

test('accounts are listed by pages', async () => {
  const cat = await makeClient('cat')
  for (const currency of ['USD', 'EUR', 'CAD', 'JPY', 'GBP', 'CHF']) await cat.post('/accounts', { currency })
  const list = async (page: number) => (await cat.get(`/accounts?page_id=${page}&page_size=5`)).body
  const currencies = (rows: { currency: string }[]) => rows.map(row => row.currency)
  assert.deepEqual(currencies(await list(1)), ['USD', 'EUR', 'CAD', 'JPY', 'GBP'])
  assert.deepEqual(currencies(await list(2)), ['CHF'])
  assert.deepEqual(await list(3), [])
})

test('a transfer is answered with both accounts and both entries', async () => {
  const { status, body } = await ann.post('/transfers', order)
  assert.equal(status, 200)
  assert.deepEqual(Object.keys(body), ['transfer', 'from_account', 'to_account', 'from_entry', 'to_entry'])
  assert.deepEqual(Object.keys(body.transfer), ['id', 'from_account_id', 'to_account_id', 'amount', 'created_at'])
  assert.deepEqual(Object.keys(body.to_entry), ['id', 'account_id', 'amount', 'created_at'])
  assert.deepEqual([body.from_account.balance, body.to_account.balance], [900, 100])
  assert.deepEqual([body.from_entry.amount, body.to_entry.amount, body.transfer.amount], [-100, 100, 100])
  assert.deepEqual([body.from_account.owner, body.to_account.owner], ['ann', 'bob'])
  assert.notEqual(body.from_entry.id, body.to_entry.id)
})

test('a retried request with a key pays once', async () => {
  const [first, second] = [await ann.post('/transfers', order, 'again'), await ann.post('/transfers', order, 'again')]
  assert.equal(first.body.transfer.id, second.body.transfer.id)
  assert.equal((await ann.get(`/accounts/${annsAccount.id}`)).body.balance, 800)
})

const refusals: [string, () => Promise<{ status: number; body: unknown }>, number][] = [
  ['an unknown account', () => ann.get('/accounts/999999'), 404],
  ['an account id that is none', () => ann.get('/accounts/0'), 400],
  ['another’s account', () => ann.get(`/accounts/${bobsAccount.id}`), 401],
  ['a page too small', () => ann.get('/accounts?page_id=1&page_size=4'), 400],
  ['no page', () => ann.get('/accounts'), 400],
  ['no token', () => ledger.send(undefined, 'GET', `/accounts/${annsAccount.id}`), 401],
  ['another’s money', () => bob.post('/transfers', order), 401],
  ['another currency', () => ann.post('/transfers', { ...order, currency: 'EUR' }), 400],
  ['no currency', () => ann.post('/transfers', { ...order, currency: 'XYZ' }), 400],
  ['an unknown receiver', () => ann.post('/transfers', { ...order, to_account_id: 999_999 }), 404],
  ['amount zero', () => ann.post('/transfers', { ...order, amount: 0 }), 400],
  ['a negative amount', () => ann.post('/transfers', { ...order, amount: -1 }), 400],
  ['a fraction', () => ann.post('/transfers', { ...order, amount: 1.5 }), 400],
  ['a text as amount', () => ann.post('/transfers', { ...order, amount: '100' }), 400],
  ['an amount past 2^53', () => ann.post('/transfers', { ...order, amount: 2 ** 60 }), 400],
  ['more than there is', () => ann.post('/transfers', { ...order, amount: 100_000 }), 409],
  ['the same account', () => ann.post('/transfers', { ...order, to_account_id: annsAccount.id }), 400],
  [
    'a short password',
    () => ledger.send(undefined, 'POST', '/users', { body: { ...ann.wish, username: 'dan', password: '12345' } }),
    400,
  ],
  [
    'a username with signs',
    () => ledger.send(undefined, 'POST', '/users', { body: { ...ann.wish, username: 'd-n' } }),
    400,
  ],
  [
    'a refresh token that is none',
    () => ledger.send(undefined, 'POST', '/tokens/renew_access', { body: { refresh_token: 'x' } }),
    401,
  ],
]
for (const [what, request, status] of refusals) {
  test(`${what} is refused with ${status}`, async () => {
    const answer = await request()
    assert.deepEqual([answer.status, Object.keys(answer.body as object)], [status, ['error']])
  })
}

test('a balance past 2^53 has all its digits', async () => {
  await ledger.admin.post('/v1/deposits', { to: String(bobsAccount.id), amount: '9007199254740993', currency: 'USD' })
  assert.match((await bob.get(`/accounts/${bobsAccount.id}`)).text, /"balance":9007199254741193,/)
})
