/** The API as its users use it. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { until } from '../../../test/support/until.ts'
import { makeTestLedger, type TestUser } from './test-support.ts'

const ledger = await makeTestLedger({ work: true })
const { time } = ledger

let users = 0
function newUser(): TestUser {
  return ledger.user(`user${++users}`)
}

async function balanceOf(user: TestUser, account: string) {
  const { body } = await user.get(`/v1/accounts/${account}`)
  return [body.balance, body.pending_in, body.pending_out]
}

const usd = (from: string, to: string, amount: number | bigint) => ({
  from,
  to,
  amount: String(amount),
  currency: 'USD',
})

test('money moves from one account to the other, and the answer tells the balance', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(1000), await bob.open(0)]
  const { status, body } = await ann.post('/v1/transfers', { ...usd(from, to, 300), metadata: { order: '7\\u0000"' } })
  assert.equal(status, 201)
  assert.deepEqual(
    [body.status, body.kind, body.from, body.to, body.amount, body.from_balance, body.from_version, body.to_balance],
    ['posted', 'transfer', from, to, '300', '700', 2, null],
  )
  assert.deepEqual(body.metadata, { order: '7\\u0000"' })
  assert.deepEqual(await balanceOf(ann, from), ['700', '0', '0'])
  assert.deepEqual(await balanceOf(bob, to), ['300', '0', '0'])
  assert.deepEqual((await ann.get(`/v1/transfers/${body.id}`)).body, body)
  const seen = (await bob.get(`/v1/transfers/${body.id}`)).body
  assert.deepEqual([seen.from_balance, seen.to_balance, seen.to_version], [null, '300', 1])
  assert.equal((await newUser().get(`/v1/transfers/${body.id}`)).body.code, 'transfer_not_found')
})

test('an account shows what it is, is listed by its owner, and is closed when it is empty', async () => {
  const ann = newUser()
  const made = await ann.post('/v1/accounts', { currency: 'JPY', name: 'savings', metadata: { a: 1 } }, 'account key')
  assert.equal(made.status, 201)
  const { id } = made.body
  assert.deepEqual(
    { ...made.body, id: 0, created_at: 0 },
    {
      id: 0,
      owner: ann.caller.name,
      currency: 'JPY',
      exponent: 0,
      name: 'savings',
      status: 'open',
      balance: '0',
      pending_in: '0',
      pending_out: '0',
      available: '0',
      floor: '0',
      version: 0,
      metadata: { a: 1 },
      created_at: 0,
      closed_at: null,
    },
  )
  const again = await ann.post('/v1/accounts', { currency: 'JPY', name: 'savings', metadata: { a: 1 } }, 'account key')
  assert.deepEqual([again.status, again.body], [201, made.body])
  for (const name of ['a', 'b', 'c']) await ann.open(0, { name })
  const first = (await ann.get('/v1/accounts?limit=3')).body
  const rest = (await ann.get(`/v1/accounts?limit=3&cursor=${first.next_cursor}`)).body
  const names = [...first.accounts, ...rest.accounts].map(account => account.name)
  assert.deepEqual([names, rest.next_cursor], [['savings', 'a', 'b', 'c'], null])
  const closed = await ann.post(`/v1/accounts/${id}/close`)
  assert.deepEqual([closed.status, closed.body.status], [200, 'closed'])
  assert.equal((await ann.post(`/v1/accounts/${id}/close`)).body.code, 'account_closed')
  // The name is free again.
  await ann.open(0, { currency: 'JPY', name: 'savings' })
})

test('a hold sets money aside until it is posted, in part, and the rest is let go of', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(1000), await bob.open(0)]
  const hold = await ann.post('/v1/transfers', { ...usd(from, to, 800), pending: true, timeout_seconds: 60 }, 'hold')
  assert.deepEqual([hold.status, hold.body.status, hold.body.kind], [201, 'pending', 'hold'])
  assert.deepEqual(await balanceOf(ann, from), ['1000', '0', '800'])
  assert.deepEqual(await balanceOf(bob, to), ['0', '800', '0'])
  const refused = await ann.post('/v1/transfers', usd(from, to, 201))
  assert.deepEqual([refused.status, refused.body.code], [409, 'insufficient_funds'])
  const posted = await bob.post(`/v1/transfers/${hold.body.id}/post`, { amount: '500' }, 'post')
  assert.deepEqual(
    [posted.status, posted.body.kind, posted.body.amount, posted.body.hold_id, posted.body.to_balance],
    [201, 'post', '500', hold.body.id, '500'],
  )
  assert.deepEqual(await balanceOf(ann, from), ['500', '0', '0'])
  assert.deepEqual(await balanceOf(bob, to), ['500', '0', '0'])
  const after = (await ann.get(`/v1/transfers/${hold.body.id}`)).body
  assert.deepEqual([after.status, after.posted_by_id], ['posted', posted.body.id])
  // Repeated requests get their first answers.
  assert.deepEqual((await bob.post(`/v1/transfers/${hold.body.id}/post`, { amount: '500' }, 'post')).body, posted.body)
  const repeated = await ann.post(
    '/v1/transfers',
    { ...usd(from, to, 800), pending: true, timeout_seconds: 60 },
    'hold',
  )
  assert.deepEqual(repeated.body, hold.body)
  assert.equal((await bob.post(`/v1/transfers/${hold.body.id}/post`)).body.code, 'hold_already_posted')
  assert.equal((await bob.post(`/v1/transfers/${hold.body.id}/void`)).body.code, 'hold_already_posted')
})

test('a hold is voided by whoever was to get the money, and by nobody else', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(10), await bob.open(0)]
  const { id } = (await ann.post('/v1/transfers', { ...usd(from, to, 10), pending: true })).body
  const url = `/v1/transfers/${id}/void`
  assert.equal((await ann.post(url)).body.code, 'hold_not_yours')
  assert.equal((await newUser().post(url)).body.code, 'hold_not_found')
  const voided = await bob.post(url, undefined, 'void')
  assert.deepEqual([voided.status, voided.body.status], [200, 'voided'])
  assert.deepEqual((await bob.post(url, undefined, 'void')).body, voided.body)
  assert.equal((await bob.post(url)).body.code, 'hold_already_voided')
  assert.deepEqual(await balanceOf(ann, from), ['10', '0', '0'])
  const { holds } = (await bob.get(`/v1/accounts/${to}/holds`)).body
  assert.deepEqual(
    holds.map((hold: { id: string }) => hold.id),
    [id],
  )
})

test('a hold that is not posted in time expires by its job', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(10), await bob.open(0)]
  const { id } = (await ann.post('/v1/transfers', { ...usd(from, to, 10), pending: true, timeout_seconds: 1 })).body
  await until(async () => (await ann.get(`/v1/transfers/${id}`)).body.status === 'expired')
  assert.deepEqual(await balanceOf(ann, from), ['10', '0', '0'])
  assert.equal((await bob.post(`/v1/transfers/${id}/post`)).body.code, 'hold_expired')
})

test('a hold whose time is over is not posted, even before its job has come', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(10), await bob.open(0)]
  const { id } = (await ann.post('/v1/transfers', { ...usd(from, to, 10), pending: true, timeout_seconds: 600 })).body
  time.offsetMs = 600_000
  try {
    assert.equal((await bob.post(`/v1/transfers/${id}/post`)).body.code, 'hold_expired')
  } finally {
    time.offsetMs = 0
  }
})

test('a transfer is reversed once, by whoever got the money', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(100), await bob.open(0)]
  const { id } = (await ann.post('/v1/transfers', usd(from, to, 60))).body
  const url = `/v1/transfers/${id}/reverse`
  assert.equal((await ann.post(url)).body.code, 'reversal_not_yours')
  assert.equal((await newUser().post(url)).body.code, 'transfer_not_found')
  const reversal = await bob.post(url, { metadata: { why: 'broken' } }, 'reverse')
  assert.deepEqual(
    [reversal.status, reversal.body.reverses_id, reversal.body.from, reversal.body.to, reversal.body.amount],
    [201, id, to, from, '60'],
  )
  assert.deepEqual((await bob.post(url, { metadata: { why: 'broken' } }, 'reverse')).body, reversal.body)
  assert.equal((await bob.post(url)).body.code, 'already_reversed')
  const back = await ann.post(`/v1/transfers/${reversal.body.id}/reverse`)
  assert.equal(back.body.code, 'not_reversible')
  assert.deepEqual(await balanceOf(ann, from), ['100', '0', '0'])
})

test('a batch answers an outcome a line, in order, and chains stand or fall together', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(100), await bob.open(0)]
  const lines = [
    usd(from, to, 10),
    { ...usd(from, to, 0) },
    { ...usd(from, to, 20), linked: true },
    { ...usd(from, to, 1000), linked: true },
    usd(from, to, 1),
    { ...usd(from, to, 5), linked: true },
    usd(from, to, 6),
    { ...usd(from, to, 5), linked: true },
    { ...usd(from, to, 7), amount: 7 },
    usd(from, to, 79),
    { ...usd(from, to, 1), linked: true },
  ]
  const { status, body } = await ann.post('/v1/transfers/batch', { transfers: lines }, 'batch')
  assert.equal(status, 200)
  assert.deepEqual(
    body.outcomes.map(
      (outcome: { status?: string; error?: { code: string } }) => outcome.error?.code ?? outcome.status,
    ),
    [
      'posted',
      'amount_zero',
      'chain_failed',
      'insufficient_funds',
      'chain_failed',
      'posted',
      'posted',
      'chain_failed',
      'amount_not_text',
      'posted',
      'chain_open',
    ],
  )
  assert.deepEqual(body.outcomes[2].error.details, { line: 3 })
  assert.deepEqual(body.outcomes[7].error.details, { line: 8 })
  assert.deepEqual(await balanceOf(ann, from), ['0', '0', '0'])
  // Again: what was made is not made twice.
  const again = await ann.post('/v1/transfers/batch', { transfers: lines }, 'batch')
  const made = (answer: { outcomes: { id?: string }[] }) => answer.outcomes.map(outcome => outcome.id)
  assert.deepEqual(made(again.body), made(body))
  assert.deepEqual(await balanceOf(ann, from), ['0', '0', '0'])
})

test('holds are posted and voided and transfers reversed within a batch, chains of them as a whole', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(100), await bob.open(0)]
  const first = (await ann.post('/v1/transfers', usd(from, to, 8))).body.id
  const holds = [10, 20, 30].map(amount => ({ ...usd(from, to, amount), pending: true }))
  const set = (await ann.post('/v1/transfers/batch', { transfers: holds }, 'holds')).body.outcomes
  const [one, two, three] = set.map((outcome: { id: string }) => outcome.id)
  const said = async (transfers: unknown[], key?: string) =>
    (await bob.post('/v1/transfers/batch', { transfers }, key)).body.outcomes.map(
      (outcome: { status?: string; error?: { code: string } }) => outcome.error?.code ?? outcome.status,
    )

  const chain = [{ post: one, linked: true }, { post: two, amount: '21', linked: true }, { reverse: first }]
  assert.deepEqual(await said(chain), ['chain_failed', 'hold_amount_exceeded', 'chain_failed'])
  assert.deepEqual(await balanceOf(ann, from), ['92', '0', '60'])

  const lines = [
    { post: one, linked: true },
    { post: two, amount: '15', linked: true },
    { reverse: first, metadata: { why: 'wrong' } },
    { void: three },
    { post: three },
    { post: 'x' },
    { void: three, amount: '1' },
    { reverse: first, from },
  ]
  const codes = [
    'posted',
    'posted',
    'posted',
    'voided',
    'hold_already_voided',
    'bad_id',
    'unknown_field',
    'unknown_field',
  ]
  assert.deepEqual(await said(lines, 'lines'), codes)
  assert.deepEqual(await said(lines, 'lines'), codes)
  assert.deepEqual(await balanceOf(ann, from), ['75', '0', '0'])
  assert.deepEqual(await balanceOf(bob, to), ['25', '0', '0'])
  const again = (await ann.post('/v1/transfers/batch', { transfers: holds }, 'holds')).body.outcomes
  assert.deepEqual(again, set)
})

test('eight thousand transfers go into one batch', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(7999), await bob.open(0)]
  const transfers = Array.from({ length: 8000 }, () => usd(from, to, 1))
  const { body } = await ann.post('/v1/transfers/batch', { transfers })
  assert.equal(body.outcomes.length, 8000)
  assert.ok(body.outcomes.slice(0, 7999).every((outcome: { status: string }) => outcome.status === 'posted'))
  assert.equal(body.outcomes[7999].error.code, 'insufficient_funds')
  assert.deepEqual(await balanceOf(bob, to), ['7999', '0', '0'])
})

test('entries are read by cursor and by time, the balance at a time is known, and all of it is exported', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(1000), await bob.open(0)]
  const times: string[] = []
  for (const amount of [1, 2, 3, 4, 5]) {
    time.offsetMs += 1000
    times.push((await ann.post('/v1/transfers', usd(from, to, amount))).body.created_at)
  }
  const url = `/v1/accounts/${to}/entries`
  const seen: string[] = []
  let cursor = ''
  do {
    const { body } = await bob.get(`${url}?limit=2${cursor}`)
    seen.push(
      ...body.entries.map(
        (entry: { version: number; amount: string; balance: string }) =>
          `${entry.version}:${entry.amount}:${entry.balance}`,
      ),
    )
    cursor = body.next_cursor && `&cursor=${body.next_cursor}`
  } while (cursor)
  assert.deepEqual(seen, ['1:1:1', '2:2:3', '3:3:6', '4:4:10', '5:5:15'])
  const between = await bob.get(`${url}?from=${times[1]}&to=${times[3]}`)
  assert.deepEqual(
    between.body.entries.map((entry: { amount: string }) => entry.amount),
    ['2', '3'],
  )
  const at = async (text: string) => (await bob.get(`/v1/accounts/${to}/balance?at=${text}`)).body.balance
  assert.deepEqual(
    [await at(times[2]!), await at('2001-01-01T00:00:00Z'), await at('2101-01-01T00:00:00Z')],
    ['6', '0', '15'],
  )
  const csv = (await bob.get(`/v1/accounts/${to}/statement.csv?from=${times[3]}`)).text.split('\r\n')
  assert.equal(csv[0], 'version,created_at,kind,transfer_id,other_account_id,amount,balance,currency')
  assert.deepEqual(
    csv.slice(1).map(line => line.split(',').toSpliced(3, 1).join()),
    [`4,${times[3]},transfer,${from},4,10,USD`, `5,${times[4]},transfer,${from},5,15,USD`, ''],
  )
  const newest = await bob.get(`/v1/accounts/${to}/transfers?limit=2`)
  assert.deepEqual(
    newest.body.transfers.map((transfer: { to_balance: string }) => transfer.to_balance),
    ['15', '10'],
  )
  const older = await bob.get(`/v1/accounts/${to}/transfers?limit=2&cursor=${newest.body.next_cursor}`)
  assert.deepEqual(
    older.body.transfers.map((transfer: { to_balance: string }) => transfer.to_balance),
    ['6', '3'],
  )
  time.offsetMs = 0
})

test('time never goes back in an account, whatever the clock says', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(10), await bob.open(0)]
  time.offsetMs = 3_600_000
  const late = (await ann.post('/v1/transfers', usd(from, to, 1))).body.created_at
  time.offsetMs = 0
  const next = (await ann.post('/v1/transfers', usd(from, to, 1))).body.created_at
  assert.equal(next, late)
})

test('money enters and leaves only by bankers and admins, through the account of the system', async () => {
  const ann = newUser()
  const account = await ann.open(500)
  const out = { from: account, amount: '200', currency: 'USD' }
  assert.equal((await ann.post('/v1/withdrawals', out)).status, 403)
  const keyWithout = ledger.user('robot', 'admin', ['ledger:write'])
  assert.equal((await keyWithout.post('/v1/withdrawals', out)).body.code, 'missing_scope')
  const into = { to: account, amount: '200', currency: 'USD' }
  const paidIn = await ledger.banker.post('/v1/deposits', into, 'in')
  assert.deepEqual([paidIn.status, paidIn.body.kind, paidIn.body.to_balance], [201, 'deposit', '700'])
  const paidOut = await ledger.banker.post('/v1/withdrawals', out, 'out')
  assert.deepEqual([paidOut.status, paidOut.body.kind, paidOut.body.from_balance], [201, 'withdrawal', '500'])
  const isForeign = await ledger.banker.get(`/v1/accounts/${account}`)
  assert.equal(isForeign.body.code, 'foreign_account', 'a banker brings money and sees nobody’s account')
  const { status, body } = await ledger.admin.post('/v1/withdrawals', out, 'out')
  assert.deepEqual([status, body.kind, body.from_balance], [201, 'withdrawal', '300'])
  assert.deepEqual((await ledger.admin.post('/v1/withdrawals', out, 'out')).body, body)
  const { accounts } = (await ledger.admin.get('/v1/accounts?system=true')).body
  const cash = accounts.find((each: { currency: string }) => each.currency === 'USD')
  assert.deepEqual([cash.name, cash.floor, cash.available], ['cash', null, null])
  assert.ok(BigInt(cash.balance) < 0n)
})

test('an overdraft goes down to its floor', async () => {
  const bob = newUser()
  const to = await bob.open(0)
  const opened = await ledger.admin.post('/v1/accounts', { currency: 'USD', name: 'overdraft', floor: '-100' })
  assert.deepEqual([opened.status, opened.body.available], [201, '100'])
  const pay = (amount: number) => ledger.admin.post('/v1/transfers', usd(opened.body.id, to, amount))
  assert.equal((await pay(101)).body.code, 'insufficient_funds')
  assert.equal((await pay(100)).body.from_balance, '-100')
})

test('entries are a live topic, for its owner alone', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(10), await bob.open(0)]
  for (const amount of [1, 2]) await ann.post('/v1/transfers', usd(from, to, amount))
  assert.ok(ledger.woken.includes(`accounts/${to}`))
  const events = await ledger.source.read(to, 0, 10)
  assert.deepEqual(
    events.map(event => [event.seq, event.type, (event.data as { balance: string }).balance]),
    [
      [1, 'entry', '1'],
      [2, 'entry', '3'],
    ],
  )
  assert.deepEqual(await ledger.source.read(to, 1, 10), events.slice(1))
  assert.deepEqual(await ledger.source.heads([to, 'nonsense', '999999999']), new Map([[to, 2]]))
  await ledger.source.authorize(bob.caller, to)
  await assert.rejects(ledger.source.authorize(ann.caller, to), { code: 'foreign_account' })
  await assert.rejects(ledger.source.authorize(ann.caller, 'nonsense'), { code: 'account_not_found' })
})

test('all of it adds up', () => ledger.assertSound())
