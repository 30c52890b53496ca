import type { Queryable, Tx } from '#platform/database/pool.ts'
import type { RunEventInput, RunFile, RunOutcome, RunRequest, RunStatus } from './types.ts'

export interface RunRow {
  id: string
  owner: string
  owner_name: string
  language: string
  language_version: string | null
  files: RunFile[]
  stdin: string
  args: string[]
  limits: RunRequest['limits']
  status: RunStatus
  attempt: number
  stdout: Buffer | null
  stderr: Buffer | null
  stdout_truncated: boolean
  stderr_truncated: boolean
  exit_code: number | null
  signal: string | null
  cpu_ms: number | null
  wall_ms: number | null
  memory_bytes: number | null
  error: string | null
  compile: unknown
  created_at: Date
  started_at: Date | null
  finished_at: Date | null
}

/** Puts an ended run back to the start: its job is retried. */
export async function requeueRun(tx: Tx, id: string) {
  await tx.query(
    `update runner.runs
     set status = 'queued', attempt = 0, language_version = null, stdout = null, stderr = null, stdout_truncated = false,
         stderr_truncated = false, exit_code = null, signal = null, cpu_ms = null, wall_ms = null, memory_bytes = null,
         error = null, compile = null, started_at = null, finished_at = null
     where id = $1`,
    [id],
  )
  await tx.query(
    `insert into runner.run_events (run_id, seq, type, data)
     select $1, coalesce(max(seq), 0) + 1, 'status', '{"status":"queued"}' from runner.run_events where run_id = $1`,
    [id],
  )
}

/** What a list shows: everything but what may be large. */
export type RunSummaryRow = Omit<RunRow, 'files' | 'stdin' | 'stdout' | 'stderr'>

const summaryColumns = `id, owner, owner_name, language, language_version, args, limits, status, attempt, stdout_truncated,
  stderr_truncated, exit_code, signal, cpu_ms, wall_ms, memory_bytes, error, compile, created_at, started_at, finished_at`
const allColumns = `${summaryColumns}, files, stdin, stdout, stderr`

export interface NewRunRow {
  id: string
  owner: string
  ownerName: string
  request: RunRequest
  createdAt: Date
}

/** Inserts queued runs and the first event of each. */
export async function insertRuns(tx: Tx, runs: readonly NewRunRow[]) {
  await tx.query(
    `with i as (
       select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::text[], $7::jsonb[], $8::jsonb[], $9::timestamptz[])
         as i(id, owner, owner_name, language, files, stdin, args, limits, created_at)
     ), put as (
       insert into runner.runs (id, owner, owner_name, language, files, stdin, args, limits, created_at)
       select id, owner, owner_name, language, files, stdin, array(select jsonb_array_elements_text(args)), limits, created_at from i
     )
     insert into runner.run_events (run_id, seq, type, data)
     select id, 1, 'status', '{"status":"queued"}' from i`,
    [
      runs.map(run => run.id),
      runs.map(run => run.owner),
      runs.map(run => run.ownerName),
      runs.map(run => run.request.language),
      runs.map(run => JSON.stringify(run.request.files)),
      runs.map(run => run.request.stdin),
      runs.map(run => JSON.stringify(run.request.args)),
      runs.map(run => JSON.stringify(run.request.limits)),
      runs.map(run => run.createdAt),
    ],
  )
}

export type BegunRow = Pick<RunRow, 'id' | 'language' | 'files' | 'stdin' | 'args' | 'limits'> & { seq: number }

/**
 * Marks runs as running and answers what they are to do, with the number of the event that says so. The commit is not
 * waited for to reach the disk: what is lost with it is only the mark, and the run begins again.
 */
export async function beginRuns(db: Queryable, runs: readonly { id: string; attempt: number }[]): Promise<BegunRow[]> {
  const { rows } = await db.query<BegunRow>(
    `with i as (select * from unnest($1::uuid[], $2::smallint[]) as i(id, attempt)),
     begun as (
       update runner.runs r set status = 'running', attempt = i.attempt, started_at = now()
       from i where r.id = i.id and r.status in ('queued', 'running')
       returning r.id, r.attempt, r.language, r.files, r.stdin, r.args, r.limits
     ), event as (
       insert into runner.run_events (run_id, seq, type, data)
       select b.id, (select coalesce(max(e.seq), 0) + 1 from runner.run_events e where e.run_id = b.id), 'status',
              jsonb_build_object('status', 'running', 'attempt', b.attempt)
       from begun b
       returning run_id, seq
     )
     select b.id, b.language, b.files, b.stdin, b.args, b.limits, e.seq
     from begun b join event e on e.run_id = b.id, set_config('synchronous_commit', 'off', true)`,
    [runs.map(run => run.id), runs.map(run => run.attempt)],
  )
  return rows
}

export interface OutputRow {
  runId: string
  attempt: number
  seq: number
  stream: 'stdout' | 'stderr'
  chunk: Buffer
}

/** Appends output, for whoever still works the run at that attempt. */
export async function insertOutput(db: Queryable, rows: readonly OutputRow[]) {
  await db.query(
    `insert into runner.run_events (run_id, seq, type, stream, chunk)
     select i.run_id, i.seq, 'output', i.stream, i.chunk
     from unnest($1::uuid[], $2::smallint[], $3::integer[], $4::text[], $5::bytea[]) as i(run_id, attempt, seq, stream, chunk)
     join runner.runs r on r.id = i.run_id and r.attempt = i.attempt and r.status = 'running'`,
    [
      rows.map(row => row.runId),
      rows.map(row => row.attempt),
      rows.map(row => row.seq),
      rows.map(row => row.stream),
      rows.map(row => row.chunk),
    ],
  )
}

/** Writes how runs ended, with their last events. */
export async function endRuns(
  tx: Queryable,
  ends: readonly { id: string; outcome: RunOutcome; events: RunEventInput[] }[],
) {
  const outcomes = ends.map(end => end.outcome)
  const events = ends.flatMap(({ id, events }) => events.map((event, index) => ({ id, nth: index + 1, ...event })))
  await tx.query(
    `with ended as (
       update runner.runs r
       set status = i.status, language_version = i.language_version, stdout = i.stdout, stderr = i.stderr,
           stdout_truncated = i.stdout_truncated, stderr_truncated = i.stderr_truncated, exit_code = i.exit_code,
           signal = i.signal, cpu_ms = i.cpu_ms, wall_ms = i.wall_ms, memory_bytes = i.memory_bytes, error = i.error,
           compile = i.compile, finished_at = now()
       from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::bytea[], $6::boolean[], $7::boolean[], $8::integer[],
                   $9::text[], $10::integer[], $11::integer[], $12::bigint[], $13::text[], $14::jsonb[])
         as i(id, status, language_version, stdout, stderr, stdout_truncated, stderr_truncated, exit_code,
              signal, cpu_ms, wall_ms, memory_bytes, error, compile)
       where r.id = i.id
     )
     insert into runner.run_events (run_id, seq, type, data, stream, chunk)
     select e.run_id, e.nth + (select coalesce(max(o.seq), 0) from runner.run_events o where o.run_id = e.run_id),
            e.type, e.data, e.stream, e.chunk
     from unnest($15::uuid[], $16::integer[], $17::text[], $18::jsonb[], $19::text[], $20::bytea[]) as e(run_id, nth, type, data, stream, chunk)`,
    [
      ends.map(end => end.id),
      outcomes.map(outcome => outcome.status),
      outcomes.map(outcome => outcome.languageVersion),
      outcomes.map(outcome => outcome.stdout),
      outcomes.map(outcome => outcome.stderr),
      outcomes.map(outcome => outcome.stdoutTruncated),
      outcomes.map(outcome => outcome.stderrTruncated),
      outcomes.map(outcome => outcome.exitCode),
      outcomes.map(outcome => outcome.signal),
      outcomes.map(outcome => outcome.cpuMs),
      outcomes.map(outcome => outcome.wallMs),
      outcomes.map(outcome => outcome.memoryBytes),
      outcomes.map(outcome => outcome.error),
      outcomes.map(outcome => (outcome.compile === null ? null : JSON.stringify(outcome.compile))),
      events.map(event => event.id),
      events.map(event => event.nth),
      events.map(event => event.type),
      events.map(event => (event.data === null ? null : JSON.stringify(event.data))),
      events.map(event => event.stream),
      events.map(event => event.chunk),
    ],
  )
}

export async function findRun(db: Queryable, id: string): Promise<RunRow | undefined> {
  const { rows } = await db.query<RunRow>(`select ${allColumns} from runner.runs where id = $1`, [id])
  return rows[0]
}

/** Which of these runs have ended. */
export async function findEnded(db: Queryable, ids: string[]): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `select id from runner.runs where id = any($1) and finished_at is not null`,
    [ids],
  )
  return rows.map(row => row.id)
}

export async function findOwner(db: Queryable, id: string): Promise<string | undefined> {
  const { rows } = await db.query<{ owner: string }>(`select owner from runner.runs where id = $1`, [id])
  return rows[0]?.owner
}

export async function findLatestRun(db: Queryable, owner: string): Promise<RunRow | undefined> {
  const { rows } = await db.query<RunRow>(
    `select ${allColumns} from runner.runs where owner = $1 order by id desc limit 1`,
    [owner],
  )
  return rows[0]
}

export interface RunFilter {
  owner: string
  language: string | undefined
  status: string | undefined
  before: string | undefined
  limit: number
}

/** Newest first. */
export async function listRuns(db: Queryable, filter: RunFilter): Promise<RunSummaryRow[]> {
  const { rows } = await db.query<RunSummaryRow>(
    `select ${summaryColumns} from runner.runs
     where owner = $1 and ($2::text is null or language = $2) and ($3::text is null or status = $3)
       and ($4::uuid is null or id < $4)
     order by id desc limit $5`,
    [filter.owner, filter.language ?? null, filter.status ?? null, filter.before ?? null, filter.limit],
  )
  return rows
}

/** The newest runs with their source and output, oldest of them first: the old contract's history. */
export async function listHistory(db: Queryable, owner: string, limit: number) {
  const { rows } = await db.query<Pick<RunRow, 'id' | 'created_at' | 'files' | 'status' | 'stdout' | 'stderr'>>(
    `select * from (
       select id, created_at, files, status, stdout, stderr from runner.runs where owner = $1 order by id desc limit $2
     ) newest order by id`,
    [owner, limit],
  )
  return rows
}

export interface EventRow {
  seq: number
  type: 'status' | 'output'
  data: Record<string, unknown> | null
  stream: 'stdout' | 'stderr' | null
  chunk: Buffer | null
}

export async function listEvents(
  db: Queryable,
  given: { runId: string; after: number; limit: number },
): Promise<EventRow[]> {
  const { rows } = await db.query<EventRow>(
    `select seq, type, data, stream, chunk from runner.run_events where run_id = $1 and seq > $2 order by seq limit $3`,
    [given.runId, given.after, given.limit],
  )
  return rows
}

export async function listHeads(db: Queryable, runIds: readonly string[]): Promise<Map<string, number>> {
  const { rows } = await db.query<{ id: string; seq: number }>(
    `select i.id, coalesce((select max(e.seq) from runner.run_events e where e.run_id = i.id), 0) as seq
     from unnest($1::uuid[]) as i(id)`,
    [runIds],
  )
  return new Map(rows.map(row => [row.id, row.seq]))
}

/** Forgets ended runs made before `floor` (a UUIDv7), a bounded number at once. Answers how many. */
export async function deleteOldRuns(tx: Tx, given: { floor: string; limit: number }): Promise<number> {
  const { rowCount } = await tx.query(
    `with old as (
       select id from runner.runs where id < $1 and finished_at is not null order by id limit $2
     ), events as (
       delete from runner.run_events e using old where e.run_id = old.id
     )
     delete from runner.runs r using old where r.id = old.id`,
    [given.floor, given.limit],
  )
  return rowCount
}
