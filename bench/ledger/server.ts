/** What answers: the ledger behind HTTP, and the same work done the usual way in the same server. */
import type { AddressInfo } from 'node:net'
import { Type } from 'typebox'
import { migrationSets } from '../../server/app.ts'
import { makeBus } from '../../server/platform/bus.ts'
import { migrate } from '../../server/platform/database/migrate.ts'
import { type Database, makeDatabase } from '../../server/platform/database/pool.ts'
import type { Caller } from '../../server/platform/http/guard.ts'
import { makeRateLimiter } from '../../server/platform/http/rate-limit.ts'
import { type HttpApp, makeHttp } from '../../server/platform/http/server.ts'
import { makeJobs } from '../../server/platform/jobs/jobs.ts'
import { makeLive } from '../../server/platform/live/live.ts'
import { silentLog } from '../../server/platform/log.ts'
import { makeMetrics } from '../../server/platform/metrics.ts'
import { ledgerSettings, makeLedgerService } from '../../server/services/ledger/index.ts'
import { choices } from './load.ts'

/** Of the server that Capstan starts without configuration. */
const poolMax = 10

const caller: Caller = { userId: 'bench', name: 'bench', role: 'user', by: 'session', credentialId: '' }
const rich = 2n ** 60n

export interface LedgerServer {
  db: Database
  ledger: ReturnType<typeof makeLedgerService>
  port: number
  grpcPort: number
  close(): Promise<void>
}

/** @param prepare makes more than accounts before anything is served */
export async function makeServer(url: string, prepare?: (db: Database) => Promise<void>): Promise<LedgerServer> {
  await migrate({ url, sets: migrationSets, direction: 'up', log: silentLog })
  const db = makeDatabase({ url, poolMax, log: silentLog, applicationName: `capstan:${process.pid}` })
  const metrics = makeMetrics({ processMetrics: false })
  const bus = makeBus({ db, redisUrl: undefined, log: silentLog })
  await bus.start()
  const none = () => Promise.reject(new Error('There is no identity here.'))
  const ledger = makeLedgerService({
    db,
    jobs: makeJobs({ db, bus, log: silentLog, metrics, keepDays: 1 }),
    live: makeLive({
      bus,
      log: silentLog,
      metrics,
      settings: { LIVE_BUFFER_BYTES: 1e6, LIVE_TOPICS_MAX: 100, LIVE_CONNECTIONS_MAX: 100, PUBLIC_URL: undefined },
      authenticate: async () => caller,
      reauthenticate: async () => caller,
    }),
    log: silentLog,
    settings: {
      LEDGER_UNITS: ledgerSettings.LEDGER_UNITS.fallback,
      LEDGER_BATCH_MAX: ledgerSettings.LEDGER_BATCH_MAX.fallback,
      LEDGER_HOLD_SECONDS: ledgerSettings.LEDGER_HOLD_SECONDS.fallback,
      LEDGER_HOLD_SECONDS_MAX: ledgerSettings.LEDGER_HOLD_SECONDS_MAX.fallback,
    },
    identity: { registerOnly: none, login: none, renew: none },
    work: true,
  })
  const http = await makeHttp({
    settings: { BODY_LIMIT_BYTES: 1_000_000, TRUST_PROXY: false, NODE_ENV: 'production', PUBLIC_URL: undefined },
    log: silentLog,
    metrics,
    authenticate: async () => caller,
    rateLimiter: makeRateLimiter({ name: 'requests', points: 0, windowSeconds: 60, redis: undefined }),
    version: 'bench',
  })
  await ledger.routes(http)
  await makeAccounts(db)
  await prepare?.(db)
  addUsualRoute(http, db)
  await http.listen({ host: '127.0.0.1', port: 0 })
  ledger.start()
  return {
    db,
    ledger,
    port: (http.server.address() as AddressInfo).port,
    grpcPort: 0,
    async close() {
      await http.close()
      await ledger.stop()
      await bus.stop()
      await db.close()
    },
  }
}

/** Accounts that may all go below zero, so that no transfer is refused and all sums stay zero. */
async function makeAccounts(db: Database) {
  const count = Math.max(...choices.map(choice => choice.accounts))
  await db.query(
    `insert into ledger.accounts (id, owner, owner_name, currency, name, floor, created_at, moved_at)
     select n, 'bench', 'bench', 'USD', n::text, $2::bigint, now(), now() from generate_series(1, $1::integer) n`,
    [count, -rich],
  )
  await db.query(`create schema usual`)
  await db.query(`create table usual.accounts (id bigint primary key, owner text not null, currency text not null,
    balance bigint not null, created_at timestamptz not null default now())`)
  await db.query(`create table usual.transfers (id bigserial primary key, from_account_id bigint not null,
    to_account_id bigint not null, amount bigint not null, created_at timestamptz not null default now())`)
  await db.query(`create table usual.entries (id bigserial primary key, account_id bigint not null,
    amount bigint not null, created_at timestamptz not null default now())`)
  await db.query(`create index on usual.entries (account_id)`)
  await db.query(`create index on usual.transfers (from_account_id, to_account_id)`)
  await db.query(
    `insert into usual.accounts (id, owner, currency, balance) select n, 'bench', 'USD', 0 from generate_series(1, $1::integer) n`,
    [count],
  )
  await db.query('vacuum analyze ledger.accounts')
  await db.query('vacuum analyze usual.accounts')
}

/** A transaction a transfer: insert the transfer and two entries, update two accounts in the order of ids. */
function addUsualRoute(http: HttpApp, db: Database) {
  const Body = Type.Object({
    from: Type.String(),
    to: Type.String(),
    amount: Type.String(),
    currency: Type.String(),
  })
  http.post('/usual/transfers', { config: { access: 'user' }, schema: { body: Body } }, async (request, reply) => {
    const { from, to, amount } = request.body
    const made = await db.tx(async tx => {
      const { rows } = await tx.query(
        `insert into usual.transfers (from_account_id, to_account_id, amount) values ($1, $2, $3) returning *`,
        [from, to, amount],
      )
      const entry = `insert into usual.entries (account_id, amount) values ($1, $2) returning *`
      const fromEntry = await tx.query(entry, [from, `-${amount}`])
      const toEntry = await tx.query(entry, [to, amount])
      const changes = [
        { id: from, change: `-${amount}` },
        { id: to, change: amount },
      ].sort((a, b) => Number(a.id) - Number(b.id))
      const accounts = []
      for (const { id, change } of changes) {
        const updated = await tx.query(`update usual.accounts set balance = balance + $2 where id = $1 returning *`, [
          id,
          change,
        ])
        accounts.push(updated.rows[0])
      }
      return { transfer: rows[0], accounts, entries: [fromEntry.rows[0], toEntry.rows[0]] }
    })
    return reply.status(201).send(made)
  })
}
