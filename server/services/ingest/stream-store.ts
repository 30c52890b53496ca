/** Every statement on streams and their declarations. */
import type { Queryable, Tx } from '#platform/database/pool.ts'
import { addLeftovers } from './leftover-store.ts'
import type { Audience, Declaration, StreamRow } from './types.ts'

interface Row {
  id: number
  name: string
  schema: Record<string, unknown>
  dimensions: string[]
  weight_a: number
  weight_b: number
  sticky_by: string | null
  retention_days: number
  writers: Audience
  readers: Audience
  version: number
  created_at: Date
  updated_at: Date
}

const columns = `id, name, schema, dimensions, weight_a, weight_b, sticky_by, retention_days, writers, readers, version,
  created_at, updated_at`

function toStream(row: Row): StreamRow {
  return {
    id: row.id,
    name: row.name,
    schema: row.schema,
    dimensions: row.dimensions,
    weights: { a: row.weight_a, b: row.weight_b },
    stickyBy: row.sticky_by,
    retentionDays: row.retention_days,
    writers: row.writers,
    readers: row.readers,
    version: row.version,
    createdAt: row.created_at,
    updatedAt: row.updated_at,
  }
}

export async function findStream(db: Queryable, name: string): Promise<StreamRow | undefined> {
  const { rows } = await db.query<Row>(`select ${columns} from ingest.streams where name = $1`, [name])
  return rows[0] && toStream(rows[0])
}

/** By name, from above `after` on. */
export async function listStreams(
  db: Queryable,
  given: { after: string; limit: number; readers: readonly Audience[] },
): Promise<StreamRow[]> {
  const { rows } = await db.query<Row>(
    `select ${columns} from ingest.streams where name > $1 and readers = any($3::text[]) order by name limit $2`,
    [given.after, given.limit, given.readers],
  )
  return rows.map(toStream)
}

export async function countStreams(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ count: number }>('select count(*) from ingest.streams')
  return rows[0]!.count
}

/** Declares it, whether it was there or not. Answers it with whether it is new. */
export async function putStream(
  tx: Tx,
  given: { name: string; declaration: Declaration; keepOld?: boolean },
): Promise<{ stream: StreamRow; isNew: boolean } | undefined> {
  const { name, declaration: d, keepOld = false } = given
  const { rows } = await tx.query<Row & { is_new: boolean }>(
    `insert into ingest.streams (name, schema, dimensions, weight_a, weight_b, sticky_by, retention_days, writers, readers)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
     on conflict (name) do update
       set schema = excluded.schema, dimensions = excluded.dimensions, weight_a = excluded.weight_a,
           weight_b = excluded.weight_b, sticky_by = excluded.sticky_by, retention_days = excluded.retention_days,
           writers = excluded.writers, readers = excluded.readers, version = ingest.streams.version + 1,
           updated_at = now()
       where not $10
     returning ${columns}, xmax = 0 as is_new`,
    [
      name,
      JSON.stringify(d.schema),
      d.dimensions,
      d.weights.a,
      d.weights.b,
      d.stickyBy,
      d.retentionDays,
      d.writers,
      d.readers,
      keepOld,
    ],
  )
  const [row] = rows
  if (!row) return undefined
  const stream = toStream(row)
  await tx.query('insert into ingest.heads (stream_id) values ($1) on conflict do nothing', [stream.id])
  return { stream, isNew: row.is_new }
}

const lockOfStream = `'ingest.streams'::regclass::oid::integer, $1`

/**
 * Has a stream's deletion wait for the end of the transaction. Whoever locks rows of a stream and then its head begins
 * with it: the deletion goes the other way.
 */
export function holdStream(tx: Tx, id: number) {
  tx.send(`select pg_advisory_xact_lock_shared(${lockOfStream})`, [id])
}

/** Answers whether it was there. */
export async function deleteStream(tx: Tx, id: number): Promise<boolean> {
  tx.send(`select pg_advisory_xact_lock(${lockOfStream})`, [id])
  // Taken first, as whoever adds records does: who comes later finds it gone, and nobody waits in a circle.
  await tx.query('delete from ingest.heads where stream_id = $1', [id])
  await tx.query('delete from ingest.segments where stream_id = $1', [id])
  const { rows } = await tx.query<{ name: string }>('delete from ingest.streams where id = $1 returning name', [id])
  const [gone] = rows
  if (gone) await addLeftovers(tx, { streamId: id, name: gone.name })
  return gone !== undefined
}

/** The newest offset of each. */
export async function findHeads(db: Queryable, names: readonly string[]): Promise<Map<string, number>> {
  const { rows } = await db.query<{ name: string; last_offset: number }>(
    `select s.name, h.last_offset from ingest.streams s join ingest.heads h on h.stream_id = s.id
     where s.name = any($1::text[])`,
    [names],
  )
  return new Map(rows.map(row => [row.name, row.last_offset]))
}
