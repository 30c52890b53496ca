import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { until } from '../../../test/support/until.ts'
import { makeBus } from '../bus.ts'
import { makeDatabase, type Queryable } from '../database/pool.ts'
import { uuidv7, uuidv7Floor } from '../ids.ts'
import { silentLog } from '../log.ts'
import { makeMetrics } from '../metrics.ts'
import * as counts from './count-store.ts'
import { type Jobs, type JobsOptions, jobsParameters, makeJobs } from './jobs.ts'
import * as leases from './lease-store.ts'
import * as lists from './list-store.ts'
import * as store from './store.ts'
import { type ClaimedJob, JobCancelled, PermanentFailure, type QueueDefinition, type Settled } from './types.ts'
import { backoffMs } from './worker.ts'

const { db, url } = await makeTestDatabase()
const jobsDb = makeDatabase({
  url,
  poolMax: 20,
  log: silentLog,
  applicationName: `capstan:${process.pid}`,
  parameters: jobsParameters,
})
atEnd(() => jobsDb.close())

/** A queue system like a process of its own. `crash` stops its heart and hands, as SIGKILL would. */
async function makeProcess(definitions: QueueDefinition[], options: Partial<JobsOptions> & { work?: boolean } = {}) {
  const bus = makeBus({ db, redisUrl: undefined, log: silentLog })
  await bus.start()
  let dead = false
  const guardedDb = new Proxy(jobsDb, {
    get(target, name: keyof typeof jobsDb) {
      if (dead && (name === 'query' || name === 'tx')) return () => new Promise(() => {})
      return target[name]
    },
  })
  const jobs: Jobs = makeJobs({
    db: guardedDb,
    bus,
    log: silentLog,
    metrics: makeMetrics({ processMetrics: false }),
    keepDays: 30,
    leaseMs: 1500,
    heartbeatMs: 200,
    pollMs: 200,
    ...options,
  })
  for (const definition of definitions) jobs.define(definition)
  await jobs.start({ work: options.work ?? true })
  let stopped = false
  const stop = async (graceMs = 3000) => {
    if (stopped) return
    stopped = true
    if (!dead) await jobs.stop(graceMs)
    await bus.stop()
  }
  atEnd(() => stop(100))
  return {
    jobs,
    stop,
    crash: () => {
      dead = true
    },
  }
}

let queueNumber = 0
const newQueue = () => `q${process.pid}_${++queueNumber}`

async function stateOf(id: string) {
  return (await lists.findJob(db, id))?.state
}

test('a job added in a transaction that rolls back is never worked', async () => {
  const queue = newQueue()
  const seen: unknown[] = []
  const { jobs, stop } = await makeProcess([
    { name: queue, concurrency: 4, handle: async job => seen.push(job.payload) },
  ])
  await assert.rejects(
    db.tx(async tx => {
      await jobs.add(tx, [{ queue, payload: 'rolled back' }])
      throw new Error('no')
    }),
  )
  const added = await jobs.addOne({ queue, payload: 'kept' })
  await until(async () => (await stateOf(added.id)) === 'succeeded')
  assert.deepEqual(seen, ['kept'])
  await stop()
})

test('a job is settled once, in the transaction that ends it, with its result', async () => {
  const queue = newQueue()
  await db.query('create table if not exists public.effects (job_id uuid, state text, result jsonb)')
  const { jobs, stop } = await makeProcess([
    {
      name: queue,
      concurrency: 50,
      handle: async job => ({ doubled: (job.payload as number) * 2 }),
      settle: async (tx, settled) => {
        await tx.query('insert into public.effects select * from unnest($1::uuid[], $2::text[], $3::jsonb[])', [
          settled.map(one => one.id),
          settled.map(one => one.state),
          settled.map(one => JSON.stringify(one.result)),
        ])
      },
    },
  ])
  const added = await db.tx(tx =>
    jobs.add(
      tx,
      Array.from({ length: 1000 }, (_, n) => ({ queue, payload: n })),
    ),
  )
  await until(
    async () => (await db.query<{ n: number }>('select count(*)::int as n from public.effects')).rows[0]!.n === 1000,
  )
  const { rows } = await db.query(
    `select count(*)::int as n from public.effects e join jobs.finished f on f.id = e.job_id
     where f.queue = $1 and f.state = e.state and f.result = e.result and (f.result->>'doubled')::int = (f.payload::text)::int * 2`,
    [queue],
  )
  assert.equal(rows[0]!.n, added.length)
  await stop()
})

test('one job whose end cannot be written dies alone', async () => {
  const queue = newQueue()
  const { jobs, stop } = await makeProcess([
    {
      name: queue,
      concurrency: 50,
      handle: async () => null,
      settle: async (_tx, settled) => {
        if (settled.some(one => one.payload === 13)) throw new Error('unlucky')
      },
    },
  ])
  const added = await db.tx(tx =>
    jobs.add(
      tx,
      Array.from({ length: 40 }, (_, n) => ({ queue, payload: n })),
    ),
  )
  await until(async () =>
    (await lists.listJobs(db, { owner: undefined, queue, state: undefined, before: undefined, limit: 100 })).every(
      job => job.finished_at,
    ),
  )
  const states = await Promise.all(added.map(job => stateOf(job.id)))
  assert.deepEqual(states.map((state, n) => (n === 13 ? state === 'dead' : state === 'succeeded')).indexOf(false), -1)
  await stop()
})

test('a job that fails is tried again after its backoff and dies when its attempts are used up', async () => {
  const queue = newQueue()
  const attempts: number[] = []
  const { jobs, stop } = await makeProcess([
    {
      name: queue,
      concurrency: 1,
      attemptsMax: 3,
      backoffMs: 20,
      handle: async job => {
        attempts.push(job.attempt)
        throw new Error(`attempt ${job.attempt}`)
      },
    },
  ])
  const { id } = await jobs.addOne({ queue, payload: null })
  await until(async () => (await stateOf(id)) === 'dead')
  assert.deepEqual(attempts, [1, 2, 3])
  assert.equal((await lists.findJob(db, id))!.error, 'attempt 3')
  const recorded = await lists.listAttempts(db, id)
  assert.deepEqual(
    recorded.map(row => [row.attempt, row.outcome, row.error]),
    [
      [1, 'failed', 'attempt 1'],
      [2, 'failed', 'attempt 2'],
    ],
  )
  await stop()
})

test('a permanent failure is not tried again', async () => {
  const queue = newQueue()
  const { jobs, stop } = await makeProcess([
    {
      name: queue,
      concurrency: 1,
      handle: async () => {
        throw new PermanentFailure('never')
      },
    },
  ])
  const { id } = await jobs.addOne({ queue, payload: null })
  await until(async () => (await stateOf(id)) === 'dead')
  assert.equal((await lists.findJob(db, id))!.attempt, 1)
  await stop()
})

test('a dead job that is retried gets all its attempts again and keeps its history', async () => {
  const queue = newQueue()
  let fail = true
  const { jobs, stop } = await makeProcess([
    {
      name: queue,
      concurrency: 1,
      attemptsMax: 1,
      handle: async () => {
        if (fail) throw new Error('first')
      },
    },
  ])
  const { id } = await jobs.addOne({ queue, payload: null })
  await until(async () => (await stateOf(id)) === 'dead')
  fail = false
  await db.tx(tx => jobs.retry(tx, id))
  await until(async () => (await stateOf(id)) === 'succeeded')
  assert.equal((await lists.listAttempts(db, id)).length, 1)
  await assert.rejects(
    db.tx(tx => jobs.retry(tx, id)),
    { code: 'job_not_retriable' },
  )
  await stop()
})

test('of jobs with one key only one waits or runs, and the key is free again afterwards', async () => {
  const queue = newQueue()
  const gate = Promise.withResolvers<void>()
  const { jobs, stop } = await makeProcess([{ name: queue, concurrency: 1, handle: () => gate.promise }])
  const [first, second, other] = await db.tx(tx =>
    jobs.add(tx, [
      { queue, payload: 1, key: 'k' },
      { queue, payload: 2, key: 'k' },
      { queue, payload: 3 },
    ]),
  )
  assert.deepEqual([first!.added, second!.added, other!.added], [true, false, true])
  assert.equal(second!.id, first!.id)
  await until(async () => (await stateOf(first!.id)) === 'running')
  assert.deepEqual(await jobs.addOne({ queue, payload: 4, key: 'k' }), { id: first!.id, added: false })
  gate.resolve()
  await until(async () => (await stateOf(first!.id)) === 'succeeded')
  assert.equal((await jobs.addOne({ queue, payload: 5, key: 'k' })).added, true)
  await stop()
})

test('a higher priority goes first, then the order of adding', async () => {
  const queue = newQueue()
  const order: unknown[] = []
  const adder = await makeProcess([{ name: queue, concurrency: 1 }], { work: false })
  await db.tx(tx =>
    adder.jobs.add(
      tx,
      [0, 0, 5, 1, 5].map((priority, n) => ({ queue, payload: n, priority })),
    ),
  )
  const { stop } = await makeProcess([{ name: queue, concurrency: 1, handle: async job => order.push(job.payload) }])
  await until(() => order.length === 5)
  assert.deepEqual(order, [2, 4, 3, 0, 1])
  await stop()
})

test('a delayed job waits for its time', async () => {
  const queue = newQueue()
  let startedAt = 0
  const { jobs, stop } = await makeProcess([
    {
      name: queue,
      concurrency: 1,
      handle: async () => {
        startedAt = Date.now()
      },
    },
  ])
  const runAt = new Date(Date.now() + 400)
  const { id } = await jobs.addOne({ queue, payload: null, runAt })
  assert.equal(await stateOf(id), 'delayed')
  await until(() => startedAt > 0)
  assert.ok(startedAt >= runAt.getTime() - 5, `started ${runAt.getTime() - startedAt} ms early`)
  await stop()
})

test('one owner’s thousand jobs do not delay another’s one', async () => {
  const queue = newQueue()
  const order: (string | null)[] = []
  const gate = Promise.withResolvers<void>()
  const { jobs, stop } = await makeProcess([
    {
      name: queue,
      concurrency: 4,
      handle: async job => {
        order.push(job.owner)
        if (order.length <= 40) return
        await gate.promise
      },
    },
  ])
  await db.tx(tx =>
    jobs.add(
      tx,
      Array.from({ length: 1000 }, () => ({ queue, payload: 0, owner: 'flood' })),
    ),
  )
  await until(() => order.length >= 44)
  await jobs.addOne({ queue, payload: 0, owner: 'single' })
  await db.tx(tx =>
    jobs.add(
      tx,
      Array.from({ length: 50 }, () => ({ queue, payload: 0, owner: 'second' })),
    ),
  )
  gate.resolve()
  await until(() => order.length === 1051)
  const after = order.slice(44)
  assert.ok(after.indexOf('single') < 12, `the single job came at place ${after.indexOf('single')}`)
  // The second crowd alternates with the first: its fiftieth comes at about place 100, not 1000.
  assert.ok(after.lastIndexOf('second') < 150, `the last of fifty came at place ${after.lastIndexOf('second')}`)
  await stop()
})

test('a waiting job is cancelled at once, a running one is asked to stop, on another process too', async () => {
  const queue = newQueue()
  const settled: Settled[] = []
  const started = Promise.withResolvers<void>()
  const definition: QueueDefinition = {
    name: queue,
    concurrency: 1,
    handle: (_job, context) =>
      new Promise((_resolve, reject) => {
        started.resolve()
        context.signal.addEventListener('abort', () => reject(new JobCancelled({ partly: true })))
      }),
    settle: async (_tx, some) => void settled.push(...some),
  }
  const worker = await makeProcess([definition])
  const other = await makeProcess([definition], { work: false })
  const running = await worker.jobs.addOne({ queue, payload: 'running' })
  const waiting = await worker.jobs.addOne({ queue, payload: 'waiting' })
  await started.promise
  assert.equal(await db.tx(tx => other.jobs.cancel(tx, waiting.id)), 'cancelled')
  assert.equal(await db.tx(tx => other.jobs.cancel(tx, running.id)), 'requested')
  await until(async () => (await stateOf(running.id)) === 'cancelled')
  assert.equal(await stateOf(waiting.id), 'cancelled')
  assert.deepEqual((await lists.findJob(db, running.id))!.result, { partly: true })
  assert.deepEqual(
    settled.map(one => one.state),
    ['cancelled', 'cancelled'],
  )
  await assert.rejects(
    db.tx(tx => other.jobs.cancel(tx, running.id)),
    { code: 'job_ended' },
  )
  await assert.rejects(
    db.tx(tx => other.jobs.cancel(tx, uuidv7())),
    { code: 'job_not_found' },
  )
  await worker.stop()
  await other.stop()
})

test('a dead worker’s jobs are taken over, and what it still says about them is not believed', async () => {
  const queue = newQueue()
  const seen: string[] = []
  const release = Promise.withResolvers<void>()
  const make = (name: string, wait: boolean): QueueDefinition => ({
    name: queue,
    concurrency: 10,
    handle: async () => {
      seen.push(name)
      if (wait) await release.promise
      return name
    },
  })
  const first = await makeProcess([make('first', true)])
  const added = await db.tx(tx =>
    first.jobs.add(
      tx,
      Array.from({ length: 10 }, () => ({ queue, payload: 0 })),
    ),
  )
  await until(() => seen.length === 10)
  first.crash()
  const second = await makeProcess([make('second', false)])
  await until(async () => (await Promise.all(added.map(job => stateOf(job.id)))).every(state => state === 'succeeded'))
  release.resolve()
  const jobs = await Promise.all(added.map(job => lists.findJob(db, job.id)))
  assert.ok(jobs.every(job => job!.result === 'second' && job!.attempt === 2))
  assert.deepEqual(
    (await lists.listAttempts(db, added[0]!.id)).map(row => row.outcome),
    ['lost'],
  )
  await second.stop()
})

test('a worker that was declared dead but lives drops its jobs and goes on under a new name', async () => {
  const queue = newQueue()
  const aborted: unknown[] = []
  let hang = true
  const { jobs, stop } = await makeProcess([
    {
      name: queue,
      concurrency: 1,
      handle: async (_job, context) => {
        if (!hang) return 'done'
        hang = false
        await new Promise(resolve => context.signal.addEventListener('abort', resolve))
        aborted.push(context.signal.reason)
        return 'too late'
      },
    },
  ])
  const { id } = await jobs.addOne({ queue, payload: null })
  await until(async () => (await stateOf(id)) === 'running')
  await db.query(`update jobs.workers set dead_at = now() where queues = array[$1]`, [queue])
  await until(async () => (await stateOf(id)) === 'succeeded')
  assert.deepEqual(aborted, ['lease_lost'])
  assert.equal((await lists.findJob(db, id))!.result, 'done')
  await stop()
})

test('stopping waits for what runs and hands back what does not end in time, without counting the attempt', async () => {
  const queue = newQueue()
  const handle = (job: ClaimedJob, ms: number) => (job.payload === 'slow' ? new Promise(() => {}) : sleep(ms))
  const first = await makeProcess([{ name: queue, concurrency: 2, handle: job => handle(job, 150) }])
  const [quick, slow] = await db.tx(tx =>
    first.jobs.add(tx, [
      { queue, payload: 'quick' },
      { queue, payload: 'slow' },
    ]),
  )
  await until(async () => (await stateOf(slow!.id)) === 'running' && (await stateOf(quick!.id)) === 'running')
  await first.stop(400)
  assert.equal(await stateOf(quick!.id), 'succeeded')
  const back = (await lists.findJob(db, slow!.id))!
  assert.deepEqual([back.state, back.attempt], ['waiting', 0])
  assert.deepEqual(
    (await lists.listAttempts(db, slow!.id)).map(row => row.outcome),
    ['handed_back'],
  )
})

test('jobs claimed in an answer that was lost are given back', async () => {
  const queue = newQueue()
  const worker = uuidv7()
  const adder = await makeProcess([{ name: queue, concurrency: 1 }], { work: false })
  const added = await db.tx(tx =>
    adder.jobs.add(
      tx,
      [1, 2, 3].map(payload => ({ queue, payload })),
    ),
  )
  await store.claimJobs(jobsDb, { queue, worker, limit: 3 })
  assert.equal(await store.releaseUnknown(jobsDb, { queue, worker, known: [added[1]!.id] }), 2)
  assert.deepEqual(await Promise.all(added.map(job => stateOf(job.id))), ['waiting', 'running', 'waiting'])
})

test('workers on two processes never both work a job', async () => {
  const queue = newQueue()
  const seen = new Map<string, number>()
  const definition: QueueDefinition = {
    name: queue,
    concurrency: 100,
    handle: async job => void seen.set(job.id, (seen.get(job.id) ?? 0) + 1),
  }
  const one = await makeProcess([definition])
  const two = await makeProcess([definition])
  await Promise.all(
    [one, two].map(({ jobs }) =>
      Promise.all(Array.from({ length: 1500 }, (_, n) => jobs.addOne({ queue, payload: n }))),
    ),
  )
  await until(() => seen.size === 3000)
  assert.ok([...seen.values()].every(times => times === 1))
  await one.stop()
  await two.stop()
})

test('counts are the sum of what happened', async () => {
  const queue = newQueue()
  const { jobs, stop } = await makeProcess([
    {
      name: queue,
      concurrency: 10,
      attemptsMax: 1,
      handle: async job => {
        if (job.payload === 0) throw new Error('x')
      },
    },
  ])
  const added = await db.tx(tx =>
    jobs.add(
      tx,
      Array.from({ length: 30 }, (_, n) => ({ queue, payload: n % 3 })),
    ),
  )
  await until(async () =>
    (await Promise.all(added.map(job => stateOf(job.id)))).every(state => state !== 'running' && state !== 'waiting'),
  )
  await db.tx(counts.foldDeltas)
  const row = (await lists.listQueues(db)).find(each => each.name === queue)!
  assert.deepEqual([row.added, row.succeeded, row.dead, row.cancelled], [30, 20, 10, 0])
  await stop()
})

test('old days are dropped whole, young ones kept', async () => {
  await db.query(`select jobs.make_days((now() at time zone 'utc')::date - 40, 1)`)
  const old = uuidv7Floor(new Date(Date.now() - 40 * 86_400_000))
  await db.query(
    `insert into jobs.finished (id, queue, priority, state, payload, attempt, attempts_max, created_at, run_at)
     values ($1, 'old', 0, 'succeeded', '1', 1, 1, now(), now())`,
    [old],
  )
  const dropped = await db.tx(tx => counts.dropOldDays(tx, 30))
  assert.equal(dropped.length, 1)
  assert.equal(await stateOf(old), undefined)
})

test('backoff doubles up to its bound and spreads by half either way', () => {
  const definition = { name: 'x', concurrency: 1, backoffMs: 100, backoffMaxMs: 1000 }
  assert.deepEqual(
    [1, 2, 3, 4, 5, 9].map(attempt => backoffMs(definition, attempt, () => 0.5)),
    [100, 200, 400, 800, 1000, 1000],
  )
  assert.equal(
    backoffMs(definition, 1, () => 0),
    50,
  )
  assert.equal(
    backoffMs(definition, 1, () => 1),
    150,
  )
})

test('a worker of this host whose process is gone is not waited for', async () => {
  const queue = newQueue()
  const adder = await makeProcess([{ name: queue, concurrency: 1 }], { work: false })
  const { id } = await adder.jobs.addOne({ queue, payload: null })
  const gone = uuidv7()
  const { rows } = await db.query<{ host: string }>('select host from jobs.workers limit 1')
  assert.ok(rows[0], 'an earlier test left a worker of this place')
  // No process has this number: it is past the largest that Linux gives.
  await leases.insertWorker(db, { id: gone, host: rows[0].host, pid: 2 ** 30, queues: [queue] })
  await store.claimJobs(jobsDb, { queue, worker: gone, limit: 1 })
  const begun = Date.now()
  const { stop } = await makeProcess([{ name: queue, concurrency: 1, handle: async () => null }], { leaseMs: 60_000 })
  await until(async () => (await stateOf(id)) === 'succeeded')
  assert.ok(Date.now() - begun < 10_000)
  await stop()
})

test('ending a batch looks at its own rows alone, even where PostgreSQL knows nothing of the table', async () => {
  const queue = newQueue()
  await db.query('delete from pg_statistic where starelid = $1::regclass', ['jobs.active'])
  const adder = await makeProcess([{ name: queue, concurrency: 1 }], { work: false })
  await db.tx(tx =>
    adder.jobs.add(
      tx,
      Array.from({ length: 5000 }, () => ({ queue, payload: null })),
    ),
  )
  const worker = uuidv7()
  const held = await store.claimJobs(jobsDb, { queue, worker, limit: 100 })
  let plan = ''
  const explaining: Queryable = {
    async query(text, values, how) {
      const { rows } = await jobsDb.query<{ 'QUERY PLAN': unknown }>(`explain (format json) ${text}`, values, how)
      plan = JSON.stringify(rows[0]!['QUERY PLAN'])
      return { rows: [], rowCount: 0 }
    },
  }
  const rows = held.map(({ id }) => ({ id, attempt: 1, state: 'succeeded' as const, result: null, error: null }))
  await store.finishJobs(explaining, { queue, worker, rows })
  assert.match(plan, /"Index Name":"active_pkey"[^{}]*"Index Cond":"\(id = ANY/)
  await db.query('delete from jobs.active where queue = $1', [queue])
})
