/** What answers: the ledger behind HTTP, and the same work done the usual way in the same server. */
import { Type } from 'typebox'
import type { Database } from '../../server/platform/database/pool.ts'
import type { HttpApp } from '../../server/platform/http/server.ts'
import { makeJobs } from '../../server/platform/jobs/jobs.ts'
import { silentLog } from '../../server/platform/log.ts'
import { makeRpc } from '../../server/platform/rpc/rpc.ts'
import { ledgerSettings, makeLedgerService } from '../../server/services/ledger/index.ts'
import { caller, makePlatform, noLimit } from '../support/platform.ts'
import { choices } from './load.ts'

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
  const platform = await makePlatform(url)
  const { db, bus, metrics, live, http } = platform
  const none = () => Promise.reject(new Error('There is no identity here.'))
  const ledger = makeLedgerService({
    db,
    jobs: makeJobs({ db, bus, log: silentLog, metrics, keepDays: 1 }),
    live,
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
  await ledger.routes(http)
  await makeAccounts(db)
  await prepare?.(db)
  addUsualRoute(http, db)
  const port = await platform.start()
  const rpc = makeRpc({
    settings: { HOST: '127.0.0.1', TRUST_PROXY: false },
    log: silentLog,
    metrics,
    authenticate: async () => caller,
    rateLimiter: noLimit,
    isServing: async () => true,
  })
  ledger.rpc(rpc)
  const grpcPort = await rpc.start(0)
  ledger.start()
  return {
    db,
    ledger,
    port,
    grpcPort,
    async close() {
      await rpc.stop(0)
      await platform.stop()
      await ledger.stop()
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
