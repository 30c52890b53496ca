/** A ledger on a database of its own, behind HTTP, for callers who say by themselves who they are. */
import assert from 'node:assert/strict'
import { makeBus } from '#platform/bus.ts'
import { type Database, makeDatabase, sqlState } from '#platform/database/pool.ts'
import { isAppError } from '#platform/errors.ts'
import type { Caller, UserRole } from '#platform/http/guard.ts'
import { makeRateLimiter } from '#platform/http/rate-limit.ts'
import { makeHttp } from '#platform/http/server.ts'
import { makeJobs } from '#platform/jobs/jobs.ts'
import type { TopicSource } from '#platform/live/live.ts'
import { silentLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import type { IdentityService } from '#services/identity/index.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { extendChain } from './chain.ts'
import { makeLedgerService } from './index.ts'
import { assertBooks } from './test-kit.ts'
import { type Call, type Model, toHttp } from './testing.ts'
import { verify } from './verify.ts'

export interface Answer {
  status: number
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it as they need.
  body: any
  text: string
}

export interface TestUser {
  caller: Caller
  get(url: string): Promise<Answer>
  post(url: string, body?: unknown, key?: string): Promise<Answer>
  /** An account with money in it. */
  open(balance: bigint | number, options?: { currency?: string; name?: string }): Promise<string>
}

export type TestLedger = Awaited<ReturnType<typeof makeTestLedger>>

const noIdentity: ReturnType<MakeIdentity> = {
  authenticate: async () => undefined,
  registerOnly: () => Promise.reject(new Error('There is no identity here.')),
  login: () => Promise.reject(new Error('There is no identity here.')),
  renew: () => Promise.reject(new Error('There is no identity here.')),
}

type MakeIdentity = (db: Database) => Pick<IdentityService, 'registerOnly' | 'login' | 'renew' | 'authenticate'>

export interface TestLedgerOptions {
  /** Connections of the process. */
  poolMax?: number
  /** Whether holds expire by themselves. */
  work?: boolean
  identity?: MakeIdentity
  /** Unix milliseconds; by default the machine's, which `time.offsetMs` puts forward. */
  clock?: () => number
}

export async function makeTestLedger(options: TestLedgerOptions = {}) {
  const { db, url } = await makeTestDatabase({ poolMax: options.poolMax ?? 10 })
  const time = { offsetMs: 0 }
  const clock = options.clock ?? (() => Date.now() + time.offsetMs)
  const identity = options.identity?.(db)
  const deadlocks = { count: 0 }
  const main = await makeProcess({ db: withCount(db, deadlocks), clock, work: options.work ?? false, identity })
  const admin = main.user('the-bank', 'admin')
  return {
    ...main,
    db,
    url,
    time,
    admin,
    banker: main.user('the-banker', 'banker'),
    /** Another Capstan on the same database. */
    async another(faults: Faults = {}) {
      const own = makeDatabase({ url, poolMax: 5, log: silentLog, applicationName: `capstan:${process.pid}` })
      atEnd(() => own.close())
      return makeProcess({ db: withFaults(withCount(own, deadlocks), faults), clock, work: false })
    },
    /** All money, all versions, all links, and no two transactions that waited for one another. */
    async assertSound() {
      assert.equal(deadlocks.count, 0)
      while ((await extendChain(db)) > 0);
      const { findings } = await verify(db)
      assert.deepEqual(findings, [])
      await assertBooks(async text => (await db.query(text)).rows as never)
    },
    /** Accounts and holds stand as they do in memory. */
    async assertLike(model: Model) {
      for (const account of model.accounts()) {
        const { body } = await admin.get(`/v1/accounts/${account.id}`)
        const { balance, pendingIn, pendingOut, version, status } = account
        assert.deepEqual(
          [body.balance, body.pending_in, body.pending_out, body.version, body.status],
          [String(balance), String(pendingIn), String(pendingOut), version, status],
          `account ${account.id}`,
        )
      }
      for (const { id, status } of model.holds())
        assert.equal((await admin.get(`/v1/transfers/${id}`)).body.status, status, `hold ${id}`)
    },
  }
}

export interface Faults {
  /** Takes the locks out of every statement. */
  withoutLocks?: boolean
  /** Waited for when all of a transaction is written. It rolls back when this rejects. */
  beforeCommit?: () => Promise<void>
}

function withFaults(db: Database, { withoutLocks, beforeCommit }: Faults): Database {
  return {
    ...db,
    tx: (run, options) =>
      db.tx(async tx => {
        const query: typeof tx.query = (text, ...rest) =>
          tx.query(withoutLocks ? text.replace(' for no key update', '') : text, ...rest)
        const result = await run({ ...tx, query })
        await beforeCommit?.()
        return result
      }, options),
  }
}

const deadlockDetected = '40P01'

/** A transaction that PostgreSQL ended for a deadlock is tried again: nobody would know but by the time it took. */
function withCount(db: Database, deadlocks: { count: number }): Database {
  return {
    ...db,
    tx: (run, options) =>
      db.tx(tx => {
        const query: typeof tx.query = (...given) =>
          tx.query<never>(...given).catch(error => {
            if (sqlState(error) === deadlockDetected) deadlocks.count++
            throw error
          })
        return run({ ...tx, query })
      }, options),
  }
}

async function makeProcess(given: {
  db: Database
  clock: () => number
  work: boolean
  identity?: ReturnType<MakeIdentity> | undefined
}) {
  const { db, clock, work, identity = noIdentity } = given
  const bus = makeBus({ db, redisUrl: undefined, log: silentLog })
  const metrics = makeMetrics({ processMetrics: false })
  const jobs = makeJobs({ db, bus, log: silentLog, metrics, keepDays: 1, pollMs: 50 })
  const sources: TopicSource[] = []
  const woken: string[] = []
  const service = makeLedgerService({
    db,
    jobs,
    live: { addSource: source => void sources.push(source), wake: topics => void woken.push(...topics) },
    log: silentLog,
    settings: {
      LEDGER_UNITS: 'CREDIT:0',
      LEDGER_BATCH_MAX: 8000,
      LEDGER_HOLD_SECONDS: 600,
      LEDGER_HOLD_SECONDS_MAX: 86_400,
    },
    identity,
    work,
    clock,
  })
  const app = await makeHttp({
    settings: { BODY_LIMIT_BYTES: 1_000_000, TRUST_PROXY: false, NODE_ENV: 'test', PUBLIC_URL: undefined },
    log: silentLog,
    metrics,
    authenticate: async request => {
      const header = request.headers['x-caller']
      return typeof header === 'string' ? (JSON.parse(header) as Caller) : identity.authenticate(request)
    },
    rateLimiter: makeRateLimiter({ name: 'requests', points: 0, windowSeconds: 60, redis: undefined }),
    version: 'test',
  })
  await service.routes(app)
  await service.compatRoutes(app)
  await app.ready()
  if (work) await jobs.start({ work: true })
  atEnd(async () => {
    if (work) await jobs.stop(1000)
    await service.stop()
    await app.close()
  })

  async function send(
    caller: Caller | undefined,
    method: 'GET' | 'POST',
    target: string,
    given: { body?: unknown; raw?: string; key?: string; token?: string } = {},
  ): Promise<Answer> {
    const payload = given.raw ?? (given.body === undefined ? undefined : JSON.stringify(given.body))
    const answer = await app.inject({
      method,
      url: target,
      headers: {
        ...(caller ? { 'x-caller': JSON.stringify(caller) } : {}),
        ...(payload === undefined ? {} : { 'content-type': 'application/json' }),
        ...(given.token === undefined ? {} : { authorization: `Bearer ${given.token}` }),
        ...(given.key === undefined ? {} : { 'idempotency-key': given.key }),
      },
      ...(payload === undefined ? {} : { payload }),
    })
    const isJson = /json/.test(String(answer.headers['content-type']))
    return { status: answer.statusCode, body: isJson ? JSON.parse(answer.body) : undefined, text: answer.body }
  }

  function user(name: string, role: UserRole = 'user', scopes?: string[]): TestUser {
    const caller: Caller = { userId: `id of ${name}`, name, role, by: 'session', credentialId: '', scopes }
    const bank: Caller = { ...caller, userId: 'id of the-bank', name: 'the-bank', role: 'admin' }
    return {
      caller,
      get: target => send(caller, 'GET', target),
      post: (target, body, key) => send(caller, 'POST', target, { body, key }),
      async open(balance, { currency = 'USD', name: accountName = '' } = {}) {
        const made = await send(caller, 'POST', '/v1/accounts', { body: { currency, name: accountName } })
        assert.equal(made.status, 201, made.text)
        const to = made.body.id as string
        if (balance > 0) {
          const body = { to, amount: String(balance), currency }
          const deposit = await send(bank, 'POST', '/v1/deposits', { body })
          assert.equal(deposit.status, 201, deposit.text)
        }
        return to
      },
    }
  }

  /** A call as the ledger in memory takes it, by `the-bank` or a user of that name. */
  async function make({ by, key, wish }: Call): Promise<Answer> {
    if (wish.type === 'expire') return expire(wish.hold)
    const { url, body } = toHttp(wish)
    return user(by, by === 'the-bank' ? 'admin' : 'user').post(url, body, key)
  }

  /** As the job of a hold does. */
  async function expire(hold: string): Promise<Answer> {
    try {
      await service.submit({ type: 'expire', holdId: Number(hold), key: null })
      return { status: 200, body: { status: 'expired', id: hold }, text: 'expired' }
    } catch (error) {
      if (!isAppError(error)) throw error
      return { status: error.status, body: { code: error.code }, text: error.code }
    }
  }

  return { service, app, jobs, source: sources[0]!, woken, send, user, make }
}

/** Of a call: what was made, in what state it is, or the code of the refusal. */
export function outcomeOf({ body }: Answer): { code: string; id: string | undefined } {
  return { code: body.code ?? body.status, id: body.id }
}

/** Of the lines of a batch. */
export function outcomesOf({ body }: Answer): { code: string; id: string | undefined }[] {
  return body.outcomes.map((line: { id?: string; status: string; error?: { code: string } }) => ({
    code: line.error?.code ?? line.status,
    id: line.id,
  }))
}
