/** Many writers in two processes, beside a ledger in memory that only knows what was answered. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Answer, makeTestLedger, type TestUser } from './test-support.ts'

const ledger = await makeTestLedger({ poolMax: 20 })
const other = await ledger.another()
const writers = 64
let users = 0
const newUser = () => ledger.user(`user${++users}`)

/** The same user at either process. */
const anywhere = (user: TestUser, n: number) => (n % 2 === 0 ? user : other.user(user.caller.name))
const usd = (from: string, to: string, amount: number | bigint) => ({
  from,
  to,
  amount: String(amount),
  currency: 'USD',
})
const codeOf = (answer: Answer): string => answer.body.code ?? answer.body.status
const count = (answers: Answer[], code: string) => answers.filter(answer => codeOf(answer) === code).length
const all = <T>(n: number, make: (index: number) => Promise<T>) =>
  Promise.all(Array.from({ length: n }, (_, i) => make(i)))

async function stateOf(account: string) {
  const { body } = await ledger.admin.get(`/v1/accounts/${account}`)
  return [body.balance, body.pending_in, body.pending_out].map(Number)
}

test('exactly as many debits succeed as the balance allows', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(1000), await bob.open(0)]
  const answers = await all(200, n => anywhere(ann, n).post('/v1/transfers', usd(from, to, 30)))
  assert.deepEqual([count(answers, 'posted'), count(answers, 'insufficient_funds')], [33, 167])
  assert.deepEqual(await stateOf(from), [10, 0, 0])
})

test('callers with one key and body make one transfer and get one answer', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(1000), await bob.open(0)]
  const answers = await all(100, n => anywhere(ann, n).post('/v1/transfers', usd(from, to, 7), 'one key'))
  assert.ok(answers.every(answer => answer.status === 201))
  assert.equal(new Set(answers.map(answer => answer.text)).size, 1)
  assert.deepEqual(await stateOf(to), [7, 0, 0])
  const changed = await ann.post('/v1/transfers', usd(from, to, 8), 'one key')
  assert.deepEqual([changed.status, changed.body.code], [422, 'idempotency_key_reused'])
})

test('callers with one key and different bodies: one is served, the others are told', async () => {
  const ann = newUser()
  const to = await newUser().open(0)
  const sources = await all(8, n => ann.open(100, { name: `source ${n}` }))
  for (let round = 0; round < 10; round++) {
    const key = `shared ${round}`
    const answers = await all(64, n => anywhere(ann, n).post('/v1/transfers', usd(sources[n % 8]!, to, 7), key))
    assert.deepEqual([count(answers, 'posted'), count(answers, 'idempotency_key_reused')], [8, 56])
  }
  assert.deepEqual(await stateOf(to), [70, 0, 0])
})

test('a refused transfer leaves its key free', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(0), await bob.open(0)]
  const send = () => ann.post('/v1/transfers', usd(from, to, 5), 'later')
  assert.equal(codeOf(await send()), 'insufficient_funds')
  await ledger.admin.post('/v1/deposits', { to: from, amount: '5', currency: 'USD' })
  assert.equal(codeOf(await send()), 'posted')
})

test('transfers in both directions at once do not stop one another', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [one, two] = [await ann.open(1000), await bob.open(1000)]
  const answers = await all(200, n =>
    n % 4 < 2
      ? anywhere(ann, n).post('/v1/transfers', usd(one, two, 1))
      : anywhere(bob, n).post('/v1/transfers', usd(two, one, 1)),
  )
  assert.equal(count(answers, 'posted'), 200)
  assert.deepEqual(await stateOf(one), [1000, 0, 0])
})

test('of post, void and expiry one wins', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(100_000), await bob.open(0)]
  let posted = 0
  for (let round = 0; round < 20; round++) {
    const { id } = (await ann.post('/v1/transfers', { ...usd(from, to, 10), pending: true, timeout_seconds: 1 })).body
    // From the middle of the round on its time is over.
    const answers = await all(16, async n => {
      if (n === 8) ledger.time.offsetMs += 1000
      if (n % 4 === 3) {
        const expire = n % 2 === 0 ? ledger.service.submit : other.service.submit
        return expire({ type: 'expire', holdId: Number(id), key: null }).then(
          () => 'settled',
          error => error.code as string,
        )
      }
      const answer = await anywhere(bob, n).post(`/v1/transfers/${id}/${n % 2 === 0 ? 'post' : 'void'}`)
      return answer.status < 300 ? 'settled' : codeOf(answer)
    })
    assert.equal(answers.filter(answer => answer === 'settled').length, 1, answers.join(' '))
    if ((await ann.get(`/v1/transfers/${id}`)).body.status === 'posted') posted++
  }
  assert.deepEqual(await stateOf(from), [100_000 - 10 * posted, 0, 0])
})

test('a transfer is reversed once, however many ask', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(100), await bob.open(900)]
  const { id } = (await ann.post('/v1/transfers', usd(from, to, 60))).body
  const answers = await all(64, n => anywhere(bob, n).post(`/v1/transfers/${id}/reverse`))
  assert.deepEqual([count(answers, 'posted'), count(answers, 'already_reversed')], [1, 63])
  assert.deepEqual(await stateOf(from), [100, 0, 0])
})

/** A small seeded generator (mulberry32), so that a failure can be had again. */
function makeRandom(seed: number) {
  let state = seed
  const next = () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  return {
    below: (n: number) => Math.floor(next() * n),
    pick: <T>(items: readonly T[]) => items[Math.floor(next() * items.length)]!,
  }
}

interface ModelAccount {
  id: string
  user: TestUser
  balance: number
  pendingIn: number
  pendingOut: number
}

interface ModelHold {
  id: string
  from: ModelAccount
  to: ModelAccount
  amount: number
}

/** Only what was answered with success is booked here. */
function makeModel(accounts: ModelAccount[]) {
  const holds: ModelHold[] = []
  const posted: { id: string; from: ModelAccount; to: ModelAccount; amount: number }[] = []
  return {
    accounts,
    holds,
    posted,
    book(id: string, from: ModelAccount, to: ModelAccount, amount: number) {
      from.balance -= amount
      to.balance += amount
      posted.push({ id, from, to, amount })
    },
    setAside(hold: ModelHold) {
      hold.from.pendingOut += hold.amount
      hold.to.pendingIn += hold.amount
      holds.push(hold)
    },
    release(hold: ModelHold) {
      hold.from.pendingOut -= hold.amount
      hold.to.pendingIn -= hold.amount
      holds.splice(holds.indexOf(hold), 1)
    },
  }
}

const refusals = new Set([
  'insufficient_funds',
  'hold_already_posted',
  'hold_already_voided',
  'already_reversed',
  'hold_amount_exceeded',
])

for (const seed of [1, 2, 3]) {
  test(`${writers} writers at random leave what the answers say (seed ${seed})`, async () => {
    const random = makeRandom(seed)
    const accounts = await all(12, async (): Promise<ModelAccount> => {
      const user = newUser()
      return { id: await user.open(500), user, balance: 500, pendingIn: 0, pendingOut: 0 }
    })
    const model = makeModel(accounts)
    const seen: Answer[] = []

    async function transferOne(from: ModelAccount, to: ModelAccount, n: number) {
      const amount = 1 + random.below(200)
      const pending = random.below(4) === 0
      const key = random.below(2) === 0 ? `${seed}-${n}-${random.below(1e9)}` : undefined
      const body = { ...usd(from.id, to.id, amount), ...(pending && { pending }) }
      const answer = await anywhere(from.user, random.below(2)).post('/v1/transfers', body, key)
      seen.push(answer)
      if (answer.status !== 201) return
      if (pending) model.setAside({ id: answer.body.id, from, to, amount })
      else model.book(answer.body.id, from, to, amount)
      if (!key) return
      const again = await anywhere(from.user, random.below(2)).post('/v1/transfers', body, key)
      assert.equal(again.text, answer.text)
    }

    async function settleOne() {
      const hold = random.pick(model.holds)
      const verb = random.pick(['post', 'void'])
      const amount = random.below(2) === 0 ? undefined : 1 + random.below(hold.amount + 10)
      const body = verb === 'post' && amount !== undefined ? { amount: String(amount) } : undefined
      const answer = await anywhere(hold.to.user, random.below(2)).post(`/v1/transfers/${hold.id}/${verb}`, body)
      seen.push(answer)
      if (answer.status >= 300) return
      model.release(hold)
      if (verb === 'post') model.book(answer.body.id, hold.from, hold.to, Number(answer.body.amount))
    }

    async function reverseOne() {
      const { id, from, to, amount } = random.pick(model.posted)
      const answer = await anywhere(to.user, random.below(2)).post(`/v1/transfers/${id}/reverse`)
      if (codeOf(answer) === 'not_reversible') return
      seen.push(answer)
      if (answer.status === 201) model.book(answer.body.id, to, from, amount)
    }

    async function chain(from: ModelAccount, to: ModelAccount) {
      const amounts = Array.from({ length: 2 + random.below(3) }, () => 1 + random.below(150))
      const transfers = amounts.map((amount, index) => ({
        ...usd(from.id, to.id, amount),
        linked: index < amounts.length - 1,
      }))
      const { body } = await anywhere(from.user, random.below(2)).post('/v1/transfers/batch', { transfers })
      const made = body.outcomes.filter((outcome: { id?: string }) => outcome.id)
      assert.ok(made.length === 0 || made.length === amounts.length, 'a chain stands or falls as a whole')
      for (const [index, { id }] of made.entries()) model.book(id, from, to, amounts[index]!)
    }

    await all(writers, async n => {
      for (let step = 0; step < 12; step++) {
        const from = random.pick(accounts)
        const to = random.pick(accounts.filter(account => account !== from))
        const dice = random.below(10)
        if (dice < 2 && model.holds.length > 0) await settleOne()
        else if (dice < 3 && model.posted.length > 0) await reverseOne()
        else if (dice < 4) await chain(from, to)
        else await transferOne(from, to, n * 100 + step)
      }
    })

    for (const answer of seen) assert.ok(answer.status < 300 || refusals.has(codeOf(answer)), answer.text)
    for (const account of accounts) {
      assert.deepEqual(await stateOf(account.id), [account.balance, account.pendingIn, account.pendingOut])
      assert.ok(account.balance - account.pendingOut >= 0)
    }
    await assertStored(
      model.posted.map(one => one.id),
      accounts,
    )
    await ledger.assertSound()
  })
}

/** What was acknowledged is there once; nothing else is. */
async function assertStored(ids: string[], accounts: ModelAccount[]) {
  const { rows } = await ledger.db.query<{ id: number }>(
    `select id from ledger.transfers where kind <> 'deposit' and from_id = any($1) order by id`,
    [accounts.map(account => Number(account.id))],
  )
  assert.deepEqual(
    rows.map(row => row.id),
    ids.map(Number).sort((a, b) => a - b),
  )
}
