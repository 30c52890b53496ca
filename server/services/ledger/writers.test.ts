/**
 * 64 writers at once, in two processes, at random. What was granted is done again afterwards, one after the other, at
 * a ledger in memory, which must come to the same; and for what was refused there must have been a reason while it
 * was asked.
 *
 * The order is known because every transaction takes its time under its locks, and here no two get the same one.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Answer, makeTestLedger, outcomeOf, outcomesOf } from './test-support.ts'
import { availableOf, type Call, type Expected, type Line, type Model, makeModel, type Wish } from './testing.ts'

const writers = 64
const stepsMax = 12
const runs = 8
const accountsPerRun = 12
const openingBalance = 500

let now = Date.now()
const ledger = await makeTestLedger({ poolMax: 20, clock: () => ++now })
const other = await ledger.another()
const bank = ledger.admin.caller.name
let worlds = 0
let keys = 0

const nth = fc.nat({ max: 200 })
const far = fc.integer({ min: 1, max: accountsPerRun - 1 })
const amount = fc.integer({ min: 1, max: 200 })
/** How often it is asked for at the same moment. */
const copies = fc.constantFrom(1, 1, 1, 2, 4)
const verb = <const T extends string>(...names: T[]) => fc.constantFrom(...names)
const payment = { from: nth, far, copies }

const step = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({ do: verb('pay'), ...payment, amount, isKeyed: fc.boolean(), isTwisted: fc.boolean() }),
  },
  { weight: 3, arbitrary: fc.record({ do: verb('hold'), ...payment, amount, seconds: fc.constantFrom(1, 600) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: verb('chain'),
      ...payment,
      amounts: fc.array(amount, { minLength: 2, maxLength: 4 }),
      isDoubled: fc.boolean(),
      first: fc.constantFrom(undefined, 'post', 'void', 'reverse'),
      nth,
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      do: verb('settle'),
      nth,
      verbs: fc.array(verb('post', 'void', 'expire'), { minLength: 1, maxLength: 4 }),
      share: fc.constantFrom(undefined, 0.5, 1.5),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: verb('reverse'), nth, copies }) },
  { weight: 1, arbitrary: fc.record({ do: verb('wait'), ms: fc.constantFrom(100, 1000) }) },
)
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never
type Did<Do extends Step['do']> = Extract<Step, { do: Do }>

interface Entry {
  call: Call
  answer: Answer
  /** It was decided after the one and not after the other. */
  start: number
  end: number
}

interface World {
  accounts: { id: string; owner: string }[]
  /** What the writers know of, to go on with. */
  holds: { id: string; from: string; to: string; amount: number }[]
  transfers: { id: string; to: string }[]
  history: Entry[]
}

test(`${writers} writers at random leave what can be explained one after the other`, async t => {
  const seed = Number(process.env.MODEL_SEED ?? Date.now() % 2 ** 31)
  t.diagnostic(`MODEL_SEED=${seed}`)
  const scripts = fc.array(fc.array(step, { minLength: stepsMax / 2, maxLength: stepsMax, size: 'max' }), {
    minLength: writers,
    maxLength: writers,
  })
  const property = fc.asyncProperty(scripts, async all => {
    const world = await makeWorld()
    await Promise.all(all.map(script => write(world, script)))
    await assertExplained(world)
    await ledger.assertSound()
  })
  // What depends on the moment is not made shorter by trying again.
  await fc.assert(property, { seed, numRuns: runs, endOnFailure: true })
})

async function makeWorld(): Promise<World> {
  const world: World = { accounts: [], holds: [], transfers: [], history: [] }
  worlds++
  for (let n = 0; n < accountsPerRun; n++) {
    const owner = `user ${n} of ${worlds}`
    const [opened] = await ask(world, [{ by: owner, wish: { type: 'open', currency: 'USD', name: '' } }])
    const { id } = opened!.answer.body
    world.accounts.push({ id, owner })
    await ask(world, [{ by: bank, wish: { type: 'deposit', to: id, amount: openingBalance, currency: 'USD' } }])
  }
  return world
}

async function write(world: World, script: Step[]) {
  for (const each of script) {
    if (each.do === 'wait') now += each.ms
    else if (each.do === 'settle') await settle(world, each)
    else if (each.do === 'reverse') await reverse(world, each)
    else if (each.do === 'chain') await chain(world, each)
    else await pay(world, each)
  }
}

/** Makes calls at the same moment, at either process. */
async function ask({ history }: World, calls: Call[]): Promise<Entry[]> {
  const start = now
  return Promise.all(
    calls.map(async (call, index) => {
      const answer = await ((keys + index) % 2 === 0 ? ledger : other).make(call)
      const entry = { call, answer, start, end: now }
      history.push(entry)
      return entry
    }),
  )
}

function pick<T>(items: readonly T[], n: number): T | undefined {
  return items[n % items.length]
}

const newKey = () => `key ${++keys}`

function partiesOf({ accounts }: World, { from, far }: { from: number; far: number }) {
  const payer = accounts[from % accounts.length]!
  return { by: payer.owner, from: payer.id, to: accounts[(from + far) % accounts.length]!.id, currency: 'USD' }
}

async function pay(world: World, each: Did<'pay'> | Did<'hold'>) {
  const { by, ...parties } = partiesOf(world, each)
  const isHold = each.do === 'hold'
  const wish: Wish = { type: 'transfer', ...parties, amount: each.amount, seconds: isHold ? each.seconds : undefined }
  const calls: Call[] = Array(each.copies).fill({ by, key: isHold || each.isKeyed ? newKey() : undefined, wish })
  if (!isHold && each.isTwisted) calls.push({ ...calls[0]!, wish: { ...wish, amount: each.amount + 1 } })
  const entries = await ask(world, calls)
  if (calls[0]!.key !== undefined) assertOneAnswer(entries)
  for (const { answer } of entries) {
    const { code, id } = outcomeOf(answer)
    if (code === 'posted') world.transfers.push({ id: id!, to: parties.to })
    if (code === 'pending') world.holds.push({ id: id!, ...parties, amount: each.amount })
  }
}

/** Whoever has the same key and body gets the same answer, and nobody else gets one. */
function assertOneAnswer(entries: Entry[]) {
  const granted = entries.filter(({ answer }) => answer.status < 300)
  const answers = new Set(granted.map(({ call, answer }) => JSON.stringify([call.wish, answer.text])))
  assert.ok(answers.size <= 1, [...answers].join('\n'))
}

/** Every line comes twice in the same batch where it is doubled. The first may be about what was done before. */
async function chain(world: World, each: Did<'chain'>) {
  const earlier = each.first && pick(each.first === 'reverse' ? world.transfers : world.holds, each.nth)
  const from = earlier ? world.accounts.findIndex(account => account.id === earlier.to) : each.from
  const { by, ...parties } = partiesOf(world, { ...each, from })
  const wishes: Line['wish'][] = each.amounts.map(amount => ({ type: 'transfer', ...parties, amount }))
  if (earlier && each.first)
    wishes.unshift(
      each.first === 'reverse' ? { type: 'reverse', transfer: earlier.id } : { type: each.first, hold: earlier.id },
    )
  const lines = wishes.map((wish, n): Line => ({ wish, linked: n < wishes.length - 1, key: newKey() }))
  const wish: Wish = { type: 'batch', lines: each.isDoubled ? [...lines, ...lines] : lines }
  const entries = await ask(world, Array(each.copies).fill({ by, wish }))
  const made = entries.flatMap(({ answer }) => chainsIn(outcomesOf(answer), lines.length)).filter(ids => ids.length > 0)
  assert.ok(new Set(made.map(String)).size <= 1, 'a repeated chain gets the same answer')
  for (const [n, id] of made[0]?.entries() ?? [])
    if (wishes[n]!.type === 'transfer') world.transfers.push({ id, to: parties.to })
}

/** The ids of each chain: all or none. */
function chainsIn(outcomes: ReturnType<typeof outcomesOf>, length: number): string[][] {
  return Array.from({ length: outcomes.length / length }, (_, n) => {
    const lines = outcomes.slice(n * length, (n + 1) * length)
    const ids = lines.flatMap(line => line.id ?? [])
    assert.ok(ids.length === 0 || ids.length === length, JSON.stringify(lines))
    const failed = lines.filter(line => line.code === 'chain_failed').length
    assert.equal(failed, ids.length === 0 ? length - 1 : 0, JSON.stringify(lines))
    return ids
  })
}

async function settle(world: World, each: Did<'settle'>) {
  const { accounts, holds } = world
  const hold = pick(holds, each.nth)
  if (!hold) return
  const by = accounts.find(account => account.id === hold.to)!.owner
  const amount = each.share && Math.ceil(hold.amount * each.share)
  const calls = each.verbs.map(
    (type): Call => ({
      by,
      key: type === 'expire' ? undefined : newKey(),
      wish: type === 'post' ? { type, hold: hold.id, amount } : { type, hold: hold.id },
    }),
  )
  const entries = await ask(world, calls)
  const ends = entries.filter(({ answer }) => answer.status < 300)
  assert.ok(ends.length <= 1, `a hold was ended twice: ${ends.map(({ answer }) => answer.text).join('\n')}`)
  for (const { call, answer } of ends)
    if (call.wish.type === 'post') world.transfers.push({ id: answer.body.id, to: hold.to })
}

async function reverse(world: World, each: Did<'reverse'>) {
  const { accounts, transfers } = world
  const original = pick(transfers, each.nth)
  if (!original) return
  const { id, to } = original
  const by = accounts.find(account => account.id === to)!.owner
  const entries = await ask(world, Array(each.copies).fill({ by, wish: { type: 'reverse', transfer: id } }))
  assert.ok(entries.filter(({ answer }) => answer.status < 300).length <= 1, 'a transfer was reversed twice')
  for (const { answer } of entries)
    if (answer.status < 300) world.transfers.push({ id: answer.body.id, to: answer.body.to })
}

/** Something that happened: a call or a line of one that was granted, by what it made or which hold it ended. */
interface Event {
  name: string
  id: string
  call: Call
}

/** What an account had to spend after a transaction, and at least inside of it. */
interface Moment {
  at: number
  least: number
  after: number
}

async function assertExplained(world: World) {
  const events = new Map(world.history.flatMap(eventsOf).map(event => [event.name, event]))
  const stored = await readStored(world)
  assert.deepEqual([...events.keys()].sort(), [...stored.keys()].sort(), 'what was granted is there, and nothing else')
  // Where one transaction did several things, whatever let go of money is taken first, and the rest by number.
  const rank = ({ name, id }: Event) => (name.startsWith('end') ? 0 : Number(id))
  const inOrder = [...events.values()].sort(
    (a, b) => stored.get(a.name)!.at - stored.get(b.name)!.at || rank(a) - rank(b),
  )
  const model = makeModel(bank)
  for (const { id, owner } of world.accounts)
    model.carryOut({ by: owner, wish: { type: 'open', currency: 'USD', name: '' } }, { ids: [id], at: 0 })
  const moments = replay(model, inOrder, stored)
  await ledger.assertLike(model)
  for (const entry of world.history)
    for (const refused of refusalsOf(entry)) assertReason(refused, { entry, model, moments, history: world.history })
}

function eventsOf({ call, answer }: Entry): Event[] {
  const { by, wish } = call
  if (wish.type === 'open') return []
  const parts = wish.type === 'batch' ? wish.lines.map(line => line.wish) : [wish]
  const outcomes = wish.type === 'batch' ? outcomesOf(answer) : [outcomeOf(answer)]
  return outcomes.flatMap(({ id }, place): Event[] => {
    const part = parts[place]!
    const isEnd = part.type === 'void' || part.type === 'expire'
    return id === undefined ? [] : [{ name: `${isEnd ? 'end' : 'made'} ${id}`, id, call: { by, wish: part } }]
  })
}

interface Stored {
  at: number
  from: (string | number)[]
  to: (string | number)[]
}

/** What stands in the tables, by the names of the events. */
async function readStored({ accounts }: World): Promise<Map<string, Stored>> {
  const { rows } = await ledger.db.query<Stored & { name: string }>(
    `select 'made ' || id as name, (extract(epoch from created_at) * 1000)::bigint as at,
            json_build_array(from_id::text, from_balance, from_version) as "from",
            json_build_array(to_id::text, to_balance, to_version) as "to"
     from ledger.transfers where from_id = any($1) or to_id = any($1)
     union all
     select 'made ' || id, (extract(epoch from created_at) * 1000)::bigint, null, null
     from ledger.holds where from_id = any($1)
     union all
     select 'end ' || id, (extract(epoch from settled_at) * 1000)::bigint, null, null
     from ledger.holds where from_id = any($1) and status in ('voided', 'expired')`,
    [accounts.map(account => Number(account.id))],
  )
  return new Map(rows.map(row => [row.name, row]))
}

/** Does it all again in memory, and answers what each account had to spend at what time. */
function replay(model: Model, events: Event[], stored: Map<string, Stored>): Map<string, Moment[]> {
  const moments = new Map(model.accounts().map(({ id }): [string, Moment[]] => [id, []]))
  const available = () => new Map(model.accounts().map(account => [account.id, availableOf(account)]))
  let before = available()
  for (const { name, id, call } of events) {
    const { at, from, to } = stored.get(name)!
    const expected = model.carryOut(call, { ids: [id], at })
    assert.equal(expected.id, id, `${name}, granted at ${at}: ${JSON.stringify(call)} was to be ${expected.code}`)
    assertSides(expected, { from, to }, name)
    const after = available()
    for (const [account, left] of after)
      if (left !== before.get(account)) note(moments.get(account)!, { at, before: before.get(account)!, after: left })
    before = after
  }
  return moments
}

function assertSides(expected: Expected, sides: Pick<Stored, 'from' | 'to'>, name: string) {
  for (const side of ['from', 'to'] as const) {
    const stands = expected[side]
    if (!stands || stands.account.startsWith('cash')) continue
    assert.deepEqual(sides[side], [stands.account, stands.balance, stands.version], name)
  }
}

function note(moments: Moment[], { at, before, after }: { at: number; before: number; after: number }) {
  const taken = Math.min(0, after - before)
  const last = moments.at(-1)
  if (last?.at === at) Object.assign(last, { after, least: last.least + taken })
  else moments.push({ at, after, least: before + taken })
}

/** The least that an account had to spend while something was asked. */
function leastAt(moments: Moment[], { start, end }: Entry): number {
  let least = 0
  for (const moment of moments) {
    if (moment.at <= start) least = moment.after
    else if (moment.at <= end) least = Math.min(least, moment.least)
  }
  return least
}

interface Refused {
  code: string
  wish: Wish
  /** Those before it in its chain, which were done and taken back. */
  before: Wish[]
}

function refusalsOf({ call, answer }: Entry): Refused[] {
  const { wish } = call
  if (wish.type !== 'batch') return answer.status < 300 ? [] : [{ code: outcomeOf(answer).code, wish, before: [] }]
  const length = wish.lines.findIndex(line => !line.linked) + 1
  const wishes = wish.lines.map(line => line.wish)
  return outcomesOf(answer).flatMap(({ code, id }, place) => {
    if (id !== undefined || code === 'chain_failed') return []
    return [{ code, wish: wishes[place]!, before: wishes.slice(place - (place % length), place) }]
  })
}

interface Facts {
  entry: Entry
  model: Model
  moments: Map<string, Moment[]>
  history: Entry[]
}

/** A refusal that was not true at any moment while it was asked for is a fault, and so is one of another kind. */
function assertReason({ code, wish, before }: Refused, { entry, model, moments, history }: Facts) {
  const hold = 'hold' in wish ? model.hold(wish.hold)! : undefined
  const original = wish.type === 'reverse' ? model.transfer(wish.transfer)! : undefined
  const reasons: Record<string, () => boolean> = {
    insufficient_funds: () => {
      const account = wish.type === 'transfer' ? wish.from : original!.to.account
      const taken = [...before, wish].reduce((sum, one) => sum - effectOn(account, one, model), 0)
      return leastAt(moments.get(account)!, entry) < taken
    },
    hold_already_posted: () => hold?.status === 'posted',
    hold_already_voided: () => hold?.status === 'voided',
    hold_expired: () => hold !== undefined && hold.expiresAt <= entry.end,
    hold_not_due: () => hold !== undefined && hold.expiresAt > entry.start,
    hold_amount_exceeded: () => wish.type === 'post' && wish.amount! > hold!.amount,
    already_reversed: () => model.transfers().some(({ reversesId }) => reversesId === original?.id),
    not_reversible: () => original?.kind === 'reversal',
    idempotency_key_reused: () => history.some(one => isOtherWish(one, entry)),
  }
  assert.ok(reasons[code]?.(), `${code} was no reason to refuse ${JSON.stringify(entry.call)} (${entry.answer.text})`)
}

/** What a wish that is granted adds to what an account has to spend. */
function effectOn(account: string, wish: Wish, model: Model): number {
  if (wish.type === 'transfer')
    return (wish.to === account ? wish.amount : 0) - (wish.from === account ? wish.amount : 0)
  if (wish.type === 'reverse') {
    const { from, to, amount } = model.transfer(wish.transfer)!
    return (from.account === account ? amount : 0) - (to.account === account ? amount : 0)
  }
  const hold = 'hold' in wish ? model.hold(wish.hold)! : undefined
  if (wish.type === 'post') return hold!.to === account ? (wish.amount ?? hold!.amount) : 0
  return wish.type === 'void' && hold!.from === account ? hold!.amount : 0
}

/** Whether a call with the same key was granted something else. */
function isOtherWish({ call, answer }: Entry, refused: Entry): boolean {
  const { by, key, wish } = refused.call
  return key !== undefined && answer.status < 300 && call.key === key && call.by === by && call.wish !== wish
}
