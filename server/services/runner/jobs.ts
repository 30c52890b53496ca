/**
 * What a worker does with a run: mark it running, put it in a box, pass its output on as it comes, and hand the result
 * to `settle`, which writes it in the transaction that ends the job.
 */
import { StringDecoder } from 'node:string_decoder'
import { makeBatcher } from '#platform/batch.ts'
import type { Bus } from '#platform/bus.ts'
import { type Database, isConnectionLoss } from '#platform/database/pool.ts'
import {
  type ClaimedJob,
  JobCancelled,
  type JobContext,
  PermanentFailure,
  type QueueDefinition,
  type Settled,
} from '#platform/jobs/types.ts'
import type { Live } from '#platform/live/live.ts'
import type { Log } from '#platform/log.ts'
import type { Languages } from './requests.ts'
import { type Execution, InvalidExecution, type Sandbox, type StepResult } from './sandbox/index.ts'
import type { RunnerSettings } from './settings.ts'
import * as store from './store.ts'
import type { RunEventInput, RunOutcome, RunStatus } from './types.ts'

export const runsQueue = 'runs'
/** Ids of runs that have ended. */
export const endedChannel = 'runs.ended'

/** How long output is gathered before it is passed on. The end of a run waits for nothing. */
const outputGatherMs = 25
const batchMax = 256

/** What the handler answers: whole for `settle`, short in the job's row. */
class RunResult {
  readonly outcome: RunOutcome
  readonly events: RunEventInput[]

  constructor(outcome: RunOutcome, events: RunEventInput[]) {
    this.outcome = outcome
    this.events = events
  }

  toJSON() {
    return { status: this.outcome.status, exit_code: this.outcome.exitCode }
  }
}

export function topicOf(runId: string): string {
  return `runs/${runId}`
}

export interface RunQueueDeps {
  db: Database
  live: Live
  bus: Bus
  log: Log
  settings: RunnerSettings
  languages: Languages
  /** Undefined in a process that works no runs. */
  sandbox: Sandbox | undefined
}

export function makeRunQueue(deps: RunQueueDeps): QueueDefinition {
  const { db, live, settings, sandbox } = deps
  const begins = makeBatcher<{ id: string; attempt: number }, store.BegunRow | undefined>({
    name: 'beginning runs',
    size: batchMax,
    waitingMax: Number.POSITIVE_INFINITY,
    isCommon: isConnectionLoss,
    run: async items => {
      const begun = new Map((await store.beginRuns(db, items)).map(row => [row.id, row]))
      live.wake([...begun.keys()].map(topicOf))
      return items.map(item => ({ value: begun.get(item.id) }))
    },
  })
  const outputs = makeBatcher<store.OutputRow, void>({
    name: 'output of runs',
    size: batchMax,
    waitingMax: Number.POSITIVE_INFINITY,
    isCommon: isConnectionLoss,
    run: async rows => {
      await store.insertOutput(db, rows)
      live.wake([...new Set(rows.map(row => topicOf(row.runId)))])
      return rows.map(() => ({ value: undefined }))
    },
  })

  async function handle(job: ClaimedJob, context: JobContext): Promise<RunResult> {
    const run = await begins.push({ id: job.id, attempt: job.attempt })
    if (!run) throw new PermanentFailure('The run is gone.')
    const language = deps.languages.get(run.language)
    // Another worker may have it: this is a fault of the set-up, tried again and told if it stays.
    if (!language) throw new Error(`This worker has no ${run.language}.`)
    const recorder = makeRecorder(row => outputs.push({ runId: run.id, attempt: job.attempt, ...row }), run.seq)
    const execution = toExecution(run, language, settings)
    try {
      const result = await sandbox!.execute({
        ...execution,
        signal: context.signal,
        onOutput: (stream, chunk) => recorder.write(stream, chunk),
      })
      // Closing a worker kills its boxes: the run did not end by itself, it will begin again elsewhere.
      if (result.status === 'cancelled' && context.signal.reason !== 'cancelled') throw new Error('The worker stopped.')
      const events = await recorder.end()
      const ended = new RunResult(toOutcome(result, language.version), events)
      ended.events.push(statusEvent(ended.outcome))
      if (result.status === 'cancelled') throw new JobCancelled(ended)
      return ended
    } catch (error) {
      await recorder.end().catch(() => {})
      if (error instanceof InvalidExecution) throw new PermanentFailure(error.message)
      throw error
    }
  }

  async function settle(tx: Parameters<NonNullable<QueueDefinition['settle']>>[0], settled: Settled[]) {
    await store.endRuns(
      tx,
      settled.map(one => {
        const result = one.result instanceof RunResult ? one.result : resultWithoutRun(one)
        return { id: one.id, outcome: result.outcome, events: result.events }
      }),
    )
  }

  return {
    name: runsQueue,
    concurrency: settings.RUN_CONCURRENCY,
    // Each end may bring two outputs of a megabyte.
    batchMax: 32,
    attemptsMax: settings.RUN_ATTEMPTS_MAX,
    backoffMs: 200,
    backoffMaxMs: 10_000,
    ...(sandbox ? { handle } : {}),
    settle,
    settled: settled => {
      deps.bus.publish(
        endedChannel,
        settled.map(one => one.id),
      )
      live.wake(settled.map(one => topicOf(one.id)))
    },
    async retried(tx, id) {
      await store.requeueRun(tx, id)
      tx.afterCommit(() => live.wake([topicOf(id)]))
    },
  }
}

/** A run that was cancelled before it began, or that no worker could bring to an end. */
function resultWithoutRun(settled: Settled): RunResult {
  const outcome: RunOutcome = {
    status: settled.state === 'cancelled' ? 'cancelled' : 'error',
    languageVersion: null,
    stdout: Buffer.alloc(0),
    stderr: Buffer.alloc(0),
    stdoutTruncated: false,
    stderrTruncated: false,
    exitCode: null,
    signal: null,
    cpuMs: null,
    wallMs: null,
    memoryBytes: null,
    error: settled.error,
    compile: null,
  }
  return new RunResult(outcome, [statusEvent(outcome)])
}

function toExecution(
  run: store.BegunRow,
  language: NonNullable<ReturnType<Languages['get']>>,
  settings: RunnerSettings,
): Execution {
  const main = run.files[0]!.name
  return {
    runtime: language.runtime,
    files: run.files.map(file => ({ name: file.name, content: Buffer.from(file.content) })),
    run: {
      // An interpreter would take a name such as `-c` for an option.
      argv: [main.startsWith('-') ? `./${main}` : main, ...run.args],
      stdin: Buffer.from(run.stdin),
      limits: { ...run.limits, fileBytes: settings.RUN_DISK_BYTES, diskBytes: settings.RUN_DISK_BYTES, openFiles: 256 },
    },
  }
}

function toOutcome(result: StepResult & { compile?: StepResult }, languageVersion: string): RunOutcome {
  return {
    status: result.status as RunStatus,
    languageVersion,
    stdout: result.stdout,
    stderr: result.stderr,
    stdoutTruncated: result.stdoutTruncated,
    stderrTruncated: result.stderrTruncated,
    exitCode: result.exitCode,
    signal: result.signal,
    cpuMs: Math.round(result.cpuMs),
    wallMs: Math.round(result.wallMs),
    memoryBytes: result.memoryPeakBytes,
    error: null,
    compile: null,
  }
}

function statusEvent(outcome: RunOutcome): RunEventInput {
  const data = {
    status: outcome.status,
    exit_code: outcome.exitCode,
    signal: outcome.signal,
    cpu_ms: outcome.cpuMs,
    wall_ms: outcome.wallMs,
    memory_bytes: outcome.memoryBytes,
    ...(outcome.error ? { error: outcome.error } : {}),
  }
  return { type: 'status', data, stream: null, chunk: null }
}

type Stream = 'stdout' | 'stderr'

/**
 * Gathers output for a moment and passes it on as numbered events, whole characters only. What is left at the end
 * travels with the end.
 */
function makeRecorder(send: (row: { seq: number; stream: Stream; chunk: Buffer }) => Promise<void>, lastSeq: number) {
  const decoders = { stdout: new StringDecoder('utf8'), stderr: new StringDecoder('utf8') }
  let pieces: { stream: Stream; text: string }[] = []
  let seq = lastSeq
  let timer: NodeJS.Timeout | undefined
  let sent: Promise<void> = Promise.resolve()
  let failed: unknown

  function flush() {
    timer = undefined
    for (const { stream, text } of take()) {
      const row = { seq: ++seq, stream, chunk: Buffer.from(text) }
      sent = Promise.all([sent, send(row)]).then(
        () => {},
        error => {
          failed ??= error
        },
      )
    }
  }

  function take() {
    const taken = pieces
    pieces = []
    return taken
  }

  return {
    write(stream: Stream, chunk: Buffer) {
      const text = decoders[stream].write(chunk)
      if (text === '') return
      const last = pieces.at(-1)
      if (last?.stream === stream) last.text += text
      else pieces.push({ stream, text })
      timer ??= setTimeout(flush, outputGatherMs)
    },
    /** What was not passed on yet. @throws what kept earlier output from being written */
    async end(): Promise<RunEventInput[]> {
      clearTimeout(timer)
      for (const stream of ['stdout', 'stderr'] as const) {
        const text = decoders[stream].end()
        if (text !== '') pieces.push({ stream, text })
      }
      const rest = take()
      await sent
      if (failed) throw failed
      return rest.map(({ stream, text }) => ({ type: 'output', data: null, stream, chunk: Buffer.from(text) }))
    },
  }
}
