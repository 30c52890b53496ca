/** The statements that show jobs to people. */
import { type Queryable, replan } from '../database/pool.ts'
import type { JobState } from './types.ts'

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
