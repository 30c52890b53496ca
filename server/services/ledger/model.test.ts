/**
 * Random calls, one after the other, at a real ledger and at one in memory, which must answer alike. fast-check makes
 * them, and makes a sequence that fails shorter; what it prints (`seed`, `path`) gives the same calls again when
 * MODEL_SEED is set to the seed.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Answer, makeTestLedger, outcomeOf, outcomesOf } from './test-support.ts'
import { type Call, type Expected, type Line, type Model, type ModelAccount, makeModel, type Wish } from './testing.ts'

const runs = 120
const stepsMax = 60
const msPerStep = 1

let now = Date.now()
const ledger = await makeTestLedger({ clock: () => now })
const bank = ledger.admin.caller.name
/** Which codes were answered. */
const seen = new Set<string>()
let worlds = 0

// What the calls are made of. Numbers pick among what there is when the call is made.

const nth = fc.nat({ max: 40 })
const currency = fc.constantFrom('USD', 'USD', 'USD', 'JPY')
const amount = fc.oneof(
  { weight: 30, arbitrary: fc.integer({ min: 1, max: 150 }) },
  { weight: 1, arbitrary: fc.constant(0) },
)
const key = fc.option(fc.constantFrom('k1', 'k2', 'k3', 'k4', 'k5'), { nil: undefined, freq: 2 })
/** Whether who calls is who should, the other side, somebody else or the bank. */
const who = fc.constantFrom('right', 'right', 'right', 'right', 'right', 'other', 'stranger', 'bank')
const seconds = fc.constantFrom(undefined, undefined, undefined, 1, 600)
const far = fc.integer({ min: 1, max: 9 })
const isRare = fc.constantFrom(...Array<boolean>(11).fill(false), true)
const share = fc.constantFrom(undefined, 0.5, 1, 1.5)
const linked = fc.boolean()
const verb = <const T extends string>(...names: T[]) => fc.constantFrom(...names)
const line = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ do: verb('transfer'), from: nth, isStrange: isRare, far, amount, seconds, key, linked }),
  },
  { weight: 1, arbitrary: fc.record({ do: verb('post'), nth, share, key, linked }) },
  { weight: 1, arbitrary: fc.record({ do: verb('void', 'reverse'), nth, key, linked }) },
)

const step = fc.oneof(
  { weight: 2, arbitrary: fc.record({ do: verb('open'), nth, currency, name: verb('a', 'b'), key }) },
  { weight: 1, arbitrary: fc.record({ do: verb('close'), who, nth, key }) },
  { weight: 3, arbitrary: fc.record({ do: verb('deposit', 'withdrawal'), who, nth, amount, key }) },
  { weight: 9, arbitrary: fc.record({ do: verb('transfer'), who, from: nth, far, amount, seconds, currency, key }) },
  {
    weight: 4,
    arbitrary: fc.record({
      do: verb('batch'),
      nth,
      lines: fc.array(line, { minLength: 1, maxLength: 6 }),
      isOpen: isRare,
      key,
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ do: verb('post'), who, nth, share, key }),
  },
  { weight: 2, arbitrary: fc.record({ do: verb('void'), who, nth, key }) },
  { weight: 1, arbitrary: fc.record({ do: verb('expire'), nth }) },
  { weight: 3, arbitrary: fc.record({ do: verb('reverse'), who, nth, key }) },
  { weight: 3, arbitrary: fc.record({ do: verb('again'), nth }) },
  { weight: 2, arbitrary: fc.record({ do: verb('wait'), ms: fc.constantFrom(10, 999, 1000) }) },
)
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never

/** Users and accounts that no other sequence has seen. */
interface World {
  users: string[]
  model: Model
  /** Those with a key, which may be made again. */
  calls: Call[]
}

test('a ledger answers every call as one in memory does', async t => {
  const seed = Number(process.env.MODEL_SEED ?? Date.now() % 2 ** 31)
  t.diagnostic(`MODEL_SEED=${seed}`)
  const property = fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: stepsMax, size: 'max' }), async steps => {
    const world = await makeWorld()
    for (const each of steps) await take(world, each)
    await ledger.assertLike(world.model)
    await assertTransfers(world.model)
  })
  await fc.assert(property, { seed, numRuns: runs })
  await ledger.assertSound()
  for (const what of usual) assert.ok(seen.has(what), `no ${what} in all of ${runs} sequences`)
})

/** What comes dozens of times, whatever the seed: the test would prove little if it did not. */
const usual = [
  ...['posted', 'pending', 'insufficient_funds', 'chain_failed', 'idempotency_key_reused'].map(
    code => `batch: ${code}`,
  ),
  ...['posted', 'pending', 'insufficient_funds', 'idempotency_key_reused', 'foreign_account'].map(
    code => `transfer: ${code}`,
  ),
  ...['posted', 'hold_already_posted', 'hold_not_found'].map(code => `post: ${code}`),
  ...['void: voided', 'reverse: posted', 'withdrawal: posted', 'close: account_not_empty'],
]

async function makeWorld(): Promise<World> {
  const users = ['ann', 'bob', 'cem'].map(name => `${name} ${worlds}`)
  worlds++
  const world: World = { users, model: makeModel(bank), calls: [] }
  for (const name of ['a', 'c'])
    for (const by of users) await make(world, { by, wish: { type: 'open', currency: 'USD', name } })
  for (const { id } of world.model.accounts().slice(1))
    await make(world, { by: bank, wish: { type: 'deposit', to: id, amount: 250, currency: 'USD' } })
  return world
}

async function take(world: World, each: Step) {
  now += msPerStep
  if (each.do === 'wait') now += each.ms
  else if (each.do === 'again') {
    const call = pick(world.calls, each.nth)
    if (call) await make(world, call)
  } else await make(world, toCall(world, each))
}

/** A wish, who should have it, and who is on the other side. */
interface Meant {
  wish: Wish
  right: string
  other: string
}

type Made<Do extends string> = Extract<Step, { do: Do }>

function toCall(world: World, each: Exclude<Step, { do: 'again' | 'wait' }>): Call {
  const { wish, right, other } = meant(world, each)
  const stranger = world.users.find(user => user !== right && user !== other)!
  const by = 'who' in each ? { right, other, bank, stranger }[each.who] : right
  return { by, key: 'key' in each ? keyOf(world, each.key) : undefined, wish }
}

/** The bank's keys would be known from other sequences. */
function keyOf({ users }: World, key: string | undefined) {
  return key && `${key} of ${users[0]}`
}

function meant(world: World, each: Exclude<Step, { do: 'again' | 'wait' }>): Meant {
  const accounts = world.model.accounts()
  switch (each.do) {
    case 'open': {
      const wish = { type: 'open', currency: each.currency, name: each.name } as const
      return { wish, right: pick(world.users, each.nth)!, other: bank }
    }
    case 'transfer': {
      const { amount, seconds, currency } = each
      const [from, to] = [pick(accounts, each.from)!, pick(accounts, each.from + each.far)!]
      const wish = { type: 'transfer', from: from.id, to: to.id, amount, seconds, currency } as const
      return { wish, right: from.owner, other: to.owner }
    }
    case 'batch':
      return aboutBatch(world, each)
    case 'expire':
      return {
        wish: { type: 'expire', hold: pick(world.model.holds(), each.nth)?.id ?? unknownId },
        right: bank,
        other: bank,
      }
    case 'post':
    case 'void':
    case 'reverse':
      return aboutEarlier(world, each)
    default:
      return aboutAccount(pick(accounts, each.nth)!, each)
  }
}

/** What concerns earlier transfers is by whoever may do it where the batch begins with such a line. */
function aboutBatch(world: World, each: Made<'batch'>): Meant {
  const first = each.lines[0]!
  const { right } = first.do === 'transfer' ? { right: pick(world.users, each.nth)! } : aboutEarlier(world, first)
  const lines = each.lines.map((one, index): Line => {
    const isLinked = one.linked && (each.isOpen || index < each.lines.length - 1)
    const wish = one.do === 'transfer' ? toTransfer(world, right, one) : aboutEarlier(world, one).wish
    return { wish, key: keyOf(world, one.key), linked: isLinked }
  })
  return { wish: { type: 'batch', lines }, right, other: bank }
}

type LineStep = Made<'batch'>['lines'][number]

function toTransfer({ model }: World, by: string, one: Extract<LineStep, { do: 'transfer' }>): Line['wish'] {
  const accounts = model.accounts()
  const { amount, seconds } = one
  const from =
    pick(one.isStrange ? accounts : accounts.filter(account => account.owner === by), one.from) ?? accounts[0]!
  const to = pick(accounts, accounts.indexOf(from) + one.far)!
  return { type: 'transfer', from: from.id, to: to.id, amount, seconds, currency: 'USD' }
}

interface Earlier {
  do: 'post' | 'void' | 'reverse'
  nth: number
  share?: number | undefined
}

/** About a hold or a transfer that there is; about none where there is none yet. */
function aboutEarlier({ users, model }: World, each: Earlier): Meant & { wish: Line['wish'] } {
  const ownerOf = (id: string) => model.account(id).owner || bank
  if (each.do === 'reverse') {
    const original = pick(model.transfers(), each.nth)
    const [other, right] = original ? [original.from, original.to].map(side => ownerOf(side.account)) : users
    return { wish: { type: 'reverse', transfer: original?.id ?? unknownId }, right: right!, other: other! }
  }
  const hold = pick(model.holds(), each.nth)
  const [other, right] = hold ? [ownerOf(hold.from), ownerOf(hold.to)] : users
  const amount = each.share && Math.ceil((hold?.amount ?? 1) * each.share)
  const named = { hold: hold?.id ?? unknownId }
  const wish = each.do === 'post' ? { type: each.do, ...named, amount } : { type: each.do, ...named }
  return { wish, right: right!, other: other! }
}

function aboutAccount({ id, owner, currency }: ModelAccount, each: Made<'close'> | Made<'deposit' | 'withdrawal'>) {
  if (each.do === 'close') return { wish: { type: 'close', account: id } as const, right: owner, other: bank }
  const money = { amount: each.amount, currency }
  const wish: Wish = each.do === 'deposit' ? { type: each.do, to: id, ...money } : { type: each.do, from: id, ...money }
  return { wish, right: bank, other: owner }
}

const unknownId = '999999999999'

function pick<T>(items: readonly T[], n: number): T | undefined {
  return items[n % items.length]
}

/** Makes a call at both ledgers. */
async function make(world: World, call: Call) {
  const answer = await ledger.make(call)
  const told = `${JSON.stringify(call)} was answered ${answer.status} ${answer.text}`
  const isBatch = call.wish.type === 'batch' && answer.status === 200
  const answered = isBatch ? outcomesOf(answer) : [outcomeOf(answer)]
  const expected = world.model.carryOut(call, { ids: answered.map(one => one.id), at: now })
  const outcomes = (expected.lines ?? [expected]).map(({ code, id }) => ({ code, id }))
  assert.deepEqual(answered, outcomes, told)
  if (!isBatch) assertSides(answer, expected, told)
  for (const { code } of outcomes) seen.add(`${call.wish.type}: ${code}`)
  if (isRepeatable(call)) world.calls.push(call)
}

function isRepeatable({ key, wish }: Call): boolean {
  return key !== undefined || (wish.type === 'batch' && wish.lines.some(line => line.key !== undefined))
}

/** Where an answer tells a side's balance, it is the right one; who calls is told of a side at least. */
function assertSides({ body }: Answer, { from, to }: Expected, told: string) {
  if (!from || !to) return
  assert.ok(body.from_version ?? body.to_version, told)
  for (const [name, side] of Object.entries({ from, to })) {
    // The system's account is shared by all sequences.
    if (body[`${name}_version`] === null || side.account.startsWith('cash')) continue
    const stands = [body[name], body[`${name}_balance`], body[`${name}_version`]]
    assert.deepEqual(stands, [side.account, String(side.balance), side.version], told)
  }
}

async function assertTransfers(model: Model) {
  for (const transfer of model.transfers()) {
    const answer = await ledger.admin.get(`/v1/transfers/${transfer.id}`)
    const { kind, amount, hold_id, reverses_id } = answer.body
    const { holdId, reversesId } = transfer
    assert.deepEqual([kind, amount, hold_id, reverses_id], [transfer.kind, String(transfer.amount), holdId, reversesId])
    assertSides(answer, { code: 'posted', ...transfer }, answer.text)
  }
}
