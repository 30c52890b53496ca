/**
 * The queue in PostgreSQL. Jobs are added in the caller's transaction, claimed and ended in batches, and come back by
 * themselves when whoever worked them is gone: a process holds its jobs by one heartbeat for all of them.
 *
 * States of a job: waiting or delayed → running → succeeded, dead or cancelled; running → waiting or delayed when it
 * failed with attempts left, when its worker died, or when it was handed back.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { makeBatcher } from '../batch.ts'
import type { Bus } from '../bus.ts'
import { type Database, isConnectionLoss, type Queryable, type Tx } from '../database/pool.ts'
import { uuidv7 } from '../ids.ts'
import type { Log } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import * as counts from './count-store.ts'
import { errors } from './errors.ts'
import { makeLease } from './lease.ts'
import * as leases from './lease-store.ts'
import * as lists from './list-store.ts'
import { makeJobMetrics } from './metrics.ts'
import * as store from './store.ts'
import type { NewJob, QueueDefinition, Settled } from './types.ts'
import { backoffMs, makeWorker, type Worker } from './worker.ts'

export interface AddedJob {
  id: string
  /** False when a job with the same key waits or runs already; `id` is that one's. */
  added: boolean
}

export interface Jobs {
  /** Makes a queue known. Every process that may end its jobs (by cancelling, say) defines it, whether it works it or not. */
  define(queue: QueueDefinition): void
  /** Adds jobs in the caller's transaction, an answer each, in order. They may start as soon as it commits. */
  add(tx: Tx, jobs: readonly NewJob[]): Promise<AddedJob[]>
  /** Adds one job in a transaction shared with whatever else is added at this moment. */
  addOne(job: NewJob): Promise<AddedJob>
  /** Ends a waiting job at once and asks a running one to stop. @throws job_not_found, job_ended */
  cancel(tx: Tx, id: string): Promise<'cancelled' | 'requested'>
  /** Lines a dead or cancelled job up again with all its attempts. @throws job_not_found, job_not_retriable */
  retry(tx: Tx, id: string): Promise<void>
  /** Waiting and running jobs of each owner that has some. */
  countOwned(tx: Queryable, given: { queue: string; owners: string[] }): Promise<Map<string, number>>
  /** Jobs of a queue that have not ended, as of a second ago. */
  depth(queue: string): number
  /** @param work false for a process that only adds and looks. */
  start(given: { work: boolean }): Promise<void>
  /** Takes no more jobs, waits for what runs, then hands back what is left. */
  stop(graceMs: number): Promise<void>
  readonly db: Database
}

export interface JobsOptions {
  /** Its connections should have `jobsParameters`. */
  db: Database
  bus: Bus
  log: Log
  metrics: Metrics
  keepDays: number
  /** A worker that was not heard of for so long is dead. */
  leaseMs?: number
  heartbeatMs?: number
  /** Behind lost wake-ups. */
  pollMs?: number
}

/**
 * The planner knows little of a table that holds nothing now and a million rows in a second. It is told the one thing
 * that is always right here: go through the index that fits, in its order.
 */
export const jobsParameters = {
  enable_seqscan: 'off',
  enable_bitmapscan: 'off',
  enable_sort: 'off',
  enable_mergejoin: 'off',
  random_page_cost: '1.1',
}

const addMax = 1000
const addWaitingMax = 50_000
const attemptsMaxDefault = 5
const promoteMax = 1000
const reclaimMax = 1000
const cancelChannel = 'jobs.cancel'
const wakeChannel = 'jobs'
const hourMs = 3_600_000

export function makeJobs(options: JobsOptions): Jobs {
  const { db, bus, log } = options
  const leaseMs = options.leaseMs ?? 6000
  const heartbeatMs = options.heartbeatMs ?? 1500
  const pollMs = options.pollMs ?? 1000
  const metrics = makeJobMetrics(options.metrics)
  const definitions = new Map<string, QueueDefinition>()
  const workers = new Map<string, Worker>()
  const timers = new Set<NodeJS.Timeout>()
  const reclaimed = new Set<string>()
  let depths = new Map<string, number>()
  const lease = makeLease({ db, log, leaseMs, workers })
  let stopping = false

  const definitionOf = (queue: string): QueueDefinition => {
    const definition = definitions.get(queue)
    if (!definition) throw new Error(`No service of this process defines the queue ${queue}.`)
    return definition
  }

  const adds = makeBatcher<NewJob, AddedJob>({
    name: 'new jobs',
    size: addMax,
    waitingMax: addWaitingMax,
    isCommon: isConnectionLoss,
    run: async items => (await addSharing(items)).map(value => ({ value })),
  })

  /** Jobs of one queue without keys are one statement, which is a transaction by itself and saves two round trips. */
  async function addSharing(items: readonly NewJob[]): Promise<AddedJob[]> {
    const { queue } = items[0]!
    if (!items.every(job => job.queue === queue && job.key === undefined)) return db.tx(tx => add(tx, items))
    const rows = items.map(job => toRow(job, definitions.get(queue)))
    await store.insertJobs(db, queue, rows)
    wake(queue)
    return rows.map(({ id }) => ({ id, added: true }))
  }

  async function add(tx: Tx, jobs: readonly NewJob[]): Promise<AddedJob[]> {
    const answers = new Map<NewJob, AddedJob>()
    for (const [queue, group] of groupByQueue(jobs)) {
      const rows = group.map(job => toRow(job, definitions.get(queue)))
      const inserted = await store.insertJobs(tx, queue, rows)
      if (inserted.length === rows.length) {
        for (const [index, job] of group.entries()) answers.set(job, { id: rows[index]!.id, added: true })
      } else {
        await answerKeyed({ tx, queue, group, rows, inserted: new Set(inserted), answers })
      }
      tx.afterCommit(() => wake(queue))
    }
    return jobs.map(job => answers.get(job)!)
  }

  /** Who can take it here, takes it; else, or too, others are told. */
  function wake(queue: string) {
    const worker = workers.get(queue)
    if (worker?.hasRoom) worker.wake()
    else bus.publish(wakeChannel, [queue])
  }

  async function cancel(tx: Tx, id: string): Promise<'cancelled' | 'requested'> {
    const job = await store.lockActive(tx, id)
    if (!job) {
      const ended = await lists.findJob(tx, id)
      throw ended ? errors.jobEnded(ended.state) : errors.jobNotFound()
    }
    if (job.worker !== null) {
      await store.requestCancel(tx, id)
      tx.afterCommit(() => bus.publish(cancelChannel, [id]))
      return 'requested'
    }
    await end(tx, job.queue, [{ id, attempt: job.attempt, state: 'cancelled', result: null, error: null }])
    return 'cancelled'
  }

  /** Ends jobs that nobody works, with their queue's hook. */
  async function end(tx: Tx, queue: string, rows: store.EndRow[]) {
    const definition = definitionOf(queue)
    const states = new Map(rows.map(row => [row.id, row]))
    const gone = await store.finishJobs(tx, { queue, worker: null, rows })
    const settled: Settled[] = gone.map(row => ({
      id: row.id,
      owner: row.owner,
      payload: row.payload,
      state: states.get(row.id)!.state,
      result: null,
      error: states.get(row.id)!.error,
    }))
    if (settled.length === 0) return
    await definition.settle?.(tx, settled)
    tx.afterCommit(() => definition.settled?.(settled))
  }

  async function retry(tx: Tx, id: string) {
    const job = await store.deleteFinished(tx, id)
    if (!job) {
      const found = await lists.findJob(tx, id)
      throw found ? errors.jobNotRetriable(found.state) : errors.jobNotFound()
    }
    await store.insertAttempt(tx, {
      jobId: id,
      attempt: job.attempt,
      worker: job.worker,
      error: job.error ?? (job.state === 'cancelled' ? 'It was cancelled.' : null),
      startedAt: job.started_at,
      endedAt: job.finished_at,
    })
    await definitions.get(job.queue)?.retried?.(tx, id)
    await add(tx, [
      {
        id,
        queue: job.queue,
        payload: job.payload,
        owner: job.owner ?? undefined,
        priority: job.priority,
        key: job.key ?? undefined,
        attemptsMax: job.attempts_max,
        requestId: job.request_id ?? undefined,
      },
    ])
  }

  // Holding jobs

  async function beat() {
    await lease.beat()
    await stopCancelled()
  }

  async function stopCancelled() {
    const ids = [...workers.values()].flatMap(worker => worker.runningIds())
    if (ids.length === 0) return
    for (const id of await store.findCancelRequested(db, ids)) abortEverywhere(id)
  }

  function abortEverywhere(id: string) {
    for (const worker of workers.values()) worker.abort(id, 'cancelled')
  }

  /** Takes back the jobs of dead workers, for the queues this process knows. */
  async function reclaim() {
    const mayDeclare = workers.size === 0 || lease.steadyMs >= leaseMs
    const dead = (await leases.findDeadWorkers(db, mayDeclare ? leaseMs : null)).filter(id => !reclaimed.has(id))
    if (dead.length > 0) await takeBackFrom(dead)
    for (const id of dead) reclaimed.add(id)
  }

  async function takeBackFrom(dead: string[]) {
    const given = { workers: dead, queues: [...definitions.keys()], limit: reclaimMax }
    for (;;) {
      const held = await db.tx(async tx => {
        const rows = await leases.lockHeldBy(tx, given)
        for (const [queue, group] of Map.groupBy(rows, row => row.queue)) await takeBack(tx, queue, group)
        return rows
      })
      if (held.length > 0) log.warn({ jobs: held.length, workers: dead }, 'took back the jobs of dead workers')
      for (const queue of new Set(held.map(row => row.queue))) wake(queue)
      if (held.length < reclaimMax) return
    }
  }

  async function takeBack(tx: Tx, queue: string, rows: leases.HeldRow[]) {
    const message = 'Its worker died.'
    const ends = rows
      .filter(row => row.cancel_requested || row.attempt >= row.attempts_max)
      .map(row => ({
        id: row.id,
        attempt: row.attempt,
        state: row.cancel_requested ? ('cancelled' as const) : ('dead' as const),
        result: null,
        error: row.cancel_requested ? null : message,
      }))
    if (ends.length > 0) await end(tx, queue, ends)
    const ending = new Set(ends.map(row => row.id))
    for (const [worker, group] of Map.groupBy(rows, row => row.worker)) {
      const back = group
        .filter(row => !ending.has(row.id))
        .map(row => ({
          id: row.id,
          attempt: row.attempt,
          outcome: 'lost' as const,
          error: message,
          // The first loss is the worker's fault; a job that loses worker after worker waits longer each time.
          delayMs: row.attempt === 1 ? 0 : backoffMs(definitionOf(queue), row.attempt - 1, Math.random),
        }))
      if (back.length > 0) await store.returnJobs(tx, { queue, worker, rows: back })
    }
  }

  async function promote() {
    for (const queue of definitions.keys()) {
      const { promoted, next_ms } = await store.promoteDue(db, { queue, limit: promoteMax })
      if (promoted > 0) wake(queue)
      if (next_ms !== null && next_ms < pollMs) after(Math.max(1, next_ms), promote, 'promote delayed jobs')
    }
  }

  async function count() {
    await db.tx(counts.foldDeltas)
    depths = await counts.countUnfinished(db)
  }

  function wakeAll() {
    for (const worker of workers.values()) worker.wake()
  }

  async function clean() {
    await leases.forgetDeadWorkers(db)
    await counts.makeDays(db)
    const dropped = await db.tx(tx => counts.dropOldDays(tx, options.keepDays))
    if (dropped.length > 0) log.info({ dropped }, 'dropped old finished jobs')
    const orphans = await leases.findUnknownHolders(db)
    if (orphans.length > 0) await takeBackFrom(orphans)
  }

  function after(ms: number, action: () => Promise<void>, what: string) {
    const timer = setTimeout(() => {
      timers.delete(timer)
      if (!stopping) void guarded(action, what)
    }, ms)
    timer.unref()
    timers.add(timer)
  }

  /** Runs now and then; one run ends before the next begins. */
  function every(ms: number, action: () => Promise<void>, what: string) {
    after(ms, () => guarded(action, what).finally(() => !stopping && every(ms, action, what)), what)
  }

  async function guarded(action: () => Promise<void>, what: string) {
    try {
      await action()
    } catch (error) {
      if (!stopping) log.warn({ err: error }, `could not ${what}`)
    }
  }

  return {
    db,
    define(queue) {
      if (definitions.has(queue.name)) throw new Error(`The queue ${queue.name} is defined twice.`)
      definitions.set(queue.name, queue)
    },
    add,
    addOne: job => adds.push(job),
    cancel,
    retry,
    countOwned: counts.countOwned,
    depth: queue => depths.get(queue) ?? 0,
    async start({ work }) {
      if (work) {
        for (const definition of definitions.values()) {
          const { handle } = definition
          if (!handle) continue
          workers.set(
            definition.name,
            makeWorker({
              definition: { ...definition, handle },
              db,
              log,
              metrics,
              workerId: () => lease.id,
              leaseHolds: () => lease.holds,
              onSaturated: () => bus.publish(wakeChannel, [definition.name]),
            }),
          )
        }
        await lease.register()
        every(heartbeatMs, beat, 'renew the lease of this worker')
        bus.subscribe(cancelChannel, ids => ids.forEach(abortEverywhere))
        bus.subscribe(wakeChannel, queues => {
          for (const queue of queues) workers.get(queue)?.wake()
        })
        bus.onGap(wakeAll)
        every(pollMs, async () => wakeAll(), 'look for jobs')
        every(pollMs, promote, 'promote delayed jobs')
        wakeAll()
      }
      await guarded(reclaim, 'take back jobs of dead workers')
      every(1000, reclaim, 'take back jobs of dead workers')
      every(1000, count, 'count jobs')
      await guarded(clean, 'clean up finished jobs')
      every(hourMs, clean, 'clean up finished jobs')
    },
    async stop(graceMs) {
      for (const worker of workers.values()) worker.close()
      const idle = Promise.all([...workers.values()].map(worker => worker.idle()))
      if (!(await within(idle, graceMs))) {
        for (const worker of workers.values()) worker.abortAll('shutdown')
        await within(idle, Math.min(2000, graceMs))
        for (const worker of workers.values()) {
          await guarded(() => worker.handBack(), 'hand back jobs')
        }
      }
      stopping = true
      for (const timer of timers) clearTimeout(timer)
      if (workers.size > 0) await guarded(lease.signOff, 'sign off')
      bus.publish(wakeChannel, [...workers.keys()])
    },
  }
}

async function within(work: Promise<unknown>, ms: number): Promise<boolean> {
  const timer = new AbortController()
  const late = sleep(ms, false, { signal: timer.signal }).catch(() => false)
  const done = await Promise.race([work.then(() => true), late])
  timer.abort()
  return done
}

function groupByQueue(jobs: readonly NewJob[]): Map<string, NewJob[]> {
  const first = jobs[0]?.queue
  if (first !== undefined && jobs.every(job => job.queue === first)) return new Map([[first, jobs as NewJob[]]])
  return Map.groupBy(jobs, job => job.queue)
}

function toRow(job: NewJob, definition: QueueDefinition | undefined): store.InsertRow {
  return {
    id: job.id ?? uuidv7(),
    owner: job.owner ?? null,
    priority: job.priority ?? 0,
    runAt: job.runAt ?? null,
    key: job.key ?? null,
    payload: JSON.stringify(job.payload ?? null),
    attemptsMax: job.attemptsMax ?? definition?.attemptsMax ?? attemptsMaxDefault,
    requestId: job.requestId ?? null,
  }
}

/** Some were kept out by their keys: finds whose. */
async function answerKeyed(given: {
  tx: Tx
  queue: string
  group: readonly NewJob[]
  rows: readonly store.InsertRow[]
  inserted: Set<string>
  answers: Map<NewJob, AddedJob>
}) {
  const { tx, queue, group, rows, inserted, answers } = given
  const keys = rows.filter(row => row.key !== null && !inserted.has(row.id)).map(row => row.key!)
  const holders = new Map((await store.findByKeys(tx, queue, keys)).map(row => [row.key, row.id]))
  for (const [index, job] of group.entries()) {
    const row = rows[index]!
    const added = inserted.has(row.id)
    answers.set(job, { id: added ? row.id : (holders.get(row.key!) ?? row.id), added })
  }
}
