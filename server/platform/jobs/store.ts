/** The statements that add, claim and end jobs. */
import { type Queryable, replan, type Tx } from '../database/pool.ts'
import type { EndState } from './types.ts'

export interface InsertRow {
  id: string
  owner: string | null
  priority: number
  runAt: Date | null
  key: string | null
  payload: string
  attemptsMax: number
  requestId: string | null
}

/**
 * Inserts jobs of one queue and answers the ids that went in; a key that waits or runs already keeps its job out.
 *
 * The turn is a start-time fair queueing tag (Goyal, Vin, Cheng 1996): one more than the owner's last waiting job, but
 * not before where the queue has come to. So a newcomer stands right behind what runs now, however much others have
 * waiting. Nothing is locked for it: two transactions may give one owner the same turn twice, which costs no one
 * more than a place.
 */
export async function insertJobs(tx: Queryable, queue: string, rows: readonly InsertRow[]): Promise<string[]> {
  const owned = rows.some(row => row.owner !== null)
  const keyed = rows.some(row => row.key !== null)
  const { rows: inserted } = await tx.query<{ id: string }>(
    owned ? insertOwned(keyed) : insertPlain(keyed),
    [
      queue,
      rows.map(row => row.id),
      rows.map(row => row.owner),
      rows.map(row => row.priority),
      rows.map(row => row.runAt),
      rows.map(row => row.key),
      rows.map(row => row.payload),
      rows.map(row => row.attemptsMax),
      rows.map(row => row.requestId),
    ],
    owned ? replan : undefined,
  )
  return keyed ? inserted.map(row => row.id) : rows.map(row => row.id)
}

const incoming = `
  with i as (
    select * from unnest($2::uuid[], $3::text[], $4::smallint[], $5::timestamptz[], $6::text[], $7::jsonb[], $8::smallint[], $9::text[])
      with ordinality as i(id, owner, priority, run_at, key, payload, attempts_max, request_id, n)
  )`
const insertColumns = `
  insert into jobs.active (id, queue, owner, priority, turn, ready, run_at, key, payload, attempts_max, request_id)`
/** Counting rides along; `returning` costs a row an id, so it is left out where nothing can be kept out. */
const counted = (keyed: boolean) =>
  keyed
    ? `on conflict (queue, key) where key is not null do nothing returning id),
       d as (insert into jobs.deltas (queue, added) select $1, count(*) from put having count(*) > 0)
       select id from put`
    : `), d as (insert into jobs.deltas (queue, added) select $1, count(*) from i)
       select null::uuid as id where false`

const insertPlain = (keyed: boolean) => `${incoming},
  put as (${insertColumns}
    select i.id, $1, null, i.priority,
           coalesce((select t.turn from jobs.turns t where t.queue = $1 and t.priority = i.priority), 0),
           i.run_at is null or i.run_at <= now(), coalesce(i.run_at, now()), i.key, i.payload, i.attempts_max, i.request_id
    from i ${counted(keyed)}`

const insertOwned = (keyed: boolean) => `${incoming},
  last as (
    select o.owner, o.priority, coalesce(greatest(
      (select t.turn from jobs.turns t where t.queue = $1 and t.priority = o.priority),
      (select max(a.turn) from jobs.active a where a.owner = o.owner and a.queue = $1 and a.priority = o.priority)), 0) as turn
    from (select distinct owner, priority from i) o
  ),
  put as (${insertColumns}
    select i.id, $1, i.owner, i.priority,
           last.turn + case when i.owner is null then 0 else row_number() over (partition by i.owner, i.priority order by i.n) end,
           i.run_at is null or i.run_at <= now(), coalesce(i.run_at, now()), i.key, i.payload, i.attempts_max, i.request_id
    from i join last on last.owner is not distinct from i.owner and last.priority = i.priority ${counted(keyed)}`

/** The jobs that hold these keys now. */
export async function findByKeys(tx: Queryable, queue: string, keys: string[]) {
  const { rows } = await tx.query<{ id: string; key: string }>(
    `select id, key from jobs.active where queue = $1 and key = any($2)`,
    [queue, keys],
    replan,
  )
  return rows
}

// Claims and ends are kept as plans, unlike the rest: by the index of the line and by ids there is but one good way, and
// planning a batch of one would cost more than doing it.

export interface ClaimRow {
  id: string
  payload: unknown
  owner: string | null
  attempt: number
  attempts_max: number
  request_id: string | null
  priority: number
  turn: number
}

/**
 * Takes up to `limit` jobs from the head of the line for a worker. Others' claims in flight are passed over.
 * The commit is not waited for to reach the disk: a claim lost in a crash leaves the job in line, and the end of a job
 * whose claim was lost is not accepted.
 */
export async function claimJobs(db: Queryable, given: { queue: string; worker: string; limit: number }) {
  const { rows } = await db.query<ClaimRow>(
    `update jobs.active
     set worker = $2, attempt = attempt + 1, started_at = now()
     where ctid = any(array(
       select ctid from jobs.active
       where queue = $1 and ready and worker is null
       order by priority desc, turn, id
       limit (select $3::integer from (select set_config('synchronous_commit', 'off', true)) s)
       for update skip locked))
     returning id, payload, owner, attempt, attempts_max, request_id, priority, turn`,
    [given.queue, given.worker, given.limit],
  )
  return rows.sort((a, b) => b.priority - a.priority || a.turn - b.turn || (a.id < b.id ? -1 : 1))
}

/** Gives back what this worker holds but does not know of. Answers how many. */
export async function releaseUnknown(db: Queryable, given: { queue: string; worker: string; known: string[] }) {
  const { rowCount } = await db.query(
    `update jobs.active set worker = null, attempt = attempt - 1
     where queue = $1 and worker = $2 and not id = any($3)`,
    [given.queue, given.worker, given.known],
    replan,
  )
  return rowCount
}

/**
 * Jobs by a batch of ids, by the primary key whatever the planner thinks of the table. Two traps are avoided by it: a
 * table never analysed looks small enough to be read whole, and a worker looks as if it held one row; so what is held
 * is compared with the batch (materialized, or it would be seen through) and not in the table's own condition.
 */
const byIds = `a.id = any($2::uuid[]) and a.id = i.id`

/** Moves the queue's turn to the newest one claimed, so that newcomers line up behind it. */
export async function advanceTurn(db: Queryable, given: { queue: string; priority: number; turn: number }) {
  await db.query(
    `insert into jobs.turns (queue, priority, turn) values ($1, $2, $3)
     on conflict (queue, priority) do update set turn = excluded.turn where jobs.turns.turn < excluded.turn`,
    [given.queue, given.priority, given.turn],
  )
}

export interface EndRow {
  id: string
  attempt: number
  state: EndState
  /** JSON text. */
  result: string | null
  error: string | null
}

export interface EndedRow {
  id: string
  owner: string | null
  payload: unknown
}

/**
 * Ends jobs that `worker` still holds at the attempt it says; anything else is passed over. Answers those that ended.
 * `worker` null ends jobs whoever holds them.
 */
export async function finishJobs(
  tx: Queryable,
  given: { queue: string; worker: string | null; rows: readonly EndRow[] },
) {
  const { rows } = await tx.query<EndedRow>(
    `with i as materialized (
       select $1::uuid as worker, * from unnest($2::uuid[], $3::smallint[], $4::text[], $5::jsonb[], $6::text[])
         as i(id, attempt, state, result, error)
     ), gone as (
       delete from jobs.active a using i
       where ${byIds} and (i.worker is null or a.worker = i.worker) and a.attempt = i.attempt
       returning a.id, a.queue, a.owner, a.priority, a.key, a.payload, a.attempt, a.attempts_max, a.worker, a.progress,
                 a.request_id, a.created_at, a.run_at, a.started_at, i.state, i.result, i.error
     ), kept as (
       insert into jobs.finished (id, queue, owner, priority, key, payload, attempt, attempts_max, worker, progress,
                                  request_id, created_at, run_at, started_at, state, result, error)
       select * from gone
     ), counted as (
       insert into jobs.deltas (queue, succeeded, dead, cancelled)
       select $7, count(*) filter (where state = 'succeeded'), count(*) filter (where state = 'dead'),
              count(*) filter (where state = 'cancelled')
       from gone having count(*) > 0
     )
     select id, owner, payload from gone`,
    [
      given.worker,
      given.rows.map(row => row.id),
      given.rows.map(row => row.attempt),
      given.rows.map(row => row.state),
      given.rows.map(row => row.result),
      given.rows.map(row => row.error),
      given.queue,
    ],
  )
  return rows
}

export interface ReturnRow {
  id: string
  attempt: number
  outcome: 'failed' | 'lost' | 'handed_back'
  error: string | null
  delayMs: number
}

/** Puts jobs back in line, at once or after their delay, and records the attempt. A handed-back one does not count. */
export async function returnJobs(tx: Queryable, given: { queue: string; worker: string; rows: readonly ReturnRow[] }) {
  const { rowCount } = await tx.query(
    `with i as materialized (
       select $1::uuid as worker, * from unnest($2::uuid[], $3::smallint[], $4::text[], $5::text[], $6::integer[])
         as i(id, attempt, outcome, error, delay_ms)
     ), back as (
       update jobs.active a
       set worker = null, ready = i.delay_ms = 0, run_at = now() + i.delay_ms * interval '1 ms',
           attempt = a.attempt - case when i.outcome = 'handed_back' then 1 else 0 end
       from i where ${byIds} and a.worker = i.worker and a.attempt = i.attempt
       returning a.id, i.attempt, i.outcome, i.error, a.started_at
     ), counted as (
       insert into jobs.deltas (queue, retried) select $7, count(*) from back having count(*) > 0
     )
     insert into jobs.attempts (job_id, attempt, outcome, worker, error, started_at)
     select id, attempt, outcome, $1, error, started_at from back`,
    [
      given.worker,
      given.rows.map(row => row.id),
      given.rows.map(row => row.attempt),
      given.rows.map(row => row.outcome),
      given.rows.map(row => row.error),
      given.rows.map(row => row.delayMs),
      given.queue,
    ],
    replan,
  )
  return rowCount
}

/** Lines up delayed jobs whose time has come. Answers how many, and when the next one is due. */
export async function promoteDue(db: Queryable, given: { queue: string; limit: number }) {
  const { rows } = await db.query<{ promoted: number; next_ms: number | null }>(
    `with due as (
       select id, owner, priority from jobs.active
       where queue = $1 and not ready and run_at <= now() order by run_at limit $2 for update skip locked
     ), last as (
       select o.owner, o.priority, coalesce(greatest(
         (select t.turn from jobs.turns t where t.queue = $1 and t.priority = o.priority),
         (select max(a.turn) from jobs.active a
          where a.owner = o.owner and a.queue = $1 and a.priority = o.priority and a.ready)), 0) as turn
       from (select distinct owner, priority from due) o
     ), up as (
       update jobs.active a
       set ready = true,
           turn = d.turn
       from (
         select due.id, last.turn + case when due.owner is null then 0
           else row_number() over (partition by due.owner, due.priority) end as turn
         from due join last on last.owner is not distinct from due.owner and last.priority = due.priority
       ) d
       where a.id = d.id
       returning 1
     )
     select (select count(*) from up)::integer as promoted,
            (select ceil(extract(epoch from min(run_at) - now()) * 1000)::float8 from (
               select run_at from jobs.active where queue = $1 and not ready and run_at > now() order by run_at limit 1
             ) n) as next_ms`,
    [given.queue, given.limit],
    replan,
  )
  return rows[0]!
}

export async function saveProgress(db: Queryable, rows: readonly { id: string; worker: string; progress: string }[]) {
  await db.query(
    `with i as materialized (select * from unnest($1::uuid[], $2::uuid[], $3::jsonb[]) as i(worker, id, progress))
     update jobs.active a set progress = i.progress
     from i where ${byIds} and a.worker = i.worker`,
    [rows.map(row => row.worker), rows.map(row => row.id), rows.map(row => row.progress)],
    replan,
  )
}

export interface LockedJob {
  id: string
  queue: string
  owner: string | null
  attempt: number
  worker: string | null
}

export async function lockActive(tx: Tx, id: string): Promise<LockedJob | undefined> {
  const { rows } = await tx.query<LockedJob>(
    `select id, queue, owner, attempt, worker from jobs.active where id = $1 for update`,
    [id],
  )
  return rows[0]
}

export async function requestCancel(tx: Tx, id: string) {
  await tx.query(`update jobs.active set cancel_requested = true where id = $1`, [id])
}

/** Which of these jobs shall stop. */
export async function findCancelRequested(db: Queryable, ids: string[]): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `select id from jobs.active where id = any($1) and cancel_requested`,
    [ids],
    replan,
  )
  return rows.map(row => row.id)
}

/** Takes an ended job out of the finished ones, to be added anew. */
export async function deleteFinished(tx: Tx, id: string) {
  const { rows } = await tx.query<{
    id: string
    queue: string
    owner: string | null
    priority: number
    state: EndState
    key: string | null
    payload: unknown
    attempt: number
    attempts_max: number
    worker: string | null
    error: string | null
    request_id: string | null
    started_at: Date | null
    finished_at: Date
  }>(
    `delete from jobs.finished where id = $1 and state <> 'succeeded'
     returning id, queue, owner, priority, state, key, payload, attempt, attempts_max, worker, error, request_id, started_at, finished_at`,
    [id],
  )
  return rows[0]
}

export async function insertAttempt(
  tx: Tx,
  row: {
    jobId: string
    attempt: number
    worker: string | null
    error: string | null
    startedAt: Date | null
    endedAt: Date
  },
) {
  await tx.query(
    `insert into jobs.attempts (job_id, attempt, outcome, worker, error, started_at, ended_at)
     values ($1, $2, 'failed', $3, $4, $5, $6)`,
    [row.jobId, row.attempt, row.worker, row.error, row.startedAt, row.endedAt],
  )
}
