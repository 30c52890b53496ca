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
  kept: Map<string, number>
}

/** An image, and which of the named transforms of it are kept. */
export async function findServed(
  db: Queryable,
  given: { id: string; names: readonly string[] },
): Promise<ServedRow | undefined> {
  // A row for each that is kept: PostgreSQL would plan an aggregate of them anew each time, which takes longer than all
  // the rest.
  const { rows } = await db.query<Omit<ServedRow, 'kept'> & { kept_name: string | null; kept_bytes: number }>(
    `select i.id, i.owner, i.name, i.visibility, i.file_id, f.sha256, f.bytes, f.facts, f.status, f.variants, f.error,
            f.ended_at, t.name as kept_name, t.bytes as kept_bytes
     from images.images i join images.files f on f.id = i.file_id
     left join images.transforms t on t.file_id = f.id and t.name = any($2::text[])
     where i.id = $1`,
    [given.id, given.names],
  )
  const kept = new Map(rows.flatMap(({ kept_name: name, kept_bytes }) => (name === null ? [] : [[name, kept_bytes]])))
  return rows[0] && { ...rows[0], kept }
}

export interface RoomRow {
  file_id: string
  owner: string | null
  owner_bytes: number
  /** Transforms that are kept, and those of them that another pipeline made. */
  kept: number
  stale: number
  /** Those of the names that are kept. */
  known: string[]
}

/** How much room there is for transforms of these files, but those that are gone. */
export async function findRoom(
  db: Queryable,
  given: { fileIds: readonly string[]; names: readonly string[]; pipeline: string },
): Promise<RoomRow[]> {
  const { rows } = await db.query<RoomRow>(
    `select f.id as file_id, f.owner,
            coalesce((select u.bytes from images.usage u where u.owner = f.owner), 0) as owner_bytes,
            t.kept, t.stale, t.known
     from images.files f, lateral (
       select count(*) as kept, count(*) filter (where not starts_with(name, $3)) as stale,
              coalesce(array_agg(name) filter (where name = any($2::text[])), '{}') as known
       from images.transforms where file_id = f.id
     ) t
     where f.id = any($1::uuid[])`,
    [given.fileIds, given.names, given.pipeline],
  )
  return rows
}

/** So that transforms of one file are kept one after the other, and each sees how many there are. */
export function lockFiles(tx: Tx, fileIds: readonly string[]) {
  tx.send(`select from images.files where id = any($1::uuid[]) order by id for no key update`, [fileIds])
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

export async function findKept(
  db: Queryable,
  transforms: readonly { fileId: string; name: string }[],
): Promise<{ fileId: string; name: string }[]> {
  const { rows } = await db.query<{ fileId: string; name: string }>(
    `select file_id as "fileId", name from images.transforms
     where (file_id, name) in (select * from unnest($1::uuid[], $2::text[]))`,
    [transforms.map(each => each.fileId), transforms.map(each => each.name)],
  )
  return rows
}
