/**
 * Transfers over HTTP beside the same transfers made the usual way, a transaction each, in the same Node server on the
 * same PostgreSQL, and beside that transaction as a script of pgbench, without any HTTP. Whoever sends the requests is
 * a thread of this process, on sockets of its own, so that it takes little of the machine.
 */
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { connect } from 'node:net'
import path from 'node:path'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { Type } from 'typebox'
import { migrationSets } from '../server/app.ts'
import { makeBus } from '../server/platform/bus.ts'
import { migrate } from '../server/platform/database/migrate.ts'
import { type Database, makeDatabase } from '../server/platform/database/pool.ts'
import type { Caller } from '../server/platform/http/guard.ts'
import { makeRateLimiter } from '../server/platform/http/rate-limit.ts'
import { type HttpApp, makeHttp } from '../server/platform/http/server.ts'
import { makeJobs } from '../server/platform/jobs/jobs.ts'
import { makeLive } from '../server/platform/live/live.ts'
import { silentLog } from '../server/platform/log.ts'
import { makeMetrics } from '../server/platform/metrics.ts'
import { ledgerSettings, makeLedgerService } from '../server/services/ledger/index.ts'
import { type Figure, interleave, latencyOf, printBound, printLines, type Sample } from './support/measure.ts'
import { withFolder, withPostgres } from './support/servers.ts'

const rounds = 3
const seconds = 4
const connections = 128
const batchLines = 2000
const batchConnections = 3
const pgbenchClients = 32
/** Of the server that Capstan starts without configuration. */
const poolMax = 10

interface Choice {
  name: string
  accounts: number
  /** How accounts are chosen; `hot` has one on one side of every transfer. */
  by: 'uniform' | 'zipf' | 'hot'
}

const choices: Choice[] = [
  { name: '1,000 accounts, uniform', accounts: 1000, by: 'uniform' },
  { name: '1,000 accounts, Zipf 1.0', accounts: 1000, by: 'zipf' },
  { name: '100,000 accounts, uniform', accounts: 100_000, by: 'uniform' },
  { name: '100,000 accounts, Zipf 1.0', accounts: 100_000, by: 'zipf' },
  { name: 'one hot account of 1,000', accounts: 1000, by: 'hot' },
]

// What sends

interface Load {
  port: number
  target: string
  choice: Choice
  connections: number
  /** Transfers in a request; 0 for one that is the body itself. */
  lines: number
  milliseconds: number
}

interface LoadResult {
  transfers: number
  refused: number
  p50: number
  p99: number
}

/** Sends for a while and answers what came of it. Runs in a thread. */
async function sendLoad(load: Load): Promise<LoadResult> {
  const pick = makePicker(load.choice)
  const times: number[] = []
  let transfers = 0
  let refused = 0
  const end = performance.now() + load.milliseconds
  await Promise.all(
    Array.from({ length: load.connections }, async () => {
      const client = await makeClient(load.port)
      while (performance.now() < end) {
        const begun = performance.now()
        const ok = await client.post(load.target, writeBody(pick, load.lines))
        times.push(performance.now() - begun)
        if (ok) transfers += load.lines || 1
        else refused++
      }
      client.close()
    }),
  )
  return { transfers, refused, ...latencyOf(times) }
}

type Picker = () => [from: number, to: number]

function makePicker({ accounts, by }: Choice): Picker {
  const uniform = () => 1 + Math.floor(Math.random() * accounts)
  const one = by === 'zipf' ? makeZipf(accounts) : uniform
  return () => {
    const first = by === 'hot' ? 1 : one()
    let second = by === 'hot' ? uniform() : one()
    if (second === first) second = (first % accounts) + 1
    return Math.random() < 0.5 ? [first, second] : [second, first]
  }
}

/** The k-th account is chosen in proportion to 1/k. */
function makeZipf(count: number): () => number {
  const sums = new Float64Array(count)
  let sum = 0
  for (let k = 0; k < count; k++) {
    sum += 1 / (k + 1)
    sums[k] = sum
  }
  return () => {
    const wanted = Math.random() * sum
    let [low, high] = [0, count - 1]
    while (low < high) {
      const middle = (low + high) >> 1
      if (sums[middle]! < wanted) low = middle + 1
      else high = middle
    }
    return low + 1
  }
}

function writeBody(pick: Picker, lines: number): string {
  const line = () => {
    const [from, to] = pick()
    return `{"from":"${from}","to":"${to}","amount":"${1 + Math.floor(Math.random() * 100)}","currency":"USD"}`
  }
  return lines === 0 ? line() : `{"transfers":[${Array.from({ length: lines }, line).join(',')}]}`
}

/** A connection that sends one request after another, each with a key of its own. Only as much HTTP as that takes. */
async function makeClient(port: number) {
  const socket = connect(port, '127.0.0.1').setNoDelay(true)
  await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject))
  let received: Buffer[] = []
  let bytes = 0
  let wanted = Number.POSITIVE_INFINITY
  let answered = Promise.withResolvers<boolean>()
  let ok = false
  socket.on('error', error => answered.reject(error))
  socket.on('data', chunk => {
    received.push(chunk)
    bytes += chunk.length
    if (wanted === Number.POSITIVE_INFINITY) {
      const head = Buffer.concat(received).toString('latin1')
      const end = head.indexOf('\r\n\r\n')
      if (end < 0) return
      ok = head.startsWith('HTTP/1.1 20')
      wanted = end + 4 + Number(/content-length: (\d+)/i.exec(head)![1])
    }
    if (bytes < wanted) return
    received = []
    bytes = 0
    wanted = Number.POSITIVE_INFINITY
    answered.resolve(ok)
  })
  return {
    post(target: string, body: string): Promise<boolean> {
      answered = Promise.withResolvers()
      socket.write(
        `POST ${target} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nidempotency-key: ${randomUUID()}\r\n` +
          `content-length: ${body.length}\r\n\r\n${body}`,
      )
      return answered.promise
    },
    close: () => socket.destroy(),
  }
}

if (!isMainThread && workerData?.isLedgerLoad) {
  parentPort!.on('message', async (load: Load) => parentPort!.postMessage(await sendLoad(load)))
}

function makeSender() {
  const worker = new Worker(new URL(import.meta.url), { workerData: { isLedgerLoad: true } })
  return {
    send(load: Load): Promise<LoadResult> {
      return new Promise((resolve, reject) => {
        worker.once('error', reject)
        worker.once('message', (result: LoadResult) => {
          worker.off('error', reject)
          resolve(result)
        })
        worker.postMessage(load)
      })
    },
    close: () => worker.terminate(),
  }
}

// What answers

const caller: Caller = { userId: 'bench', name: 'bench', role: 'user', by: 'session', credentialId: '' }
const rich = 2n ** 60n

async function makeServer(url: string) {
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
  addUsualRoute(http, db)
  await http.listen({ host: '127.0.0.1', port: 0 })
  ledger.start()
  return {
    db,
    ledger,
    port: (http.server.address() as AddressInfo).port,
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

// pgbench

async function runPgbench(url: string, folder: string, choice: Choice): Promise<Sample> {
  const script = path.join(folder, 'transfer.sql')
  const any = choice.by === 'zipf' ? 'random_zipfian(1, :n, 1.001)' : 'random(1, :n)'
  await writeFile(
    script,
    `\\set n ${choice.accounts}
\\set a ${choice.by === 'hot' ? '1' : any}
\\set b ${any}
\\if :a = :b
\\set b :a % :n + 1
\\endif
\\set low least(:a, :b)
\\set high greatest(:a, :b)
\\set amount random(1, 100)
\\set debit -:amount
\\set low_change case when :a < :b then :debit else :amount end
\\set high_change -:low_change
begin;
insert into usual.transfers (from_account_id, to_account_id, amount) values (:a, :b, :amount) returning id;
insert into usual.entries (account_id, amount) values (:a, :debit) returning id;
insert into usual.entries (account_id, amount) values (:b, :amount) returning id;
update usual.accounts set balance = balance + :low_change where id = :low returning balance;
update usual.accounts set balance = balance + :high_change where id = :high returning balance;
commit;
`,
  )
  const args = ['-n', '-M', 'prepared', '-c', `${pgbenchClients}`, '-j', '2', '-T', `${seconds}`, '-f', script, url]
  const text = await new Promise<string>((resolve, reject) => {
    const child = spawn('pgbench', args, { stdio: ['ignore', 'pipe', 'pipe'] })
    let out = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', chunk => (out += chunk))
    child.once('error', reject)
    child.once('exit', () => resolve(out))
  })
  const perSecond = /tps = ([\d.]+)/.exec(text)?.[1]
  if (perSecond === undefined) throw new Error(`pgbench failed:\n${text}`)
  return { perSecond: Number(perSecond) }
}

async function hasPgbench(): Promise<boolean> {
  return new Promise(resolve => {
    spawn('pgbench', ['--version'], { stdio: 'ignore' })
      .once('error', () => resolve(false))
      .once('exit', code => resolve(code === 0))
  })
}

// The comparison

type Figures = Record<string, Record<string, Figure>>

export async function benchLedger(only: (choice: Choice) => boolean = () => true) {
  const withScript = await hasPgbench()
  if (!withScript) console.error('There is no pgbench on the PATH (Debian: apt-get install postgresql-contrib).')
  await withPostgres(url =>
    withFolder(async folder => {
      const server = await makeServer(url)
      const sender = makeSender()
      const over = async (choice: Choice, target: string, width: number, lines: number): Promise<Sample> => {
        const begun = performance.now()
        const load = { port: server.port, target, choice, connections: width, lines, milliseconds: seconds * 1000 }
        const { transfers, refused, p50, p99 } = await sender.send(load)
        if (refused > 0) throw new Error(`${refused} requests to ${target} were refused.`)
        return { perSecond: (transfers / (performance.now() - begun)) * 1000, p50, p99 }
      }
      const results = new Map<Choice, Figures>()
      for (const choice of choices.filter(only)) {
        const contestants: Record<string, () => Promise<Sample>> = {
          single: () => over(choice, '/v1/transfers', connections, 0),
          usual: () => over(choice, '/usual/transfers', connections, 0),
          ...(withScript && { pgbench: () => runPgbench(url, folder, choice) }),
          batch: () => over(choice, '/v1/transfers/batch', batchConnections, batchLines),
        }
        results.set(choice, await interleave(contestants, rounds))
      }
      print(results)
      await sender.close()
      const { findings, transfers } = await server.ledger.verify()
      console.log(`\n${transfers.toLocaleString('en')} transfers verified: ${findings.join('\n') || 'all is well'}.`)
      await server.close()
    }),
  )
}

function print(results: Map<Choice, Figures>) {
  for (const [choice, figures] of results) {
    const single = figures.single!.perSecond!
    const usual = { theirs: figures.usual!.perSecond!, theirName: 'a transaction each', unit: '/s' }
    const lines = [{ what: 'single POSTs', ours: single, ...usual, aim: { atLeast: 8 } }]
    const { pgbench } = figures
    if (pgbench) {
      const theirs = { theirs: pgbench.perSecond!, theirName: 'pgbench', unit: '/s' }
      lines.push({ what: 'single POSTs', ours: single, ...theirs, aim: { atLeast: 4 } })
    }
    const batch = figures.batch!.perSecond!
    lines.push({ what: `batches of ${batchLines}`, ours: batch, ...usual, aim: { atLeast: 8 } })
    printLines(`Transfers, ${choice.name}, ${connections} connections`, lines)
    printBound('single POSTs, p99', figures.single!.p99!, 'ms', 50)
    console.log(
      `| single POSTs, p50 | ${figures.single!.p50!.median.toFixed(1)} ms | a transaction each ${figures.usual!.p50!.median.toFixed(1)} ms | | | |`,
    )
  }
}
