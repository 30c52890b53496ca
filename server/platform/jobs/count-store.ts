/** The statements that count jobs and clean up after them. */
import { type Queryable, replan, type Tx } from '../database/pool.ts'

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
