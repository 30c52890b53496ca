/**
 * Transfers over HTTP and gRPC beside the same transfers made the usual way, a transaction each, in the same Node
 * server on the same PostgreSQL, and beside that transaction as a script of pgbench, without any HTTP; then beside a
 * ledger that has ten million transfers stored.
 */
import pg from 'pg'
import { fillTransfers } from './ledger/fill.ts'
import { type Choice, choices, makeSender, type Way } from './ledger/load.ts'
import { hasPgbench, runPgbench } from './ledger/pgbench.ts'
import { type LedgerServer, makeServer } from './ledger/server.ts'
import { type Figure, interleave, type Line, printBound, printLines, type Sample } from './support/measure.ts'
import { withFolder, withPostgres } from './support/servers.ts'

const rounds = 3
const seconds = 2
const warmUpSeconds = 1
const storedCount = 10_000_000

type Figures = Record<string, Record<string, Figure>>

/** Every way of sending, and what it is called in the tables. */
const ways: Record<string, Way> = {
  single: { door: 'http', target: '/v1/transfers', connections: 128, lines: 0 },
  batch: { door: 'http', target: '/v1/transfers/batch', connections: 3, lines: 2000 },
  'big batch': { door: 'http', target: '/v1/transfers/batch', connections: 3, lines: 8000 },
  grpc: { door: 'grpc', target: 'StreamTransfers', connections: 2, lines: 100 },
  usual: { door: 'http', target: '/usual/transfers', connections: 128, lines: 0 },
}

export async function benchLedger() {
  const withScript = await hasPgbench()
  if (!withScript) console.error('There is no pgbench on the PATH (Debian: apt-get install postgresql-contrib).')
  await withPostgres(url =>
    withFolder(async folder => {
      const server = await makeServer(url)
      const sender = makeSender()
      const results = new Map<Choice, Figures>()
      for (const choice of choices) {
        const contestants = Object.fromEntries(
          Object.entries(ways).map(([name, way]) => [name, () => measure(sender, server, choice, way)]),
        )
        if (withScript) contestants.pgbench = () => runPgbench({ url, folder, choice, seconds })
        for (const way of Object.values(ways)) await measure(sender, server, choice, way, warmUpSeconds)
        results.set(choice, await interleave(contestants, rounds))
      }
      for (const [choice, figures] of results) printChoice(choice, figures)
      printHot(results)
      printStored(await compareStored({ url, server, sender }))
      await sender.close()
      await close(server)
    }),
  )
}

type Sender = ReturnType<typeof makeSender>

async function measure(
  sender: Sender,
  server: LedgerServer,
  choice: Choice,
  way: Way,
  howLong = seconds,
): Promise<Sample> {
  const begun = performance.now()
  const port = way.door === 'grpc' ? server.grpcPort : server.port
  const { transfers, refused, p50, p99 } = await sender.send({ port, way, choice, milliseconds: howLong * 1000 })
  if (refused > 0) throw new Error(`${refused} requests to ${way.target} were refused.`)
  const perSecond = (transfers / (performance.now() - begun)) * 1000
  return p50 === undefined || p99 === undefined ? { perSecond } : { perSecond, p50, p99 }
}

/** The same on this ledger and on one in the same PostgreSQL that has millions of transfers stored. */
export async function compareStored(given: { url: string; server: LedgerServer; sender: Sender }): Promise<Figures> {
  const { url, server, sender } = given
  const choice = choices.find(({ accounts, by }) => accounts === 100_000 && by === 'uniform')!
  const fullUrl = await createDatabase(url, 'stored')
  const full = await makeServer(fullUrl, db => fillTransfers(db, { count: storedCount, accounts: choice.accounts }))
  while ((await full.ledger.extendChain()) > 0);
  const contestants: Record<string, () => Promise<Sample>> = {}
  for (const name of ['single', 'batch']) {
    const way = ways[name]!
    await measure(sender, full, choice, way, warmUpSeconds)
    contestants[name] = () => measure(sender, server, choice, way)
    contestants[`${name}, full`] = () => measure(sender, full, choice, way)
  }
  const figures = await interleave(contestants, rounds)
  await close(full)
  return figures
}

async function createDatabase(url: string, name: string): Promise<string> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  await client.query(`create database ${name}`)
  await client.end()
  return url.replace('/capstan?', `/${name}?`)
}

async function close(server: LedgerServer) {
  const { findings, transfers } = await server.ledger.verify()
  console.log(`\n${transfers.toLocaleString('en')} transfers verified: ${findings.join('\n') || 'all is well'}.`)
  await server.close()
}

function printChoice(choice: Choice, figures: Figures) {
  const rate = (name: string) => figures[name]!.perSecond!
  const usual = { theirs: rate('usual'), theirName: 'a transaction each', unit: '/s' }
  const lines: Line[] = [{ what: 'single POSTs', ours: rate('single'), ...usual, aim: { atLeast: 8 } }]
  if (figures.pgbench) {
    const theirs = { theirs: rate('pgbench'), theirName: 'pgbench', unit: '/s' }
    lines.push({ what: 'single POSTs', ours: rate('single'), ...theirs, aim: { atLeast: 4 } })
  }
  for (const [name, what] of [
    ['batch', 'batches of 2,000'],
    ['big batch', 'batches of 8,000'],
    ['grpc', 'gRPC stream'],
  ] as const) {
    lines.push({ what, ours: rate(name), ...usual })
  }
  const times = { theirName: 'a transaction each', unit: 'ms' }
  for (const what of ['p50', 'p99']) {
    lines.push({ what: `single POSTs, ${what}`, ours: figures.single![what]!, theirs: figures.usual![what]!, ...times })
  }
  printLines(`Transfers, ${choice.name}, 128 connections`, lines)
  printBound('batches of 8,000', rate('big batch'), '/s', { atLeast: 50_000 })
  printBound('single POSTs, p99', figures.single!.p99!, 'ms', 50)
}

function printHot(results: Map<Choice, Figures>) {
  const of = (wanted: string) => [...results].find(([choice]) => choice.name.startsWith(wanted))![1].single!.perSecond!
  const line = { ours: of('one hot'), theirs: of('1,000 accounts, uniform'), theirName: 'uniform', unit: '/s' }
  printLines('One hot account', [{ what: 'single POSTs', ...line, aim: { atLeast: 0.33 } }])
}

export function printStored(figures: Figures) {
  const line = (name: string) => ({
    what: name === 'single' ? 'single POSTs' : 'batches of 2,000',
    ours: figures[`${name}, full`]!.perSecond!,
    theirs: figures[name]!.perSecond!,
    theirName: 'a young ledger',
    unit: '/s',
    aim: { atLeast: 0.8 },
  })
  printLines(`With ${storedCount.toLocaleString('en')} transfers stored, 100,000 accounts, uniform`, [
    line('single'),
    line('batch'),
  ])
}
