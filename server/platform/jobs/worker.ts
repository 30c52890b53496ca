/**
 * Works one queue in one process.
 *
 * A job here is: claimed (its row names this worker) → running (its handler was called) → ended (the handler settled)
 * → settled (the row has left, or is back in line). A slot is free again when the handler ends, so that the next job
 * runs while the last one's end is being committed. Claims and ends travel in batches, each with one commit; no
 * transaction is open while a handler runs.
 */
import { type Batcher, makeBatcher, type Outcome } from '../batch.ts'
import { type Database, isConnectionLoss, type Queryable, type Tx } from '../database/pool.ts'
import { messageOf } from '../errors.ts'
import { uuidv7Time } from '../ids.ts'
import type { Log } from '../log.ts'
import type { JobMetrics } from './metrics.ts'
import * as store from './store.ts'
import {
  type AbortReason,
  type ClaimedJob,
  JobCancelled,
  type JobContext,
  PermanentFailure,
  type QueueDefinition,
  type Settled,
} from './types.ts'

export interface Worker {
  /** There may be jobs: look. */
  wake(): void
  /** True when it could take a job now. */
  readonly hasRoom: boolean
  readonly running: number
  runningIds(): string[]
  /** Aborts a job that runs here. */
  abort(id: string, reason: AbortReason): void
  abortAll(reason: AbortReason): void
  /** Takes no more jobs. */
  close(): void
  /** Resolves when no handler runs and every end is committed. */
  idle(): Promise<void>
  /** Gives back what still runs, for another process to begin again at once. */
  handBack(): Promise<void>
}

export interface WorkerOptions {
  definition: QueueDefinition & { handle: NonNullable<QueueDefinition['handle']> }
  db: Database
  log: Log
  metrics: JobMetrics
  /** Under which the process holds jobs; it changes when a lease was lost. */
  workerId: () => string
  /** False while the process cannot be sure that its lease holds. */
  leaseHolds: () => boolean
  /** More waits than this process can take: others should look. */
  onSaturated: () => void
  random?: () => number
}

interface Running {
  job: ClaimedJob
  workerId: string
  reason: AbortReason | undefined
  controller: AbortController | undefined
}

type End =
  | { kind: 'end'; entry: Running; row: store.EndRow; settled: Settled }
  | { kind: 'return'; entry: Running; row: store.ReturnRow }

const batchMaxDefault = 2000
const retryMs = 200
/** Text of an error that is kept with a job. */
const errorCharsMax = 4000

export function makeWorker(options: WorkerOptions): Worker {
  const { definition, db, log, metrics } = options
  const queue = definition.name
  const batchMax = definition.batchMax ?? batchMaxDefault
  const running = new Map<string, Running>()
  const waited = metrics.waited.labels(queue)
  /** Ended here, the end not yet committed. */
  const settling = new Set<string>()
  /** A claim's answer was lost on the way: rows may name this worker that it knows nothing of. */
  let mustReconcile = false
  const newestTurn = new Map<number, number>()
  let open = true
  /** One claim at a time: a second would only step over the rows that the first has locked. */
  let claiming = false
  /** Slots that a claim in flight may fill, or whose jobs are claimed and not begun yet. */
  let reserved = 0
  /** The last claim came back full: more wait, and a freed slot should ask for them. */
  let moreLikely = false
  /** Somebody said that there may be jobs, and no claim was sent since. */
  let woken = false
  let told = false
  let onIdle: (() => void)[] = []

  const ends: Batcher<End, boolean> = makeBatcher({
    name: `job ends of ${queue}`,
    size: batchMax,
    waitingMax: Number.POSITIVE_INFINITY,
    parallel: 1,
    run: settleUntilHeard,
  })
  const progress = makeBatcher<{ id: string; worker: string; progress: string }, void>({
    name: `job progress of ${queue}`,
    size: batchMax,
    waitingMax: 10_000,
    run: async rows => {
      // Of several reports of one job only the newest counts; an UPDATE takes a row once.
      await store.saveProgress(db, [...new Map(rows.map(row => [row.id, row])).values()])
      return rows.map(() => ({ value: undefined }))
    },
  })

  // Ends that wait for their commit hold back new claims only when they pile up.
  const room = () =>
    Math.min(definition.concurrency - running.size, definition.concurrency + 2 * batchMax - settling.size) - reserved

  /** Sends a claim where there is reason and room for one. */
  function fill() {
    if (claiming || !open || !(woken || moreLikely) || !options.leaseHolds()) return
    const limit = Math.min(room(), batchMax)
    if (limit <= 0) {
      tellOthers()
      return
    }
    woken = false
    void claim(limit)
  }

  /** Once for each full claim: telling wakes this process's own workers too. */
  function tellOthers() {
    if (!moreLikely || told) return
    told = true
    options.onSaturated()
  }

  async function claim(limit: number) {
    claiming = true
    reserved += limit
    const workerId = options.workerId()
    let rows: store.ClaimRow[] = []
    try {
      if (mustReconcile) await reconcile(workerId)
      rows = await store.claimJobs(db, { queue, worker: workerId, limit })
      moreLikely = rows.length === limit
      told = false
    } catch (error) {
      mustReconcile = true
      moreLikely = false
      if (open) {
        log.warn({ err: error, queue }, 'could not claim jobs; trying again')
        setTimeout(wake, retryMs).unref()
      }
    }
    claiming = false
    // The next claim is on its way while these begin.
    reserved += rows.length - limit
    fill()
    advance(rows)
    for (const row of rows) {
      reserved--
      begin(row, workerId)
    }
    checkIdle()
  }

  function wake() {
    woken = true
    fill()
  }

  async function reconcile(workerId: string) {
    const known = [...running.keys(), ...settling]
    const released = await store.releaseUnknown(db, { queue, worker: workerId, known })
    if (released > 0) log.warn({ queue, jobs: released }, 'gave back jobs whose claim was not heard')
    mustReconcile = false
  }

  /** Turns between owners are told to those who line up later. Nobody waits for it: late costs a newcomer a place. */
  function advance(rows: store.ClaimRow[]) {
    for (const { owner, priority, turn } of rows) {
      if (owner === null || turn <= (newestTurn.get(priority) ?? -1)) continue
      newestTurn.set(priority, turn)
    }
    const last = rows.findLast(row => row.owner !== null)
    if (last === undefined) return
    const { priority } = last
    store.advanceTurn(db, { queue, priority, turn: newestTurn.get(priority)! }).catch(error => {
      log.debug({ err: error, queue }, 'a turn was not advanced')
    })
  }

  function begin(row: store.ClaimRow, workerId: string) {
    const job: ClaimedJob = {
      id: row.id,
      payload: row.payload,
      owner: row.owner,
      attempt: row.attempt,
      attemptsMax: row.attempts_max,
      requestId: row.request_id,
      createdAt: uuidv7Time(row.id),
      startedAt: new Date(),
    }
    const entry: Running = { job, workerId, reason: undefined, controller: undefined }
    running.set(job.id, entry)
    waited.observe(Math.max(0, job.startedAt.getTime() - job.createdAt.getTime()) / 1000)
    const context: JobContext = {
      get signal() {
        entry.controller ??= new AbortController()
        if (entry.reason && !entry.controller.signal.aborted) entry.controller.abort(entry.reason)
        return entry.controller.signal
      },
      progress(value) {
        progress.push({ id: job.id, worker: workerId, progress: JSON.stringify(value) }).catch(error => {
          log.debug({ err: error, job: job.id }, 'progress was not saved')
        })
      },
    }
    let work: Promise<unknown>
    try {
      work = definition.handle(job, context)
    } catch (error) {
      work = Promise.reject(error)
    }
    work.then(
      result => ended(entry, { result }),
      error => ended(entry, { error }),
    )
  }

  function ended(entry: Running, outcome: { result: unknown } | { error: unknown }) {
    // Handed back or lost meanwhile: it is another's now.
    if (running.get(entry.job.id) !== entry) return
    running.delete(entry.job.id)
    if (entry.reason !== 'lease_lost') {
      settling.add(entry.job.id)
      void ends.push(judge(entry, outcome))
    }
    if (moreLikely) fill()
    checkIdle()
  }

  function judge(entry: Running, outcome: { result: unknown } | { error: unknown }): End {
    const { job, reason } = entry
    const end = (state: store.EndRow['state'], result: unknown, error: string | null): End => {
      const text = toJson(result)
      return {
        kind: 'end',
        entry,
        row: { id: job.id, attempt: job.attempt, state, result: text, error },
        settled: { id: job.id, owner: job.owner, payload: job.payload, state, result, error },
      }
    }
    if ('result' in outcome) return end('succeeded', outcome.result, null)
    const { error } = outcome
    if (error instanceof JobCancelled) return end('cancelled', error.result, null)
    if (reason === 'cancelled') return end('cancelled', null, null)
    if (reason === 'shutdown') return back(entry, 'handed_back', null, 0)
    const message = messageOf(error).slice(0, errorCharsMax)
    log.warn({ err: error, queue, job: job.id, attempt: job.attempt, request_id: job.requestId }, 'a job failed')
    if (error instanceof PermanentFailure || job.attempt >= job.attemptsMax) return end('dead', null, message)
    return back(entry, 'failed', message, backoffMs(definition, job.attempt, options.random ?? Math.random))
  }

  function back(entry: Running, outcome: store.ReturnRow['outcome'], error: string | null, delayMs: number): End {
    return { kind: 'return', entry, row: { id: entry.job.id, attempt: entry.job.attempt, outcome, error, delayMs } }
  }

  /** A lost connection is no reason to forget what ended: try until it is written. */
  async function settleUntilHeard(items: End[]): Promise<Outcome<boolean>[]> {
    for (;;) {
      try {
        return settledNow(items, await settle(items))
      } catch (error) {
        if (isConnectionLoss(error)) {
          await new Promise(resolve => setTimeout(resolve, retryMs))
          continue
        }
        if (items.length > 1) throw error
        return settledNow(items, [await settleAlone(items[0]!, error)])
      }
    }
  }

  function settledNow(items: End[], outcomes: Outcome<boolean>[]): Outcome<boolean>[] {
    for (const { entry } of items) settling.delete(entry.job.id)
    if (moreLikely) fill()
    queueMicrotask(checkIdle)
    return outcomes
  }

  async function settle(items: End[]): Promise<Outcome<boolean>[]> {
    const finals = items.filter(item => item.kind === 'end')
    const returns = items.filter(item => item.kind === 'return')
    let endedNow: Settled[] = []
    if (returns.length === 0 && !definition.settle) {
      await finish(db, finals)
    } else {
      endedNow = await db.tx(async tx => {
        const settled = await finish(tx, finals)
        if (settled.length > 0) await definition.settle?.(tx, settled)
        for (const [worker, rows] of byWorker(returns)) {
          await store.returnJobs(tx, { queue, worker, rows: rows.map(item => item.row) })
        }
        return settled
      })
    }
    for (const item of finals) metrics.ended.inc({ queue, state: item.row.state })
    if (returns.length > 0) metrics.ended.inc({ queue, state: 'retried' }, returns.length)
    if (endedNow.length > 0) definition.settled?.(endedNow)
    return items.map(() => ({ value: true }))
  }

  async function finish(tx: Queryable, finals: Extract<End, { kind: 'end' }>[]): Promise<Settled[]> {
    const settled: Settled[] = []
    for (const [worker, items] of byWorker(finals)) {
      const rows = await store.finishJobs(tx, { queue, worker, rows: items.map(item => item.row) })
      if (!definition.settle && !definition.settled) continue
      const gone = new Set(rows.map(row => row.id))
      for (const item of items) if (gone.has(item.row.id)) settled.push(item.settled)
    }
    return settled
  }

  /** What one job's own end breaks on must not keep it for ever: it ends as dead, with the reason. */
  async function settleAlone(item: End, error: unknown): Promise<Outcome<boolean>> {
    log.error({ err: error, queue, job: item.row.id }, 'a job’s end could not be written')
    const { job, workerId } = item.entry
    const message = `Its end could not be written: ${messageOf(error)}`.slice(0, errorCharsMax)
    const settled: Settled = {
      id: job.id,
      owner: job.owner,
      payload: job.payload,
      state: 'dead',
      result: null,
      error: message,
    }
    const row: store.EndRow = { id: job.id, attempt: job.attempt, state: 'dead', result: null, error: message }
    const end = async (tx: Tx, withHook: boolean) => {
      const rows = await store.finishJobs(tx, { queue, worker: workerId, rows: [row] })
      if (withHook && rows.length > 0) await definition.settle?.(tx, [settled])
    }
    try {
      await db.tx(tx => end(tx, true)).catch(() => db.tx(tx => end(tx, false)))
      definition.settled?.([settled])
      return { value: true }
    } catch (last) {
      log.error({ err: last, queue, job: row.id }, 'a job is left to the next worker: its end could not be written')
      return { value: false }
    }
  }

  /** A claim under way counts: its jobs are this process's as soon as it commits. */
  const isBusy = () => claiming || reserved > 0 || running.size > 0 || settling.size > 0

  function checkIdle() {
    if (isBusy()) return
    const waiting = onIdle
    onIdle = []
    for (const resolve of waiting) resolve()
  }

  function abort(entry: Running, reason: AbortReason) {
    entry.reason ??= reason
    entry.controller?.abort(reason)
    // The row is another's now; whatever the handler still answers is dropped.
    if (reason === 'lease_lost') running.delete(entry.job.id)
  }

  return {
    wake,
    get hasRoom() {
      return open && room() > 0
    },
    get running() {
      return running.size
    },
    runningIds: () => [...running.keys()],
    abort(id, reason) {
      const entry = running.get(id)
      if (entry) abort(entry, reason)
    },
    abortAll(reason) {
      for (const entry of [...running.values()]) abort(entry, reason)
      checkIdle()
    },
    close() {
      open = false
    },
    idle() {
      if (!isBusy()) return Promise.resolve()
      return new Promise(resolve => onIdle.push(resolve))
    },
    async handBack() {
      const left = [...running.values()]
      running.clear()
      for (const [worker, entries] of Map.groupBy(left, entry => entry.workerId)) {
        const rows = entries.map(({ job }) => ({
          id: job.id,
          attempt: job.attempt,
          outcome: 'handed_back' as const,
          error: null,
          delayMs: 0,
        }))
        await db.tx(tx => store.returnJobs(tx, { queue, worker, rows }))
      }
      checkIdle()
    },
  }
}

function byWorker<T extends End>(items: T[]): Map<string, T[]> {
  return Map.groupBy(items, item => item.entry.workerId)
}

/** Doubled each time, up to a bound, and spread by half of it either way so that those who failed together part. */
export function backoffMs(definition: QueueDefinition, attempt: number, random: () => number): number {
  const base = definition.backoffMs ?? 1000
  const full = Math.min(definition.backoffMaxMs ?? 300_000, base * 2 ** (attempt - 1))
  return Math.round(full * (0.5 + random()))
}

/** PostgreSQL's jsonb takes no NUL; a result that holds one is kept without it rather than lost. */
function toJson(value: unknown): string | null {
  if (value === undefined || value === null) return null
  return JSON.stringify(value).replaceAll('\\u0000', '\\ufffd')
}
