import type { Tx } from '../database/pool.ts'

/** A job to be. */
export interface NewJob {
  /** Given when the caller wants to know it beforehand; a UUIDv7. */
  id?: string
  queue: string
  payload: unknown
  /** Whose it is: turns are fair between owners, and an owner sees its own jobs. Without one it is the system's. */
  owner?: string | undefined
  /** Higher goes first. Between owners of one priority turns are fair; a higher priority always wins. */
  priority?: number
  /** Not before this time. */
  runAt?: Date | undefined
  /** Of jobs with one key in a queue only one waits or runs. */
  key?: string | undefined
  /** How often it is begun before it is given up. */
  attemptsMax?: number
  /** Travels into the worker's log. */
  requestId?: string | undefined
}

export type JobState = 'waiting' | 'delayed' | 'running' | 'succeeded' | 'dead' | 'cancelled'
export type EndState = 'succeeded' | 'dead' | 'cancelled'

/** A job as its worker sees it. */
export interface ClaimedJob<P = unknown> {
  id: string
  payload: P
  owner: string | null
  /** 1 for the first. */
  attempt: number
  attemptsMax: number
  requestId: string | null
  createdAt: Date
  startedAt: Date
}

export interface JobContext {
  /** Aborted when the job is cancelled, when its lease is lost, or when the process has to go. */
  signal: AbortSignal
  /** Shown at `/v1/jobs/:id`. */
  progress(value: unknown): void
}

/** Why a job's signal was aborted. */
export type AbortReason = 'cancelled' | 'lease_lost' | 'shutdown'

/** How a job ended, told to its queue's `settle` in the transaction that ends it. */
export interface Settled {
  id: string
  owner: string | null
  payload: unknown
  state: EndState
  /** What the handler answered. */
  result: unknown
  error: string | null
}

export interface QueueDefinition {
  name: string
  /** Jobs a worker process runs at once. */
  concurrency: number
  /** Most jobs claimed or ended in one transaction, 2000 unless said; fewer where ends are large. */
  batchMax?: number
  attemptsMax?: number
  /** Milliseconds before attempt 2, 3, …; doubled each time from `backoffMs`, up to `backoffMaxMs`, with jitter. */
  backoffMs?: number
  backoffMaxMs?: number
  handle?: (job: ClaimedJob, context: JobContext) => Promise<unknown>
  /**
   * Writes what follows from an end, in the transaction that ends the jobs: exactly once a job, for whoever still held
   * it. An error that one item causes must not depend on the others: the batch is then halved until it stands alone.
   */
  settle?: (tx: Tx, settled: Settled[]) => Promise<void>
  /** Called in the transaction that lines a dead or cancelled job up again. */
  retried?: (tx: Tx, id: string) => Promise<void>
  /**
   * Called after `settle`, when it is committed. It may be missed when the process dies at that moment.
   */
  settled?: (settled: Settled[]) => void
}

/** Thrown by a handler to end its job as dead at once, whatever attempts are left. */
export class PermanentFailure extends Error {}

/** Thrown by a handler whose job was cancelled; `result` is kept with it. */
export class JobCancelled extends Error {
  readonly result: unknown

  constructor(result: unknown = null) {
    super('The job was cancelled.')
    this.result = result
  }
}
