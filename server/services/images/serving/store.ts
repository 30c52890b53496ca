/** Statements for serving images. */
import type { Queryable, Tx } from '#platform/database/pool.ts'
import { addUsage, type ImageRow } from '../store.ts'

export type ServedRow = Pick<
  ImageRow,
  | 'id'
  | 'owner'
  | 'name'
  | 'visibility'
  | 'file_id'
  | 'sha256'
  | 'bytes'
  | 'facts'
  | 'status'
  | 'variants'
  | 'error'
  | 'ended_at'
> & {
  /** Bytes by name, of those asked for that are kept. */
  kept: Record<string, number> | null
}

/** An image, and which of the named transforms of it are kept. */
export async function findServed(
  db: Queryable,
  given: { id: string; names: readonly string[] },
): Promise<ServedRow | undefined> {
  const { rows } = await db.query<ServedRow>(
    `select i.id, i.owner, i.name, i.visibility, i.file_id, f.sha256, f.bytes, f.facts, f.status, f.variants, f.error,
            f.ended_at,
            (select jsonb_object_agg(t.name, t.bytes) from images.transforms t
             where t.file_id = i.file_id and t.name = any($2::text[])) as kept
     from images.images i join images.files f on f.id = i.file_id
     where i.id = $1`,
    [given.id, given.names],
  )
  return rows[0]
}

/**
 * How many transforms of a file are kept beside the named one, how many another pipeline made, and how much its owner
 * has. Undefined for a file that is gone.
 */
export async function countKept(
  db: Queryable,
  given: { fileId: string; name: string; pipeline: string },
): Promise<{ others: number; stale: number; owner_bytes: number } | undefined> {
  const { rows } = await db.query<{ others: number; stale: number; owner_bytes: number }>(
    `select count(t.name) filter (where t.name <> $2) as others,
            count(t.name) filter (where not starts_with(t.name, $3)) as stale,
            coalesce((select u.bytes from images.usage u where u.owner = f.owner), 0) as owner_bytes
     from images.files f left join images.transforms t on t.file_id = f.id
     where f.id = $1 group by f.id`,
    [given.fileId, given.name, given.pipeline],
  )
  return rows[0]
}

/** So that transforms of one file are kept one after the other, and each sees how many there are. */
export function lockFile(tx: Tx, fileId: string) {
  tx.send(`select from images.files where id = $1 for no key update`, [fileId])
}

/** Forgets what another pipeline made of a file. Answers the names. */
export async function deleteStale(tx: Tx, given: { fileId: string; pipeline: string }): Promise<string[]> {
  const { rows } = await tx.query<{ owner: string | null; name: string; bytes: number }>(
    `with f as (select id, owner from images.files where id = $1 for key share),
     gone as (
       delete from images.transforms t using f where t.file_id = f.id and not starts_with(t.name, $2)
       returning t.name, t.bytes
     )
     select f.owner, gone.name, gone.bytes from f, gone`,
    [given.fileId, given.pipeline],
  )
  addUsage(
    tx,
    rows.map(({ owner, bytes }) => ({ owner, bytes: -bytes })),
  )
  return rows.map(row => row.name)
}

export async function isKept(db: Queryable, given: { fileId: string; name: string }): Promise<boolean> {
  const { rows } = await db.query(`select from images.transforms where file_id = $1 and name = $2`, [
    given.fileId,
    given.name,
  ])
  return rows.length > 0
}
