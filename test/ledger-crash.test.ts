/**
 * Money while things are killed: 64 writers move it about over HTTP, each request with an Idempotency-Key, and Capstan,
 * or PostgreSQL, gets SIGKILL ten times meanwhile. Who got no answer asks again with the same key; some give up.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { lineKey, toStoredKey } from '../server/services/ledger/keys.ts'
import { assertBooks } from '../server/services/ledger/test-kit.ts'
import {
  type Capstan,
  killPostgres,
  killPostmaster,
  makeDataDir,
  postmasterOf,
  queryIn,
  runCapstan,
  startCapstan,
  stopAll,
} from './support/capstan.ts'
import { type Answer, makeUser, send, type User } from './support/http.ts'
import { until } from './support/until.ts'

const writers = 64
const kills = 10
const stepsPerWriter = 100
const userNames = ['ann', 'bob', 'cem', 'dan', 'eve', 'fay']
const openingBalance = 2000
/** Between two kills. */
const answersBetween = fc.integer({ min: 50, max: 600 })
const recoveryTimeoutMs = 30_000

const amount = fc.integer({ min: 1, max: 300 })
const parties = { from: fc.nat({ max: 1000 }), to: fc.nat({ max: 1000 }) }
/** Whether who gets no answer asks no more, until all is over. */
const quits = fc.constantFrom(true, false, false)
const verb = <const T extends string>(...names: T[]) => fc.constantFrom(...names)
const then = verb('post', 'chain', 'void', 'expire', 'race')

const step = fc.oneof(
  { weight: 4, arbitrary: fc.record({ do: verb('pay'), quits, ...parties, amount }) },
  { weight: 4, arbitrary: fc.record({ do: verb('hold'), quits, ...parties, amount, then }) },
  {
    weight: 3,
    arbitrary: fc.record({
      do: verb('chain'),
      quits,
      ...parties,
      amounts: fc.array(amount, { minLength: 2, maxLength: 4 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: verb('reverse'), quits, ...parties, amount }) },
  { weight: 1, arbitrary: fc.record({ do: verb('deposit', 'withdrawal'), quits, ...parties, amount }) },
)
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never
type Did<Do extends Step['do']> = Extract<Step, { do: Do }>

interface Request {
  by: Pick<User, 'id' | 'post'>
  url: string
  body: object
  key: string
  quits: boolean
}

interface Account {
  id: string
  owner: User
}

interface Scene {
  dataDir: string
  capstan: Capstan
  /** Resolved while nothing is known to be dead. */
  up: Promise<void>
  bank: Request['by']
  accounts: Account[]
  /** So far. */
  answers: number
  asking: number
  isOver: boolean
  /** A writer has failed: the others need not go on. */
  isBroken: boolean
  granted: Map<Request, Answer>
  refused: Map<Request, Answer>
  abandoned: Request[]
  /** How often somebody was left without an answer. */
  lost: number
}

const services = 'ledger'

test('what was acknowledged is there once when Capstan is killed, and the rest is whole or absent', async t => {
  const dataDir = await makeDataDir()
  const scene = await makeScene(dataDir)
  await moveMoneyWhile(scene, seedOf(t), async () => {
    scene.capstan.kill('SIGKILL')
    await scene.capstan.exited
    scene.capstan = await startCapstan({ dataDir, services })
  })
  await assertAllIsWell(scene, t)
})

test('what was acknowledged is there once when PostgreSQL is killed, and the rest is whole or absent', async t => {
  const dataDir = await makeDataDir()
  const scene = await makeScene(dataDir)
  const { capstan } = scene
  await moveMoneyWhile(scene, seedOf(t), async round => {
    const before = await postmasterOf(dataDir)
    await (round % 2 === 0 ? killPostgres : killPostmaster)(dataDir)
    await until(async () => ![undefined, before].includes(await postmasterOf(dataDir)), recoveryTimeoutMs)
    await until(async () => (await send(capstan, 'GET', '/readyz')).status === 200, recoveryTimeoutMs)
  })
  assert.doesNotMatch(capstan.log(), /unexpected error|uncaught|unhandled/i)
  await assertAllIsWell(scene, t)
  await assertDamageIsFound(dataDir)
})

function seedOf(t: { diagnostic(text: string): void }): number {
  const seed = Number(process.env.MODEL_SEED ?? Date.now() % 2 ** 31)
  t.diagnostic(`MODEL_SEED=${seed}`)
  return seed
}

async function makeScene(dataDir: string): Promise<Scene> {
  const capstan = await startCapstan({ dataDir, services })
  const users = await Promise.all(userNames.map(name => makeUser(capstan, name)))
  const counts = { answers: 0, asking: 0, lost: 0, isOver: false, isBroken: false }
  const records = { granted: new Map(), refused: new Map(), abandoned: [] }
  const bank = await makeBank(capstan)
  const scene: Scene = { dataDir, capstan, up: Promise.resolve(), bank, accounts: [], ...counts, ...records }
  for (const owner of [...users, ...users]) {
    const name = `${scene.accounts.length}`
    const opened = await owner.post(capstan, '/v1/accounts', { currency: 'USD', name })
    assert.equal(opened.status, 201, JSON.stringify(opened.body))
    scene.accounts.push({ id: opened.body.id, owner })
    const body = { to: opened.body.id, amount: String(openingBalance), currency: 'USD' }
    await ask(scene, { by: bank, url: '/v1/deposits', body, key: `opening ${name}`, quits: false })
  }
  return scene
}

/** A banker with a banker's token: a role counts from the next login on. */
async function makeBank(capstan: Capstan): Promise<Request['by']> {
  const { id, name, password } = await makeUser(capstan, 'bank')
  const made = await runCapstan(capstan.dataDir, 'user', 'role', name, 'banker')
  assert.equal(made.code, 0, made.output)
  const { body } = await send(capstan, 'POST', '/v1/auth/login', {}, { username: name, password })
  const authorization = `Bearer ${body.access_token}`
  return { id, post: (at, url, content, headers) => send(at, 'POST', url, { authorization, ...headers }, content) }
}

/** Lets the writers write, and kills again and again; resolves when every writer has its last answer. */
async function moveMoneyWhile(scene: Scene, seed: number, kill: (round: number) => Promise<void>) {
  const script = fc.array(step, { minLength: stepsPerWriter, maxLength: stepsPerWriter, size: 'max' })
  const scripts = fc.sample(script, { seed, numRuns: writers })
  const writing = Promise.all(scripts.map((steps, writer) => write(scene, steps, writer)))
  try {
    for (const [round, answers] of fc.sample(answersBetween, { seed, numRuns: kills }).entries()) {
      const target = scene.answers + answers
      await Promise.race([writing, until(() => scene.answers >= target, recoveryTimeoutMs)])
      const { promise, resolve } = Promise.withResolvers<void>()
      scene.up = promise
      assert.ok(scene.asking > 0, 'requests are under way')
      await Promise.race([writing, kill(round)])
      resolve()
    }
    scene.isOver = true
    await writing
  } catch (error) {
    scene.isBroken = true
    throw error
  }
}

async function write(scene: Scene, steps: Step[], writer: number) {
  for (let n = 0; !scene.isOver; n++) {
    const each = steps[n % steps.length]!
    const key = `${writer}.${n}`
    if (each.do === 'hold') await hold(scene, each, key)
    else if (each.do === 'reverse') await payAndReverse(scene, each, key)
    else await ask(scene, toRequest(scene, each, key))
  }
}

function partiesOf({ accounts }: Scene, each: { from: number; to: number }): [Account, Account] {
  const payer = accounts[each.from % accounts.length]!
  const others = accounts.filter(account => account !== payer)
  return [payer, others[each.to % others.length]!]
}

function toRequest(scene: Scene, each: Exclude<Step, Did<'hold'>>, key: string): Request {
  const [from, to] = partiesOf(scene, each)
  const line = { from: from.id, to: to.id, currency: 'USD' }
  const common = { key, quits: each.quits }
  if (each.do === 'chain') {
    const last = each.amounts.length - 1
    const transfers = each.amounts.map((one, n) => ({ ...line, amount: String(one), linked: n < last }))
    return { ...common, by: from.owner, url: '/v1/transfers/batch', body: { transfers } }
  }
  const money = { amount: String(each.amount), currency: 'USD' }
  if (each.do === 'deposit') return { ...common, by: scene.bank, url: '/v1/deposits', body: { to: to.id, ...money } }
  if (each.do === 'withdrawal')
    return { ...common, by: scene.bank, url: '/v1/withdrawals', body: { from: to.id, ...money } }
  return { ...common, by: from.owner, url: '/v1/transfers', body: { ...line, ...money } }
}

async function payAndReverse(scene: Scene, each: Did<'reverse'>, key: string) {
  const paid = await ask(scene, toRequest(scene, each, key))
  if (paid?.status !== 201) return
  const by = partiesOf(scene, each)[1].owner
  const url = `/v1/transfers/${paid.body.id}/reverse`
  await ask(scene, { by, url, body: {}, key: `${key} reverse`, quits: each.quits })
}

/** Of a race the job that lets go of holds may be the third. */
async function hold(scene: Scene, each: Did<'hold'>, key: string) {
  const [from, to] = partiesOf(scene, each)
  const timeout = each.then === 'expire' || each.then === 'race' ? { timeout_seconds: 1 } : {}
  const money = { amount: String(each.amount), currency: 'USD' }
  const body = { from: from.id, to: to.id, ...money, pending: true, ...timeout }
  const { quits } = each
  const held = await ask(scene, { by: from.owner, url: '/v1/transfers', body, key, quits })
  if (held?.status !== 201 || each.then === 'expire') return
  const { id } = held.body
  const end = (url: string, content: object) =>
    ask(scene, { by: to.owner, url, body: content, key: `${key} ${url}`, quits })
  const post = () => end(`/v1/transfers/${id}/post`, { amount: String(Math.ceil(each.amount / 2)) })
  const letGo = () => end(`/v1/transfers/${id}/void`, {})
  const passOn = () =>
    end('/v1/transfers/batch', {
      transfers: [
        { post: id, linked: true },
        { from: to.id, to: from.id, ...money },
      ],
    })
  const ways = { post: [post], void: [letGo], race: [post, letGo, passOn], chain: [passOn] }
  const ends = await Promise.all(ways[each.then].map(way => way()))
  const won = ends.filter(answer => answer && isGranted(answer)).length
  assert.ok(won <= 1, `hold ${id} ended ${won} times`)
}

/** Asks until there is an answer, or gives up. */
async function ask(scene: Scene, request: Request): Promise<Answer | undefined> {
  while (!scene.isBroken) {
    const answer = await attempt(scene, request)
    if (answer) {
      scene.answers++
      const kind = isGranted(answer) ? scene.granted : scene.refused
      kind.set(request, answer)
      return answer
    }
    scene.lost++
    if (request.quits) {
      scene.abandoned.push(request)
      return undefined
    }
    await scene.up
  }
  throw new Error('The test was given up.')
}

const refusals = new Set(['insufficient_funds', 'hold_already_posted', 'hold_already_voided', 'hold_expired'])

/** Undefined when nobody knows what became of it: the connection broke, or the answer is 503. */
async function attempt(scene: Scene, { by, url, body, key }: Request): Promise<Answer | undefined> {
  scene.asking++
  const answer = await by.post(scene.capstan, url, body, { 'idempotency-key': key }).catch(() => undefined)
  scene.asking--
  if (!answer || answer.status === 503) return undefined
  const isExpected = answer.status < 300 || refusals.has(answer.body.code)
  assert.ok(isExpected, `${url} was answered ${answer.status} ${JSON.stringify(answer.body)}`)
  return answer
}

/** Of a batch: its chain. */
function isGranted({ status, body }: Answer): boolean {
  return status < 300 && (body.outcomes?.every((line: { id?: string }) => line.id) ?? true)
}

/** The keys as the tables have them: one, or one a line. */
function keysOf({ by, key, body }: Request): string[] {
  if (!('transfers' in body)) return [toStoredKey({ owner: by.id, key, fingerprint: Buffer.alloc(32) })!.id]
  return (body.transfers as unknown[]).map(
    (line, index) => lineKey({ owner: by.id, ownKey: undefined, batchKey: key, index, line })!.id,
  )
}

async function assertAllIsWell(scene: Scene, t: { diagnostic(text: string): void }) {
  const { dataDir, granted, refused, abandoned } = scene
  assert.ok(abandoned.length > 0 && scene.lost > abandoned.length, 'answers were lost, and asked for again')
  const stored = await readKeys(dataDir)
  const there = abandoned.filter(request => rowsOf(request, stored) > 0).length
  t.diagnostic(`${granted.size} granted, ${refused.size} refused, ${scene.lost} answers lost`)
  t.diagnostic(`${abandoned.length} given up, of which ${there} are there`)
  for (const request of refused.keys()) assert.equal(rowsOf(request, stored), 0, `${request.key} was refused`)
  for (const request of abandoned)
    assert.ok([0, keysOf(request).length].includes(rowsOf(request, stored)), `${request.key} is whole or absent`)

  const before = [...granted]
  await inTurns(before, async ([request, first]) => {
    const again = await attempt(scene, request)
    assert.deepEqual([again?.status, again?.body], [first.status, first.body], request.key)
  })
  await inTurns(abandoned, request => ask(scene, { ...request, quits: false }))
  await until(async () => (await countOpen(dataDir)) === 0, recoveryTimeoutMs)

  const now = await readKeys(dataDir)
  for (const request of granted.keys())
    assert.equal(rowsOf(request, now), keysOf(request).length, `${request.key} was acknowledged`)
  const rows = [...granted.keys()].reduce((sum, request) => sum + keysOf(request).length, 0)
  assert.equal(
    [...now.values()].reduce((sum, count) => sum + count, 0),
    rows,
    'and nothing else is there',
  )
  await assertBooks(text => queryIn(dataDir, text))
  assert.equal(await moneyOfUsers(dataDir), moneyBrought(scene))
  await stopAll(scene.capstan)
  await assertVerified(dataDir)
}

function rowsOf(request: Request, stored: Map<string, number>): number {
  return keysOf(request).reduce((sum, key) => sum + (stored.get(key) ?? 0), 0)
}

/** How many rows each key has made, or ended. */
async function readKeys(dataDir: string): Promise<Map<string, number>> {
  const rows = await queryIn<{ key: string; n: number }>(
    dataDir,
    `select replace(key::text, '-', '') as key, count(*)::int as n
     from (select idempotency as key from ledger.transfers
           union all select idempotency from ledger.holds
           union all select void_idempotency from ledger.holds) keys
     where key is not null group by key`,
  )
  return new Map(rows.map(row => [row.key, row.n]))
}

/** Holds whose time is over, or soon will be, and that nobody has ended. */
async function countOpen(dataDir: string): Promise<number> {
  const [row] = await queryIn<{ n: number }>(
    dataDir,
    `select count(*)::int as n from ledger.holds where status = 'open' and expires_at < now() + interval '1 minute'`,
  )
  return row!.n
}

async function moneyOfUsers(dataDir: string): Promise<number> {
  const [row] = await queryIn<{ sum: string }>(
    dataDir,
    `select sum(balance)::text as sum from ledger.accounts where owner <> ''`,
  )
  return Number(row!.sum)
}

function moneyBrought({ granted }: Scene): number {
  const signs: Record<string, number> = { '/v1/deposits': 1, '/v1/withdrawals': -1 }
  return [...granted.keys()].reduce(
    (sum, { url, body }) => sum + (signs[url] ?? 0) * Number('amount' in body ? body.amount : 0),
    0,
  )
}

/** As many at once as there are writers. */
async function inTurns<T>(items: readonly T[], work: (item: T) => Promise<unknown>) {
  const rest = items.values()
  await Promise.all(
    Array.from({ length: writers }, async () => {
      for (const item of rest) await work(item)
    }),
  )
}

async function assertVerified(dataDir: string) {
  const { code, output } = await runCapstan(dataDir, 'ledger', 'verify')
  assert.match(output, /The ledger is right\.\n$/)
  assert.match(output, /^\d+ accounts, [1-9]\d* transfers, [1-9]\d* links/)
  assert.equal(code, 0)
}

/** One cent more in one transfer, behind the back of the trigger that refuses it. */
async function assertDamageIsFound(dataDir: string) {
  const capstan = await startCapstan({ dataDir, services })
  await queryIn(
    dataDir,
    `set session_replication_role = replica;
     update ledger.transfers set amount = amount + 1 where id = (select min(id) from ledger.transfers)`,
  )
  await stopAll(capstan)
  const { code, output } = await runCapstan(dataDir, 'ledger', 'verify')
  assert.match(output, /has another digest than its transfers/)
  assert.match(output, /The ledger is wrong in \d+ places\.\n$/)
  assert.equal(code, 1)
}
