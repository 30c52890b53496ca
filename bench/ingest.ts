/**
 * Records: one a request, in lines and over gRPC, beside an insert a record in the same server and beside COPY; how
 * long the consumer is behind after a burst of a million; counts of fifty million.
 */
import path from 'node:path'
import { makeMetrics } from '../server/platform/metrics.ts'
import { generateCourses } from '../server/services/ingest/courses.ts'
import { makePostgresLog } from '../server/services/ingest/log-postgres.ts'
import { prepareRecord } from '../server/services/ingest/record.ts'
import { compileSchema } from '../server/services/ingest/schemas.ts'
import { findStream } from '../server/services/ingest/stream-store.ts'
import { copyLines, hasPsql, writeLines } from './ingest/copying.ts'
import { makeSender } from './ingest/load.ts'
import { type IngestServer, makeServer } from './ingest/server.ts'
import {
  type Figure,
  figureOf,
  interleave,
  type Line,
  latencyOf,
  printBound,
  printHead,
  printLines,
  type Sample,
  show,
} from './support/measure.ts'
import { withFolder, withPostgres } from './support/servers.ts'

const rounds = 5
const seconds = 3
const streamed = 200_000
const burst = 1_000_000
const storedCount = 50_000_000
const storedDays = 2
const queries = 200
const lagMs = 10_000

type Sender = ReturnType<typeof makeSender>
type Figures = Record<string, Record<string, Figure>>

export async function benchIngest() {
  const sender = makeSender()
  await withPostgres(async url => {
    const server = await makeServer(url)
    await benchRates({ url, server, sender })
    await benchLag(server, sender)
    await server.close()
  })
  await sender.close()
  await benchStored()
}

export async function benchStored() {
  await withPostgres(async url => {
    const server = await makeServer(url)
    await benchCounts(server)
    await server.close()
  })
}

async function benchRates(given: { url: string; server: IngestServer; sender: Sender }) {
  const { url, server, sender } = given
  await withFolder(async folder => {
    const file = path.join(folder, 'courses.ndjson')
    await writeLines(file, streamed)
    const send = async (target: string): Promise<Sample> => {
      const port = target === 'grpc' ? server.grpcPort : server.port
      const { taken, refused, tookMs, p50, p99 } = await sender.send({
        port,
        target,
        milliseconds: seconds * 1000,
        records: streamed,
      })
      if (refused > 0) throw new Error(`${refused} records to ${target} were refused.`)
      const perSecond = (taken / tookMs) * 1000
      await settled(server)
      return p50 === undefined ? { perSecond } : { perSecond, p50, p99: p99! }
    }
    const contestants: Record<string, () => Promise<Sample>> = {
      course: () => send('/course'),
      records: () => send('/v1/streams/courses/records'),
      usual: () => send('/usual/course'),
      nothing: () => send('/usual/nothing'),
      ndjson: () => send('ndjson'),
      grpc: () => send('grpc'),
      ...((await hasPsql()) ? { copy: () => copyLines({ url, file, count: streamed }) } : {}),
    }
    for (const run of Object.values(contestants)) await run()
    printRates(await interleave(contestants, rounds))
  })
}

function printRates(figures: Figures) {
  const rate = (name: string) => figures[name]!.perSecond!
  const usual = { theirs: rate('usual'), theirName: 'an insert a record', unit: '/s' }
  const lines: Line[] = [
    { what: 'POST /course', ours: rate('course'), ...usual, aim: { atLeast: 8 } },
    { what: 'POST …/records', ours: rate('records'), ...usual, aim: { atLeast: 8 } },
    {
      what: 'POST /course',
      ours: rate('course'),
      theirs: rate('nothing'),
      theirName: 'a route that does nothing',
      unit: '/s',
    },
    { what: 'NDJSON', ours: rate('ndjson'), ...usual },
    { what: 'gRPC stream', ours: rate('grpc'), ...usual },
  ]
  if (figures.copy) {
    const theirs = { theirs: rate('copy'), theirName: 'COPY', unit: '/s' }
    lines.push({ what: 'NDJSON', ours: rate('ndjson'), ...theirs, aim: { atLeast: 0.3 } })
    lines.push({ what: 'gRPC stream', ours: rate('grpc'), ...theirs })
  }
  for (const what of ['p50', 'p99']) {
    const times = { theirs: figures.usual![what]!, theirName: 'an insert a record', unit: 'ms' }
    lines.push({ what: `POST /course, ${what}`, ours: figures.course![what]!, ...times })
  }
  printLines('Records, durable: 128 connections, or 2 streams', lines)
  printBound('POST /course', rate('course'), '/s', { atLeast: 25_000 })
  printBound('NDJSON', rate('ndjson'), '/s', { atLeast: 100_000 })
}

/** Waits until everything is counted, so that one contestant's rest is not the next one's burden. */
async function settled({ port, db }: IngestServer) {
  const { rows } = await db.query<{ last_offset: number }>(
    `select h.last_offset from ingest.heads h join ingest.streams s on s.id = h.stream_id where s.name = 'courses'`,
  )
  // While much is not merged yet there is no total.
  while (!((await countOf(port, '')).total! >= rows[0]!.last_offset)) {
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}

async function countOf(port: number, query: string): Promise<{ total?: number; rows: unknown[] }> {
  const answer = await fetch(`http://127.0.0.1:${port}/v1/streams/courses/counts?${query}`)
  return (await answer.json()) as { total?: number; rows: unknown[] }
}

async function benchLag(server: IngestServer, sender: Sender) {
  const times: number[] = []
  for (let round = 0; round < rounds; round++) {
    const { refused } = await sender.send({ port: server.port, target: 'ndjson', records: burst })
    if (refused > 0) throw new Error(`${refused} records of the burst were refused.`)
    const begun = performance.now()
    await settled(server)
    times.push(performance.now() - begun)
  }
  printHead(`A burst of ${burst.toLocaleString('en')} records, until all are counted`)
  printBound('after the last was accepted', figureOf(times), 'ms', lagMs)
}

/** Counts of fifty million records of two days, as they would have come: even over time, by both routes. */
async function benchCounts(server: IngestServer) {
  await fill(server)
  const day = new Date(Date.now() - 86_400_000).toISOString()
  const hour = new Date(Date.now() - 3_600_000).toISOString()
  const asked: Record<string, string> = {
    'all time by region': 'by=region',
    'all time by facultad and carrera': 'by=facultad,carrera',
    'the last day by region, every hour': `by=region&every=1h&from=${day}`,
    'the last hour by region, every minute': `by=region&every=1m&from=${hour}`,
    'by all four, all time': 'by=region,facultad,carrera,curso',
  }
  const contestants = Object.fromEntries(
    Object.entries(asked).map(([name, query]) => [name, () => timeQueries(server, query)]),
  )
  const figures = await interleave(contestants, rounds)
  printHead(`Counts of ${storedCount.toLocaleString('en')} records of ${storedDays} days, over HTTP`)
  for (const name of Object.keys(asked)) {
    printBound(`${name}, p50`, figures[name]!.p50!, 'ms', 20)
    console.log(`| ${name}, p99 | ${show(figures[name]!.p99!, 'ms')} | | | | |`)
  }
}

async function timeQueries({ port }: IngestServer, query: string): Promise<Sample> {
  const times: number[] = []
  for (let n = 0; n < queries / rounds; n++) {
    const begun = performance.now()
    const { rows } = await countOf(port, query)
    if (rows.length === 0) throw new Error(`There were no counts of ${query}.`)
    times.push(performance.now() - begun)
  }
  return latencyOf(times)
}

const minuteMs = 60_000
const batchRecords = 2000

/** Appended as the front does it, with a clock that runs through them; merged by the server meanwhile. */
async function fill(server: IngestServer) {
  const { db } = server
  const stream = (await findStream(db, 'courses'))!
  const { schema, dimensions, stickyBy } = stream
  const rules = { validate: compileSchema(schema), dimensions, stickyBy, bytesMax: 1000 }
  const records = [...generateCourses({ count: 20_000, seed: 2 })].map(record =>
    prepareRecord(rules, JSON.stringify(record)),
  )
  const batches = storedCount / batchRecords
  let now = Date.now() - storedDays * 86_400_000
  const step = (Date.now() - minuteMs - now) / batches
  const store = makePostgresLog({
    db,
    metrics: makeMetrics({ processMetrics: false }),
    onAppended: () => {},
    waitingMax: 10_000,
    clock: () => now,
  })
  await db.query(`select ingest.make_days(($1::timestamptz at time zone 'utc')::date, $2)`, [new Date(now), storedDays])
  for (let batch = 0; batch < batches; batch++) {
    now += step
    const from = (batch * batchRecords) % records.length
    const some = records.slice(from, from + batchRecords)
    const bunch = { texts: some.map(record => record.text), keys: some.map(record => record.key) }
    await store.append(stream, { route: 'b', bunch })
    if (batch % 500 === 499 && process.stderr.isTTY)
      process.stderr.write(`\r\x1b[Kfilling: ${Math.round((100 * batch) / batches)} %`)
  }
  await settled(server)
  await db.query('vacuum analyze ingest.rollups')
}
