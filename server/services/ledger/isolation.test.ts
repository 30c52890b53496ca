/**
 * What two processes must not do to one another. The first stops when it has written and not yet committed; the second
 * then does its part. Each case is also run with the locks taken out, to show that it is the locks that it tests.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { until } from '../../../test/support/until.ts'
import { type Answer, makeTestLedger, type TestUser } from './test-support.ts'

const ledger = await makeTestLedger()
let users = 0

interface Scene {
  ann: TestUser
  bob: TestUser
  from: string
  to: string
  /** A transfer of 100 between them. */
  paid: string
  /** An open hold of 500 from Ann's account to Bob's. */
  hold: string
}

type Act = (user: (who: TestUser) => TestUser, scene: Scene) => Promise<Answer>

interface Case {
  phenomenon: string
  first: Act
  /** Whether the first is rolled back. */
  fails?: boolean
  second: Act
  /** What the second is to be answered: a code of an error, or the status of a transfer. */
  expected: string
  /** PostgreSQL itself never shows what is not committed. */
  holdsWithoutLocks?: boolean
}

const pay =
  (amount: number, extra: object = {}): Act =>
  (as, { ann, from, to }) =>
    as(ann).post('/v1/transfers', { from, to, amount: String(amount), currency: 'USD', ...extra })
const settle =
  (verb: 'post' | 'void'): Act =>
  (as, { bob, hold }) =>
    as(bob).post(`/v1/transfers/${hold}/${verb}`)

function reverse(as: Parameters<Act>[0], { bob, paid }: Scene) {
  return as(bob).post(`/v1/transfers/${paid}/reverse`)
}

// Ann has 1500, of which 500 are held.
const cases: Case[] = [
  { phenomenon: 'lost update', first: pay(600), second: pay(600), expected: 'insufficient_funds' },
  {
    phenomenon: 'dirty read',
    first: pay(600),
    fails: true,
    second: pay(1000),
    expected: 'posted',
    holdsWithoutLocks: true,
  },
  { phenomenon: 'non-repeatable read', first: settle('post'), second: settle('void'), expected: 'hold_already_posted' },
  { phenomenon: 'phantom read', first: reverse, second: reverse, expected: 'already_reversed' },
  {
    phenomenon: 'serialization anomaly',
    first: pay(600, { pending: true }),
    second: pay(600),
    expected: 'insufficient_funds',
  },
]

for (const each of cases) {
  test(`no ${each.phenomenon}`, async () => {
    assert.equal(await race(each, { withoutLocks: false }), each.expected)
    await ledger.assertSound()
  })
}

// Last, as without locks the books are ruined.
for (const each of cases) {
  test(`no ${each.phenomenon}: the locks are what prevents it`, async () => {
    const answered = await race(each, { withoutLocks: true })
    assert.equal(answered === each.expected, each.holdsWithoutLocks ?? false, answered)
  })
}

async function race(each: Case, { withoutLocks }: { withoutLocks: boolean }): Promise<string> {
  const scene = await makeScene()
  const written = Promise.withResolvers<void>()
  const gate = Promise.withResolvers<void>()
  const one = await ledger.another({
    beforeCommit: () => {
      written.resolve()
      return gate.promise
    },
  })
  const two = await ledger.another({ withoutLocks })
  const of = (process: typeof one) => (who: TestUser) => process.user(who.caller.name)
  const first = each.first(of(one), scene)
  await written.promise
  const second = each.second(of(two), scene)
  await until(isSomebodyWaiting)
  if (each.fails) gate.reject(new Error('This transaction was to fail.'))
  else gate.resolve()
  assert.equal((await first).status, each.fails ? 500 : 201)
  const { body } = await second
  return body.status === 'posted' ? 'posted' : body.code
}

async function makeScene(): Promise<Scene> {
  const [ann, bob] = [ledger.user(`ann${++users}`), ledger.user(`bob${users}`)]
  const [from, to] = [await ann.open(1600), await bob.open(0)]
  const order = { from, to, amount: '100', currency: 'USD' }
  const paid = await ann.post('/v1/transfers', order)
  const hold = await ann.post('/v1/transfers', { ...order, amount: '500', pending: true })
  return { ann, bob, from, to, paid: paid.body.id, hold: hold.body.id }
}

async function isSomebodyWaiting(): Promise<boolean> {
  const { rows } = await ledger.db.query<{ waiting: boolean }>(
    `select exists (select from pg_stat_activity
       where datname = current_database() and wait_event_type = 'Lock') as waiting`,
  )
  return rows[0]!.waiting
}
