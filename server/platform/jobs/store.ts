/** Every statement of the queue. Those that touch `jobs.active` are planned anew each time: it is empty one second and holds a million rows the next. */
import type { Queryable, Tx } from '../database/pool.ts'
import type { EndState, JobState } from './types.ts'

const replan = { replan: true }

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
    replan,
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
    `with i as (
       select * from unnest($2::uuid[], $3::smallint[], $4::text[], $5::jsonb[], $6::text[]) as i(id, attempt, state, result, error)
     ), gone as (
       delete from jobs.active a using i
       where a.id = i.id and ($1::uuid is null or a.worker = $1) and a.attempt = i.attempt
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
    replan,
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
    `with i as (
       select * from unnest($2::uuid[], $3::smallint[], $4::text[], $5::text[], $6::integer[]) as i(id, attempt, outcome, error, delay_ms)
     ), back as (
       update jobs.active a
       set worker = null, ready = i.delay_ms = 0, run_at = now() + i.delay_ms * interval '1 ms',
           attempt = a.attempt - case when i.outcome = 'handed_back' then 1 else 0 end
       from i where a.id = i.id and a.worker = $1 and a.attempt = i.attempt
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
    `update jobs.active a set progress = i.progress
     from unnest($1::uuid[], $2::uuid[], $3::jsonb[]) as i(id, worker, progress)
     where a.id = i.id and a.worker = i.worker`,
    [rows.map(row => row.id), rows.map(row => row.worker), rows.map(row => row.progress)],
    replan,
  )
}

// Workers

export async function insertWorker(db: Queryable, given: { id: string; host: string; pid: number; queues: string[] }) {
  await db.query(`insert into jobs.workers (id, host, pid, queues) values ($1, $2, $3, $4)`, [
    given.id,
    given.host,
    given.pid,
    given.queues,
  ])
}

/** False when the worker was declared dead: its jobs are others' now. */
export async function beat(db: Queryable, given: { id: string; running: Record<string, number> }): Promise<boolean> {
  const { rowCount } = await db.query(
    `update jobs.workers set heartbeat_at = now(), running = $2 where id = $1 and dead_at is null`,
    [given.id, JSON.stringify(given.running)],
  )
  return rowCount === 1
}

export async function deleteWorker(db: Queryable, id: string) {
  await db.query(`delete from jobs.workers where id = $1`, [id])
}

/** Declares workers dead whose heartbeat is too old, and answers all that died lately. */
export async function findDeadWorkers(db: Queryable, leaseMs: number): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `with declared as (
       update jobs.workers set dead_at = now()
       where dead_at is null and heartbeat_at < now() - $1 * interval '1 ms' returning id
     )
     select id from declared
     union all
     select id from jobs.workers where dead_at > now() - interval '1 hour'`,
    [leaseMs],
  )
  return rows.map(row => row.id)
}

export interface HeldRow {
  id: string
  queue: string
  worker: string
  attempt: number
  attempts_max: number
  cancel_requested: boolean
}

/** Jobs held by dead workers, or by workers that are not known at all. Locked, so that one process takes them back. */
export async function lockHeldBy(tx: Tx, given: { workers: string[]; queues: string[]; limit: number }) {
  const { rows } = await tx.query<HeldRow>(
    `select id, queue, worker, attempt, attempts_max, cancel_requested from jobs.active
     where worker = any($1) and queue = any($2) limit $3 for update skip locked`,
    [given.workers, given.queues, given.limit],
    replan,
  )
  return rows
}

/** Workers named in jobs that have no row: only a bug or a hand in the tables leads here. */
export async function findUnknownHolders(db: Queryable): Promise<string[]> {
  const { rows } = await db.query<{ worker: string }>(
    `select distinct a.worker from jobs.active a
     where a.worker is not null and not exists (select from jobs.workers w where w.id = a.worker) limit 100`,
    [],
    replan,
  )
  return rows.map(row => row.worker)
}

export async function forgetDeadWorkers(db: Queryable) {
  await db.query(`delete from jobs.workers where dead_at < now() - interval '1 hour'`)
}

// Cancelling and retrying by hand

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

// Counting and cleaning

/** Adds up the deltas of all processes. One process does it at a time; the others pass. */
export async function foldDeltas(tx: Tx): Promise<void> {
  const { rows } = await tx.query<{ locked: boolean }>(`select pg_try_advisory_xact_lock($1) as locked`, [foldLock])
  if (!rows[0]?.locked) return
  await tx.query(
    `with gone as (delete from jobs.deltas returning queue, added, succeeded, dead, cancelled, retried),
     sums as (
       select queue, sum(added) as added, sum(succeeded) as succeeded, sum(dead) as dead, sum(cancelled) as cancelled,
              sum(retried) as retried
       from gone group by queue
     ), total as (
       insert into jobs.queues as q (name, added, succeeded, dead, cancelled, retried) select * from sums
       on conflict (name) do update set added = q.added + excluded.added, succeeded = q.succeeded + excluded.succeeded,
         dead = q.dead + excluded.dead, cancelled = q.cancelled + excluded.cancelled, retried = q.retried + excluded.retried
     )
     insert into jobs.minutes as m (queue, minute, added, succeeded, dead, cancelled, retried)
     select queue, date_trunc('minute', now()), added, succeeded, dead, cancelled, retried from sums
     on conflict (queue, minute) do update set added = m.added + excluded.added, succeeded = m.succeeded + excluded.succeeded,
       dead = m.dead + excluded.dead, cancelled = m.cancelled + excluded.cancelled, retried = m.retried + excluded.retried`,
  )
}

const foldLock = 0x6a6f6273

export async function makeDays(db: Queryable) {
  await db.query(`select jobs.make_days((now() at time zone 'utc')::date, 4)`)
}

/** Drops the days that are older than `days`, and what belongs to them elsewhere. Answers the names dropped. */
export async function dropOldDays(tx: Tx, days: number): Promise<string[]> {
  const { rows } = await tx.query<{ name: string }>(
    `select c.relname as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'jobs.finished'::regclass and c.relname ~ '^finished_\\d{8}$'
       and to_date(right(c.relname, 8), 'YYYYMMDD') < (now() at time zone 'utc')::date - $1::integer`,
    [days],
  )
  for (const { name } of rows) await tx.query(`drop table jobs.${name}`)
  const floor = `jobs.day_floor((now() at time zone 'utc')::date - $1::integer)`
  await tx.query(
    `delete from jobs.attempts where id in (select id from jobs.attempts where job_id < ${floor}
       and not exists (select from jobs.active a where a.id = job_id) limit 10000)`,
    [days],
  )
  await tx.query(
    `delete from jobs.finished_other where id in (select id from jobs.finished_other
       where finished_at < now() - make_interval(days => $1::integer) limit 10000)`,
    [days],
  )
  await tx.query(`delete from jobs.minutes where minute < now() - make_interval(days => $1::integer)`, [days])
  return rows.map(row => row.name)
}

// Reading

export interface JobRow {
  id: string
  queue: string
  owner: string | null
  state: JobState
  priority: number
  key: string | null
  payload: unknown
  attempt: number
  attempts_max: number
  result: unknown
  error: string | null
  progress: unknown
  request_id: string | null
  created_at: Date
  run_at: Date
  started_at: Date | null
  finished_at: Date | null
}

const activeState = `case when worker is not null then 'running' when ready then 'waiting' else 'delayed' end`
const activeColumns = `id, queue, owner, ${activeState} as state, priority, key, payload, attempt, attempts_max,
  null::jsonb as result, null::text as error, progress, request_id, created_at, run_at, started_at, null::timestamptz as finished_at`
const finishedColumns = `id, queue, owner, state, priority, key, payload, attempt, attempts_max,
  result, error, progress, request_id, created_at, run_at, started_at, finished_at`

export async function findJob(db: Queryable, id: string): Promise<JobRow | undefined> {
  const { rows } = await db.query<JobRow>(
    `select ${activeColumns} from jobs.active where id = $1
     union all select ${finishedColumns} from jobs.finished where id = $1 limit 1`,
    [id],
  )
  return rows[0]
}

export interface JobFilter {
  owner: string | undefined
  queue: string | undefined
  state: string | undefined
  before: string | undefined
  limit: number
}

/** Newest first. */
export async function listJobs(db: Queryable, filter: JobFilter): Promise<JobRow[]> {
  const values = [filter.owner ?? null, filter.queue ?? null, filter.state ?? null, filter.before ?? null, filter.limit]
  const condition = `($1::text is null or owner = $1) and ($2::text is null or queue = $2) and ($4::uuid is null or id < $4)`
  const { rows } = await db.query<JobRow>(
    `select * from (
       (select ${activeColumns} from jobs.active
        where ${condition} and ($3::text is null or $3 = ${activeState}) order by id desc limit $5)
       union all
       (select ${finishedColumns} from jobs.finished
        where ${condition} and ($3::text is null or state = $3) order by id desc limit $5)
     ) j order by id desc limit $5`,
    values,
    replan,
  )
  return rows
}

export interface AttemptRow {
  attempt: number
  outcome: string
  worker: string | null
  error: string | null
  started_at: Date | null
  ended_at: Date
}

export async function listAttempts(db: Queryable, jobId: string): Promise<AttemptRow[]> {
  const { rows } = await db.query<AttemptRow>(
    `select attempt, outcome, worker, error, started_at, ended_at from jobs.attempts where job_id = $1 order by id limit 1000`,
    [jobId],
  )
  return rows
}

export interface QueueRow {
  name: string
  added: number
  succeeded: number
  dead: number
  cancelled: number
  retried: number
  running: number
  delayed: number
  added_per_minute: number
  ended_per_minute: number
  oldest_ms: number | null
}

/** Counts come from counters; the oldest is looked for among the next thousand in line. */
export async function listQueues(db: Queryable): Promise<QueueRow[]> {
  const { rows } = await db.query<QueueRow>(
    `with d as (
       select queue, sum(added) as added, sum(succeeded) as succeeded, sum(dead) as dead, sum(cancelled) as cancelled,
              sum(retried) as retried from jobs.deltas group by queue
     ), names as (select name from jobs.queues union select queue from d),
     w as (
       select key as queue, sum(value::integer) as running from jobs.workers, jsonb_each_text(running)
       where dead_at is null group by key
     )
     select n.name,
            (coalesce(q.added, 0) + coalesce(d.added, 0))::bigint as added,
            (coalesce(q.succeeded, 0) + coalesce(d.succeeded, 0))::bigint as succeeded,
            (coalesce(q.dead, 0) + coalesce(d.dead, 0))::bigint as dead,
            (coalesce(q.cancelled, 0) + coalesce(d.cancelled, 0))::bigint as cancelled,
            (coalesce(q.retried, 0) + coalesce(d.retried, 0))::bigint as retried,
            coalesce(w.running, 0)::integer as running,
            (select count(*) from (select 1 from jobs.active a where a.queue = n.name and not a.ready limit 10001) x)::integer as delayed,
            (coalesce(m.added, 0))::bigint as added_per_minute,
            (coalesce(m.succeeded + m.dead + m.cancelled, 0))::bigint as ended_per_minute,
            (select (extract(epoch from now() - min(created_at)) * 1000)::float8 from (
               select created_at from jobs.active a where a.queue = n.name and a.ready and a.worker is null
               order by a.priority desc, a.turn, a.id limit 1000) x) as oldest_ms
     from names n
     left join jobs.queues q on q.name = n.name
     left join d on d.queue = n.name
     left join w on w.queue = n.name
     left join lateral (
       select sum(added) as added, sum(succeeded) as succeeded, sum(dead) as dead, sum(cancelled) as cancelled
       from jobs.minutes m where m.queue = n.name and m.minute = date_trunc('minute', now()) - interval '1 minute') m on true
     order by n.name limit 1000`,
    [],
    replan,
  )
  return rows
}

/** Waiting and running jobs of each owner that has some. */
export async function countOwned(
  db: Queryable,
  given: { queue: string; owners: string[] },
): Promise<Map<string, number>> {
  const { rows } = await db.query<{ owner: string; n: number }>(
    `select owner, count(*)::integer as n from jobs.active where owner = any($2) and queue = $1 group by owner`,
    [given.queue, given.owners],
    replan,
  )
  return new Map(rows.map(row => [row.owner, row.n]))
}

/** Jobs of each queue that have not ended, from the counters. */
export async function countUnfinished(db: Queryable): Promise<Map<string, number>> {
  const { rows } = await db.query<{ name: string; n: number }>(
    `select name, sum(added - succeeded - dead - cancelled)::bigint as n from (
       select name, added, succeeded, dead, cancelled from jobs.queues
       union all select queue, added, succeeded, dead, cancelled from jobs.deltas) c group by name`,
  )
  return new Map(rows.map(row => [row.name, row.n]))
}
