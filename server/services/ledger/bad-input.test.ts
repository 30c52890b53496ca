/** What callers send by mistake or on purpose: each gets its own code, and nothing moves. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeCurrencies, parseUnits } from './money.ts'
import { makeTestLedger } from './test-support.ts'

const ledger = await makeTestLedger()
const [ann, bob, eve] = [ledger.user('ann'), ledger.user('bob'), ledger.user('eve')]
const from = await ann.open(1000)
const to = await bob.open(5)
const euros = await ann.open(0, { currency: 'EUR' })
const closed = await ann.open(0, { name: 'closed' })
await ann.post(`/v1/accounts/${closed}/close`)
const rich = await bob.open(2n ** 63n - 1n, { currency: 'CREDIT' })
const credits = await ann.open(0, { currency: 'CREDIT' })
const good = { from, to, amount: '10', currency: 'USD' }
const hold = (await ann.post('/v1/transfers', { ...good, amount: '100', pending: true })).body.id
const settled = (await ann.post('/v1/transfers', { ...good, amount: '1', pending: true })).body.id
await bob.post(`/v1/transfers/${settled}/void`)
await ann.post('/v1/transfers', good, 'used')

async function snapshot() {
  const { rows } = await ledger.db.query(
    `select (select json_agg(a order by id) from ledger.accounts a)::text as accounts,
            (select count(*) from ledger.transfers) as transfers, (select json_agg(h order by id) from ledger.holds h)::text as holds`,
  )
  return rows[0]
}

interface Bad {
  what: string
  as?: typeof ann
  url?: string
  body: unknown
  key?: string
  status: number
  code: string
}

async function check({ as = ann, url = '/v1/transfers', body, key, status, code }: Bad) {
  const before = await snapshot()
  const answer = await as.post(url, body, key)
  assert.deepEqual([answer.status, answer.body.code], [status, code], answer.text)
  assert.deepEqual(await snapshot(), before)
}

const amounts: [string, unknown, string][] = [
  ['zero', '0', 'amount_zero'],
  ['zero, written long', '000', 'amount_zero'],
  ['negative', '-5', 'amount_negative'],
  ['fractional', '1.5', 'amount_fractional'],
  ['2^63', String(2n ** 63n), 'amount_too_large'],
  ['a hundred digits', '9'.repeat(100), 'amount_too_large'],
  ['a number', 10, 'amount_not_text'],
  ['missing', undefined, 'amount_not_text'],
  ['null', null, 'amount_not_text'],
  ['a list', ['10'], 'amount_not_text'],
  ['empty', '', 'amount_malformed'],
  ['a word', 'ten', 'amount_malformed'],
  ['an exponent', '1e3', 'amount_malformed'],
  ['with spaces', ' 10 ', 'amount_malformed'],
  ['hexadecimal', '0x10', 'amount_malformed'],
  ['in other digits', '١٠', 'amount_malformed'],
]
for (const [what, amount, code] of amounts) {
  test(`an amount that is ${what} is refused`, () => check({ what, body: { ...good, amount }, status: 400, code }))
}

const transfers: Bad[] = [
  { what: 'from an unknown account', body: { ...good, from: '999999' }, status: 404, code: 'account_not_found' },
  { what: 'to an unknown account', body: { ...good, to: '999999' }, status: 404, code: 'account_not_found' },
  { what: 'from a foreign account', as: eve, body: good, status: 403, code: 'foreign_account' },
  { what: 'from a closed account', body: { ...good, from: closed }, status: 409, code: 'account_closed' },
  { what: 'to a closed account', body: { ...good, to: closed }, status: 409, code: 'account_closed' },
  { what: 'in another currency', body: { ...good, currency: 'EUR' }, status: 400, code: 'currency_mismatch' },
  { what: 'between currencies', body: { ...good, to: euros }, status: 400, code: 'currency_mismatch' },
  { what: 'in no currency', body: { ...good, currency: 'ABC' }, status: 400, code: 'unknown_currency' },
  { what: 'without a currency', body: { ...good, currency: undefined }, status: 400, code: 'unknown_currency' },
  { what: 'to the same account', body: { ...good, to: from }, status: 400, code: 'same_account' },
  { what: 'of more than there is', body: { ...good, amount: '901' }, status: 409, code: 'insufficient_funds' },
  { what: 'with a number as account', body: { ...good, to: 5 }, status: 400, code: 'bad_id' },
  { what: 'with a word as account', body: { ...good, to: "1' or 1=1" }, status: 400, code: 'bad_id' },
  { what: 'with an id past 2^53', body: { ...good, to: '9007199254740993' }, status: 400, code: 'bad_id' },
  {
    what: 'with a key used for another',
    body: { ...good, amount: '11' },
    key: 'used',
    status: 422,
    code: 'idempotency_key_reused',
  },
  { what: 'with a key that is none', body: good, key: '\t', status: 400, code: 'bad_idempotency_key' },
  { what: 'with an unknown field', body: { ...good, fee: '1' }, status: 400, code: 'unknown_field' },
  { what: 'with a list as metadata', body: { ...good, metadata: [1] }, status: 400, code: 'bad_metadata' },
  { what: 'with a NUL in its metadata', body: { ...good, metadata: { a: '\0' } }, status: 400, code: 'bad_metadata' },
  { what: 'with half a surrogate', body: { ...good, metadata: { '\ud800': 1 } }, status: 400, code: 'bad_metadata' },
  {
    what: 'with much metadata',
    body: { ...good, metadata: { a: 'x'.repeat(5000) } },
    status: 400,
    code: 'bad_metadata',
  },
  { what: 'with a pending that is no flag', body: { ...good, pending: 'yes' }, status: 400, code: 'bad_flag' },
  { what: 'with a time-out and not pending', body: { ...good, timeout_seconds: 5 }, status: 400, code: 'bad_timeout' },
  {
    what: 'pending for too long',
    body: { ...good, pending: true, timeout_seconds: 86_401 },
    status: 400,
    code: 'bad_timeout',
  },
  {
    what: 'pending for part of a second',
    body: { ...good, pending: true, timeout_seconds: 0.5 },
    status: 400,
    code: 'bad_timeout',
  },
  { what: 'that is a list', body: [good], status: 400, code: 'validation_failed' },
]
for (const each of transfers) test(`a transfer ${each.what} is refused`, () => check(each))

const others: Bad[] = [
  {
    what: 'a hold posted past its amount',
    url: `/v1/transfers/${hold}/post`,
    body: { amount: '101' },
    status: 409,
    code: 'hold_amount_exceeded',
  },
  {
    what: 'a hold posted by a stranger',
    as: eve,
    url: `/v1/transfers/${hold}/post`,
    body: {},
    status: 404,
    code: 'hold_not_found',
  },
  {
    what: 'a hold posted with a number',
    url: `/v1/transfers/${hold}/post`,
    body: { amount: 5 },
    status: 400,
    code: 'amount_not_text',
  },
  {
    what: 'a voided hold posted',
    url: `/v1/transfers/${settled}/post`,
    body: {},
    status: 409,
    code: 'hold_already_voided',
  },
  { what: 'an unknown hold posted', url: '/v1/transfers/999999/post', body: {}, status: 404, code: 'hold_not_found' },
  {
    what: 'an unknown transfer reversed',
    url: '/v1/transfers/999999/reverse',
    body: {},
    status: 404,
    code: 'transfer_not_found',
  },
  { what: 'a hold reversed', url: `/v1/transfers/${hold}/reverse`, body: {}, status: 404, code: 'transfer_not_found' },
  { what: 'an empty batch', url: '/v1/transfers/batch', body: { transfers: [] }, status: 400, code: 'batch_empty' },
  {
    what: 'a batch too long',
    url: '/v1/transfers/batch',
    body: { transfers: Array(8001).fill(good) },
    status: 413,
    code: 'batch_too_long',
  },
  {
    what: 'a batch that is none',
    url: '/v1/transfers/batch',
    body: { transfers: good },
    status: 400,
    code: 'validation_failed',
  },
  { what: 'an account twice', url: '/v1/accounts', body: { currency: 'USD' }, status: 409, code: 'account_exists' },
  {
    what: 'an account in no currency',
    url: '/v1/accounts',
    body: { currency: 'usd' },
    status: 400,
    code: 'unknown_currency',
  },
  {
    what: 'an account with a NUL',
    url: '/v1/accounts',
    body: { currency: 'USD', name: 'a\0' },
    status: 400,
    code: 'bad_text',
  },
  {
    what: 'an account with an overdraft',
    url: '/v1/accounts',
    body: { currency: 'USD', name: 'x', floor: '-1' },
    status: 403,
    code: 'overdraft_not_yours',
  },
  {
    what: 'an account with a wrong floor',
    url: '/v1/accounts',
    body: { currency: 'USD', name: 'x', floor: '1' },
    status: 400,
    code: 'bad_floor',
  },
  {
    what: 'closing an account with money',
    url: `/v1/accounts/${from}/close`,
    body: undefined,
    status: 409,
    code: 'account_not_empty',
  },
  {
    what: 'closing a foreign account',
    url: `/v1/accounts/${to}/close`,
    body: undefined,
    status: 403,
    code: 'foreign_account',
  },
  {
    what: 'a deposit by a user',
    url: '/v1/deposits',
    body: { to, amount: '1', currency: 'USD' },
    status: 403,
    code: 'forbidden',
  },
  {
    what: 'a deposit that names where it comes from',
    as: ledger.banker,
    url: '/v1/deposits',
    body: { from, to, amount: '1', currency: 'USD' },
    status: 400,
    code: 'unknown_field',
  },
  {
    what: 'a withdrawal that names where it goes',
    as: ledger.banker,
    url: '/v1/withdrawals',
    body: { from, to, amount: '1', currency: 'USD' },
    status: 400,
    code: 'unknown_field',
  },
  {
    what: 'a deposit with a field that is none',
    as: ledger.banker,
    url: '/v1/deposits',
    body: { to, amount: '1', currency: 'USD', note: 'x' },
    status: 400,
    code: 'unknown_field',
  },
  {
    what: 'a withdrawal with a field that is none',
    as: ledger.banker,
    url: '/v1/withdrawals',
    body: { from, amount: '1', currency: 'USD', note: 'x' },
    status: 400,
    code: 'unknown_field',
  },
  {
    what: 'a withdrawal by a user',
    url: '/v1/withdrawals',
    body: { from, amount: '1', currency: 'USD' },
    status: 403,
    code: 'forbidden',
  },
  {
    what: 'an overdraft by a banker',
    as: ledger.banker,
    url: '/v1/accounts',
    body: { currency: 'USD', name: 'x', floor: '-1' },
    status: 403,
    code: 'overdraft_not_yours',
  },
  {
    what: 'a deposit with a negative amount',
    as: ledger.admin,
    url: '/v1/deposits',
    body: { to, amount: '-1', currency: 'USD' },
    status: 400,
    code: 'amount_negative',
  },
  {
    what: 'a deposit past 2^63',
    as: ledger.admin,
    url: '/v1/deposits',
    body: { to: rich, amount: '1', currency: 'CREDIT' },
    status: 409,
    code: 'balance_overflow',
  },
]
for (const each of others) test(`${each.what} is refused`, () => check(each))

test('a line that is wrong is refused alone', async () => {
  const lines = [
    null,
    7,
    [],
    { ...good, amount: '-1' },
    { ...good, linked: 'yes' },
    { ...good, idempotency_key: 5 },
    { ...good, amount: '1' },
    { ...good, idempotency_key: 'line' },
    { ...good, idempotency_key: 'line' },
    { ...good, amount: '11', idempotency_key: 'line' },
    { ...good, idempotency_key: 'used' },
  ]
  const { status, body } = await ann.post('/v1/transfers/batch', { transfers: lines })
  assert.equal(status, 200)
  assert.deepEqual(
    body.outcomes.map(
      (outcome: { status?: string; error?: { code: string } }) => outcome.error?.code ?? outcome.status,
    ),
    [
      'not_a_transfer',
      'not_a_transfer',
      'not_a_transfer',
      'amount_negative',
      'bad_flag',
      'bad_line_key',
      'posted',
      'posted',
      'posted',
      'idempotency_key_reused',
      'idempotency_key_reused',
    ],
  )
  assert.equal(body.outcomes[7].id, body.outcomes[8].id)
})

test('a balance may come up to 2^63 - 1, what is pending included', async () => {
  await ledger.admin.post('/v1/withdrawals', { from: rich, amount: '10', currency: 'CREDIT' })
  await ledger.admin.post('/v1/deposits', { to: credits, amount: '9', currency: 'CREDIT' })
  const give = (amount: string, extra: object = {}) =>
    ann.post('/v1/transfers', { from: credits, to: rich, amount, currency: 'CREDIT', ...extra })
  assert.equal((await give('9', { pending: true })).body.status, 'pending')
  await ledger.admin.post('/v1/deposits', { to: rich, amount: '1', currency: 'CREDIT' })
  const over = await ledger.admin.post('/v1/deposits', { to: rich, amount: '1', currency: 'CREDIT' })
  assert.equal(over.body.code, 'balance_overflow')
})

const reads: [string, string, typeof ann, number, string][] = [
  ['a foreign account', `/v1/accounts/${to}`, ann, 403, 'foreign_account'],
  ['an unknown account', '/v1/accounts/999999', ann, 404, 'account_not_found'],
  ['an account that is a word', '/v1/accounts/abc', ann, 400, 'bad_id'],
  ['foreign entries', `/v1/accounts/${to}/entries`, ann, 403, 'foreign_account'],
  ['a foreign statement', `/v1/accounts/${to}/statement.csv`, ann, 403, 'foreign_account'],
  ['a cursor of elsewhere', `/v1/accounts/${from}/entries?cursor=abc`, ann, 400, 'bad_cursor'],
  ['too many entries', `/v1/accounts/${from}/entries?limit=1001`, ann, 400, 'validation_failed'],
  ['a time that is none', `/v1/accounts/${from}/balance?at=yesterday`, ann, 400, 'validation_failed'],
  [
    'a range that ends first',
    `/v1/accounts/${from}/entries?from=2030-01-01T00:00:00Z&to=2020-01-01T00:00:00Z`,
    ann,
    400,
    'bad_range',
  ],
  ['without the scope', `/v1/accounts/${from}`, ledger.user('ann', 'user', ['ledger:write']), 403, 'missing_scope'],
]
for (const [what, url, user, status, code] of reads) {
  test(`reading ${what} is refused`, async () => {
    const answer = await user.get(url)
    assert.deepEqual([answer.status, answer.body.code], [status, code], answer.text)
  })
}

test('nobody comes in without saying who they are', async () => {
  const answer = await ledger.send(undefined, 'POST', '/v1/transfers', { body: good })
  assert.equal(answer.status, 401)
})

test('units are declared with an exponent, and no unit is a currency', () => {
  assert.deepEqual(parseUnits('CREDIT:0, POINT:2'), [
    ['CREDIT', 0],
    ['POINT', 2],
  ])
  for (const wrong of ['CREDIT', 'credit:0', 'X:1', 'CREDIT:19', 'USD:2'])
    assert.throws(() => parseUnits(wrong), Error, wrong)
  const currencies = makeCurrencies('CREDIT:0')
  for (const [code, exponent] of [
    ['JPY', 0],
    ['USD', 2],
    ['KWD', 3],
    ['CLF', 4],
    ['CREDIT', 0],
  ] as const) {
    assert.equal(currencies.get(code), exponent)
  }
})
