/** A ledger on a database of its own, behind HTTP, for callers who say by themselves who they are. */
import assert from 'node:assert/strict'
import { makeBus } from '#platform/bus.ts'
import { type Database, makeDatabase } from '#platform/database/pool.ts'
import type { Caller } from '#platform/http/guard.ts'
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

/** @param options.poolMax connections of the process; @param options.work whether holds expire by themselves */
export async function makeTestLedger(options: { poolMax?: number; work?: boolean; identity?: MakeIdentity } = {}) {
  const { db, url } = await makeTestDatabase({ poolMax: options.poolMax ?? 10 })
  const time = { offsetMs: 0 }
  const clock = () => Date.now() + time.offsetMs
  const identity = options.identity?.(db)
  const main = await makeProcess({ db, clock, work: options.work ?? false, identity })
  const admin = main.user('the-bank', 'admin')
  return {
    ...main,
    db,
    url,
    time,
    admin,
    /** Another Capstan on the same database. */
    async another(faults: Faults = {}) {
      const own = makeDatabase({ url, poolMax: 5, log: silentLog, applicationName: `capstan:${process.pid}` })
      atEnd(() => own.close())
      return makeProcess({ db: withFaults(own, faults), clock, work: false })
    },
    /** All money, all versions, all links. */
    async assertSound() {
      while ((await extendChain(db)) > 0);
      const { findings } = await verify(db)
      assert.deepEqual(findings, [])
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
    tx: run =>
      db.tx(async tx => {
        const query: typeof tx.query = (text, ...rest) =>
          tx.query(withoutLocks ? text.replace(' for no key update', '') : text, ...rest)
        const result = await run({ ...tx, query })
        await beforeCommit?.()
        return result
      }),
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

  function user(name: string, role: 'user' | 'admin' = 'user', scopes?: string[]): TestUser {
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

  return { service, app, jobs, source: sources[0]!, woken, send, user }
}
