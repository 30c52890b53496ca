/** The statements about workers: who lives, and what the dead held. */
import { type Queryable, replan, type Tx } from '../database/pool.ts'

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

/** Workers that are said to run at this place. */
export async function listNeighbours(db: Queryable, host: string): Promise<{ id: string; pid: number }[]> {
  const { rows } = await db.query<{ id: string; pid: number }>(
    `select id, pid from jobs.workers where host = $1 and dead_at is null limit 10000`,
    [host],
  )
  return rows
}

export async function declareDead(db: Queryable, ids: string[]) {
  await db.query(`update jobs.workers set dead_at = now() where id = any($1) and dead_at is null`, [ids])
}

/** Declares workers dead whose heartbeat is older than `leaseMs`, unless that is null, and answers all that died lately. */
export async function findDeadWorkers(db: Queryable, leaseMs: number | null): Promise<string[]> {
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
