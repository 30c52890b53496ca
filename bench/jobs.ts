/**
 * The job queue beside BullMQ on a Redis and graphile-worker on the same PostgreSQL.
 * All work empty jobs, so that what is measured is the queue. Capstan's adds and ends are on disk when they are
 * counted; the Redis writes nothing to disk at all.
 */
import { Worker as BullWorker, Queue } from 'bullmq'
import { Logger, makeWorkerUtils, run as runGraphile, type WorkerUtils } from 'graphile-worker'
import pg from 'pg'
import { migrationSets } from '../server/app.ts'
import { makeBus } from '../server/platform/bus.ts'
import { migrate } from '../server/platform/database/migrate.ts'
import { makeDatabase } from '../server/platform/database/pool.ts'
import { jobsParameters, makeJobs } from '../server/platform/jobs/jobs.ts'
import { silentLog } from '../server/platform/log.ts'
import { makeMetrics } from '../server/platform/metrics.ts'
import { interleave, latencyOf, printBound, printLines, rate, type Sample } from './support/measure.ts'
import { withPostgres, withRedis } from './support/servers.ts'

const rounds = 5
const jobCount = 50_000
const bulkSize = 5_000
const callers = 32
const latencyCount = 400
const concurrency = 8000

interface Contestant {
  addMany(numbers: number[]): Promise<unknown>
  addOne(number: number): Promise<unknown>
  /** Works until the returned function is called. */
  work(onStart: () => void): Promise<() => Promise<unknown>>
  /** Empties the queue. */
  clear(): Promise<unknown>
}

async function measure(contestant: Contestant, singles: number): Promise<Sample> {
  const bulkAdds = await rate(jobCount / bulkSize, 1, index =>
    contestant.addMany(Array.from({ length: bulkSize }, (_, n) => index * bulkSize + n)),
  )
  const worked = await workAll(contestant)
  const singleAdds = await rate(singles, callers, index => contestant.addOne(index))
  await contestant.clear()
  const latency = await measureLatency(contestant)
  return { bulkAdds: bulkAdds * bulkSize, worked, singleAdds, p50: latency.p50, p99: latency.p99 }
}

/** Jobs a second from the moment a worker is told to start until it has started the last. */
async function workAll(contestant: Contestant): Promise<number> {
  let left = jobCount
  const all = Promise.withResolvers<void>()
  const begun = performance.now()
  const stop = await contestant.work(() => {
    if (--left === 0) all.resolve()
  })
  await all.promise
  const perSecond = (jobCount / (performance.now() - begun)) * 1000
  await stop()
  return perSecond
}

/** From the call that adds a job to the start of its handler, one after another. */
async function measureLatency(contestant: Contestant): Promise<{ p50: number; p99: number }> {
  let started = Promise.withResolvers<void>()
  const stop = await contestant.work(() => started.resolve())
  await contestant.addOne(0)
  await started.promise
  const times: number[] = []
  for (let n = 0; n < latencyCount; n++) {
    started = Promise.withResolvers()
    const begun = performance.now()
    await Promise.all([contestant.addOne(n), started.promise])
    times.push(performance.now() - begun)
  }
  await stop()
  return latencyOf(times)
}

export async function makeCapstan(url: string): Promise<Contestant & { close(): Promise<void> }> {
  const db = makeDatabase({
    url,
    poolMax: 6,
    log: silentLog,
    applicationName: `capstan:${process.pid}`,
    parameters: jobsParameters,
  })
  const bus = makeBus({ db, redisUrl: undefined, log: silentLog })
  await bus.start()
  const make = () =>
    makeJobs({ db, bus, log: silentLog, metrics: makeMetrics({ processMetrics: false }), keepDays: 30 })
  const adder = make()
  adder.define({ name: 'bench', concurrency: 1 })
  return {
    addMany: numbers =>
      db.tx(tx =>
        adder.add(
          tx,
          numbers.map(n => ({ queue: 'bench', payload: { n } })),
        ),
      ),
    addOne: n => adder.addOne({ queue: 'bench', payload: { n } }),
    async work(onStart) {
      const jobs = make()
      jobs.define({ name: 'bench', concurrency, handle: async () => onStart() })
      await jobs.start({ work: true })
      // A worker of this process is woken by the adds of this process through the same bus.
      return () => jobs.stop(10_000)
    },
    clear: () => db.query(`truncate jobs.active`),
    async close() {
      await bus.stop()
      await db.close()
    },
  }
}

function makeBull(port: number): Contestant & { close(): Promise<void> } {
  const connection = { host: '127.0.0.1', port }
  const queue = new Queue('bench', { connection })
  return {
    addMany: numbers => queue.addBulk(numbers.map(n => ({ name: 'job', data: { n } }))),
    addOne: n => queue.add('job', { n }),
    async work(onStart) {
      const worker = new BullWorker('bench', async () => onStart(), { connection, concurrency: 500 })
      await worker.waitUntilReady()
      return () => worker.close()
    },
    clear: () => queue.obliterate({ force: true }),
    close: () => queue.close(),
  }
}

async function makeGraphile(url: string): Promise<Contestant & { close(): Promise<void> }> {
  const pool = new pg.Pool({ connectionString: url, max: 20, application_name: `capstan:${process.pid}` })
  pool.on('error', () => {})
  const utils: WorkerUtils = await makeWorkerUtils({ pgPool: pool, logger: new Logger(() => () => {}) })
  await utils.migrate()
  return {
    addMany: numbers => utils.addJobs(numbers.map(n => ({ identifier: 'job', payload: { n } }))),
    addOne: n => utils.addJob('job', { n }),
    async work(onStart) {
      // Its fastest way: jobs fetched ahead and completed in batches.
      const runner = await runGraphile({
        pgPool: pool,
        noHandleSignals: true,
        logger: new Logger(() => () => {}),
        taskList: { job: async () => onStart() },
        preset: {
          worker: { concurrentJobs: 100, localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 },
        },
      })
      return () => runner.stop()
    },
    clear: () => pool.query(`delete from graphile_worker._private_jobs`),
    async close() {
      await utils.release()
      await pool.end()
    },
  }
}

async function besideOthers() {
  await withPostgres(url =>
    withRedis('memory', port =>
      withRedis('disk', async diskPort => {
        await migrate({ url, sets: migrationSets, direction: 'up', log: silentLog })
        const capstan = await makeCapstan(url)
        const bull = makeBull(port)
        const diskBull = makeBull(diskPort)
        const graphile = await makeGraphile(url)
        const results = await interleave(
          {
            capstan: () => measure(capstan, 20_000),
            bullmq: () => measure(bull, 20_000),
            diskBullmq: () => measure(diskBull, 20_000),
            graphile: () => measure(graphile, 2_000),
          },
          rounds,
        )
        const [ours, theirs, graphiles] = [results.capstan!, results.bullmq!, results.graphile!]
        const onDisk = results.diskBullmq!
        const diskLine = { theirName: 'BullMQ, Redis on disk', unit: '/s' }
        const better = theirs.worked!.median > graphiles.worked!.median ? 'BullMQ' : 'graphile-worker'
        const best = better === 'BullMQ' ? theirs : graphiles
        const bullLine = { theirName: 'BullMQ', unit: '/s' }
        const graphileLine = { theirName: 'graphile-worker', unit: '/s' }
        printLines('Jobs', [
          {
            what: `worked, the better of the two`,
            ours: ours.worked!,
            theirs: best.worked!,
            theirName: better,
            unit: '/s',
            aim: { atLeast: 2.5 },
          },
          { what: 'worked', ours: ours.worked!, theirs: theirs.worked!, ...bullLine, aim: { atLeast: 2.5 } },
          { what: 'worked', ours: ours.worked!, theirs: graphiles.worked!, ...graphileLine, aim: { atLeast: 2.5 } },
          {
            what: `added, ${bulkSize} a call`,
            ours: ours.bulkAdds!,
            theirs: theirs.bulkAdds!,
            ...bullLine,
            aim: { atLeast: 2 },
          },
          {
            what: `added, ${bulkSize} a call`,
            ours: ours.bulkAdds!,
            theirs: graphiles.bulkAdds!,
            ...graphileLine,
            aim: { atLeast: 1 },
          },
          {
            what: `added singly, ${callers} callers`,
            ours: ours.singleAdds!,
            theirs: theirs.singleAdds!,
            ...bullLine,
            aim: { atLeast: 1 },
          },
          { what: 'worked', ours: ours.worked!, theirs: onDisk.worked!, ...diskLine, aim: { atLeast: 2.5 } },
          {
            what: `added, ${bulkSize} a call`,
            ours: ours.bulkAdds!,
            theirs: onDisk.bulkAdds!,
            ...diskLine,
            aim: { atLeast: 2 },
          },
          {
            what: `added singly, ${callers} callers`,
            ours: ours.singleAdds!,
            theirs: onDisk.singleAdds!,
            ...diskLine,
            aim: { atLeast: 1 },
          },
          {
            what: `added singly, ${callers} callers`,
            ours: ours.singleAdds!,
            theirs: graphiles.singleAdds!,
            ...graphileLine,
            aim: { atLeast: 1 },
          },
          {
            what: 'add to start, p50',
            ours: ours.p50!,
            theirs: theirs.p50!,
            theirName: 'BullMQ',
            unit: 'ms',
          },
          {
            what: 'add to start, p99',
            ours: ours.p99!,
            theirs: theirs.p99!,
            theirName: 'BullMQ',
            unit: 'ms',
          },
          {
            what: 'add to start, p50',
            ours: ours.p50!,
            theirs: graphiles.p50!,
            theirName: 'graphile-worker',
            unit: 'ms',
          },
          {
            what: 'add to start, p99',
            ours: ours.p99!,
            theirs: graphiles.p99!,
            theirName: 'graphile-worker',
            unit: 'ms',
          },
        ])
        printBound('add to start, p50', ours.p50!, 'ms', 3)
        await capstan.close()
        await bull.close()
        await diskBull.close()
        await graphile.close()
      }),
    ),
  )
}

/** The same figures on an empty database and on one that has finished two million jobs. */
async function besideTwoMillion() {
  const finishedCount = 2_000_000
  await withPostgres(async url => {
    const full = url.replace('/capstan?', '/full?')
    const admin = new pg.Client({ connectionString: url, application_name: `capstan:${process.pid}` })
    await admin.connect()
    await admin.query('create database full_of_jobs')
    const fullUrl = full.replace('/full?', '/full_of_jobs?')
    for (const each of [url, fullUrl])
      await migrate({ url: each, sets: migrationSets, direction: 'up', log: silentLog })
    await fill(fullUrl, finishedCount)
    const [empty, loaded] = [await makeCapstan(url), await makeCapstan(fullUrl)]
    const results = await interleave(
      { loaded: () => measure(loaded, 20_000), empty: () => measure(empty, 20_000) },
      rounds,
    )
    const [ours, theirs] = [results.loaded!, results.empty!]
    const beside = { theirName: 'empty', unit: '/s', aim: { atLeast: 0.8 } }
    printLines(`Jobs with ${finishedCount.toLocaleString('en')} finished ones in the tables`, [
      { what: 'worked', ours: ours.worked!, theirs: theirs.worked!, ...beside },
      { what: `added, ${bulkSize} a call`, ours: ours.bulkAdds!, theirs: theirs.bulkAdds!, ...beside },
      { what: `added singly, ${callers} callers`, ours: ours.singleAdds!, theirs: theirs.singleAdds!, ...beside },
      {
        what: 'add to start, p50',
        ours: ours.p50!,
        theirs: theirs.p50!,
        theirName: 'empty',
        unit: 'ms',
        aim: { atMost: 1.2 },
      },
    ])
    await empty.close()
    await loaded.close()
    await admin.end()
  })
}

async function fill(url: string, count: number) {
  const client = new pg.Client({ connectionString: url, application_name: `capstan:${process.pid}` })
  await client.connect()
  await client.query(
    `insert into jobs.finished (id, queue, owner, priority, state, payload, attempt, attempts_max, created_at, run_at, started_at)
     select uuidv7(), 'bench', case when n % 2 = 0 then 'owner' || n % 1000 end, 0,
            case when n % 100 = 0 then 'dead' else 'succeeded' end, '{"n": 1}', 1, 5, now(), now(), now()
     from generate_series(1, $1::integer) n`,
    [count],
  )
  await client.query('vacuum analyze jobs.finished')
  await client.end()
}

export async function benchJobs() {
  await besideOthers()
  await besideTwoMillion()
}
