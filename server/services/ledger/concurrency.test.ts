/** Many writers in two processes, each test for one rule. writers.test.ts has them do everything at once. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Answer, makeTestLedger, outcomesOf, type TestUser } from './test-support.ts'

const ledger = await makeTestLedger({ poolMax: 20 })
const other = await ledger.another()
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

test('one key twice in a batch is one transfer; with another body the second is told', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const [from, to] = [await ann.open(1000), await bob.open(0)]
  const line = { ...usd(from, to, 7), idempotency_key: 'twice' }
  const transfers = [line, line, { ...line, amount: '8' }, { ...line, linked: true }, usd(from, to, 1)]
  const answers = await all(32, n => anywhere(ann, n).post('/v1/transfers/batch', { transfers: transfers.slice(0, 3) }))
  const [first, ...rest] = answers.map(answer => outcomesOf(answer))
  assert.deepEqual(
    first!.map(outcome => outcome.code),
    ['posted', 'posted', 'idempotency_key_reused'],
  )
  assert.equal(first![0]!.id, first![1]!.id)
  for (const others of rest) assert.deepEqual(others, first)
  // Linked, it is another body: its chain fails, and what follows in it with it.
  const chained = await ann.post('/v1/transfers/batch', { transfers: transfers.slice(3) })
  assert.deepEqual(
    outcomesOf(chained).map(outcome => outcome.code),
    ['idempotency_key_reused', 'chain_failed'],
  )
  assert.deepEqual(await stateOf(to), [7, 0, 0])
})

test('batches that name the same accounts in opposite orders do not stop one another', async () => {
  const [ann, bob] = [newUser(), newUser()]
  const places = [...Array(8).keys()]
  const ones = await all(8, n => ann.open(1000, { name: `${n}` }))
  const twos = await all(8, n => bob.open(1000, { name: `${n}` }))
  const there = places.map(n => usd(ones[n]!, twos[7 - n]!, 1))
  const back = places.map(n => usd(twos[n]!, ones[7 - n]!, 1)).reverse()
  const answers = await all(64, n => {
    const [user, transfers] = n % 4 < 2 ? [ann, there] : [bob, back]
    return anywhere(user, n).post('/v1/transfers/batch', { transfers })
  })
  for (const answer of answers) for (const { code } of outcomesOf(answer)) assert.equal(code, 'posted')
  for (const account of [...ones, ...twos]) assert.deepEqual(await stateOf(account), [1000, 0, 0])
})

test('after all of it the books are in order', () => ledger.assertSound())
