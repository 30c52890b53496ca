/** Every statement on images, files and their events. */
import type { Queryable, Tx } from '#platform/database/pool.ts'
import type { FileStatus, ImageFacts, Profile, StoredDescription, Variant, Visibility } from './types.ts'

export interface FileRow {
  id: string
  owner: string | null
  profile: Profile
  sha256: Buffer
  bytes: number
  facts: ImageFacts
  status: FileStatus
  attempt: number
  description: StoredDescription | null
  variants: Variant[]
  error: string | null
  created_at: Date
  ended_at: Date | null
}

/** An image with its file. */
export interface ImageRow {
  id: string
  owner: string | null
  name: string | null
  visibility: Visibility
  created_at: Date
  file_id: string
  profile: Profile
  sha256: Buffer
  bytes: number
  facts: ImageFacts
  status: FileStatus
  description: StoredDescription | null
  variants: Variant[]
  error: string | null
  ended_at: Date | null
}

const imageColumns = `i.id, i.owner, i.name, i.visibility, i.created_at, i.file_id, f.profile, f.sha256, f.bytes, f.facts,
  f.status, f.description, f.variants, f.error, f.ended_at`

export interface NewFile {
  id: string
  owner: string | null
  profile: Profile
  sha256: Buffer
  bytes: number
  facts: ImageFacts
  shared: boolean
  createdAt: Date
}

/** Inserts files and the first event of each. Answers the ids of those that were not there yet. */
export async function insertFiles(tx: Tx, files: readonly NewFile[]): Promise<Set<string>> {
  const { rows } = await tx.query<{ id: string }>(
    `with put as (
       insert into images.files (id, owner, profile, sha256, bytes, facts, shared, created_at)
       select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::bigint[], $6::jsonb[], $7::boolean[], $8::timestamptz[])
       on conflict (owner, sha256) where shared do nothing
       returning id
     ), event as (
       insert into images.events (file_id, seq, data) select id, 1, '{"status":"waiting"}' from put
     )
     select id from put`,
    [
      files.map(file => file.id),
      files.map(file => file.owner),
      files.map(file => file.profile),
      files.map(file => file.sha256),
      files.map(file => file.bytes),
      files.map(file => JSON.stringify(file.facts)),
      files.map(file => file.shared),
      files.map(file => file.createdAt),
    ],
  )
  return new Set(rows.map(row => row.id))
}

/** Finds files by owner and hash, and keeps them from being deleted until the transaction ends. */
export async function lockEqualFiles(tx: Tx, files: readonly { owner: string | null; sha256: Buffer }[]) {
  const { rows } = await tx.query<Pick<FileRow, 'id' | 'owner' | 'sha256'>>(
    `select f.id, f.owner, f.sha256 from images.files f
     where (f.owner, f.sha256) in (select * from unnest($1::text[], $2::bytea[])) and f.shared
     order by f.id for key share`,
    [files.map(file => file.owner), files.map(file => file.sha256)],
  )
  return rows
}

export interface NewImage {
  id: string
  fileId: string
  owner: string | null
  name: string | null
  visibility: Visibility
  createdAt: Date
}

export function insertImages(tx: Tx, images: readonly NewImage[]) {
  tx.send(
    `insert into images.images (id, file_id, owner, name, visibility, created_at)
     select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])`,
    [
      images.map(image => image.id),
      images.map(image => image.fileId),
      images.map(image => image.owner),
      images.map(image => image.name),
      images.map(image => image.visibility),
      images.map(image => image.createdAt),
    ],
  )
}

interface UsageChange {
  owner: string | null
  bytes: number
}

const addition = `insert into images.usage (owner, bytes) select * from unnest($1::text[], $2::bigint[])
  on conflict (owner) do update set bytes = greatest(images.usage.bytes + excluded.bytes, 0)`

/** Adds to (or, with less than nothing, takes from) what users have. */
export function addUsage(tx: Tx, changes: readonly UsageChange[]) {
  const [owners, sums] = sumByOwner(changes)
  if (owners.length > 0) tx.send(addition, [owners, sums])
}

/** The same, and answers what these users have then, which nobody else changes until the transaction ends. */
export async function chargeUsage(tx: Tx, changes: readonly UsageChange[]): Promise<Map<string, number>> {
  const [owners, sums] = sumByOwner(changes)
  if (owners.length === 0) return new Map()
  const { rows } = await tx.query<{ owner: string; bytes: number }>(`${addition} returning owner, bytes`, [
    owners,
    sums,
  ])
  return new Map(rows.map(row => [row.owner, row.bytes]))
}

/** Sorted, so that two batches cannot deadlock. */
function sumByOwner(changes: readonly UsageChange[]): [owners: string[], sums: number[]] {
  const sums = new Map<string, number>()
  for (const { owner, bytes } of changes) if (owner !== null) sums.set(owner, (sums.get(owner) ?? 0) + bytes)
  const owners = [...sums.keys()].sort()
  return [owners, owners.map(owner => sums.get(owner)!)]
}

/** What the owners of these files have, which nobody else changes until the transaction ends. Files go first, as always. */
export async function lockUsage(
  tx: Tx,
  fileIds: readonly string[],
): Promise<{ id: string; owner: string; bytes: number }[]> {
  if (fileIds.length === 0) return []
  tx.send(`select from images.files where id = any($1::uuid[]) order by id for no key update`, [fileIds])
  const { rows } = await tx.query<{ id: string; owner: string; bytes: number }>(
    `select f.id, u.owner, u.bytes from images.files f join images.usage u on u.owner = f.owner
     where f.id = any($1::uuid[]) order by u.owner for no key update of u`,
    [fileIds],
  )
  return rows
}

export async function findUsage(db: Queryable, owner: string): Promise<number> {
  const { rows } = await db.query<{ bytes: number }>(`select bytes from images.usage where owner = $1`, [owner])
  return rows[0]?.bytes ?? 0
}

export async function findImage(db: Queryable, id: string): Promise<ImageRow | undefined> {
  const { rows } = await db.query<ImageRow>(
    `select ${imageColumns} from images.images i join images.files f on f.id = i.file_id where i.id = $1`,
    [id],
  )
  return rows[0]
}

/** Nothing is after it. */
const lastId = 'ffffffff-ffff-ffff-ffff-ffffffffffff'

export interface ImageFilter {
  owner: string
  status: FileStatus | undefined
  /** The last image of the page before. */
  before: { createdAt: Date; id: string } | undefined
  limit: number
}

/**
 * Newest first. The owner's images are walked in that order, each with its file, as `offset 0` has it: how rare a status
 * is must not have the planner read everybody's files.
 */
export async function listImages(db: Queryable, filter: ImageFilter): Promise<ImageRow[]> {
  const { before } = filter
  const { rows } = await db.query<ImageRow>(
    `select ${imageColumns}
     from images.images i cross join lateral (
       select * from images.files f where f.id = i.file_id and ($2::text is null or f.status = $2) offset 0
     ) f
     where i.owner = $1 and (i.created_at, i.id) < ($3, $4)
     order by i.created_at desc, i.id desc limit $5`,
    [filter.owner, filter.status ?? null, before?.createdAt ?? 'infinity', before?.id ?? lastId, filter.limit],
  )
  return rows
}

/** Answers the file of the image that is gone, undefined where there was none. */
export async function deleteImage(tx: Tx, id: string): Promise<string | undefined> {
  const { rows } = await tx.query<{ file_id: string }>(`delete from images.images where id = $1 returning file_id`, [
    id,
  ])
  return rows[0]?.file_id
}

export interface DeletedFile {
  owner: string | null
  bytes: number
}

/** Deletes a file that is no image's any more. Undefined while it is one's. */
export async function deleteUnusedFile(tx: Tx, fileId: string): Promise<DeletedFile | undefined> {
  // Locked in a statement of its own: the next one then sees an image that another transaction has just made of it.
  await tx.query(`select from images.files where id = $1 for update`, [fileId])
  const { rows } = await tx.query<DeletedFile>(
    `with kept as (select coalesce(sum(bytes), 0)::bigint as bytes from images.transforms where file_id = $1)
     delete from images.files f
     where f.id = $1 and not exists (select from images.images i where i.file_id = f.id)
     returning f.owner, f.bytes + (select bytes from kept)
       + (select coalesce(sum((v->>'bytes')::bigint), 0)::bigint from jsonb_array_elements(f.variants) v) as bytes`,
    [fileId],
  )
  return rows[0]
}

/** Deletes a file that no worker has taken yet, and its image. Answers whether it was so. */
export async function withdrawFile(tx: Tx, fileId: string): Promise<DeletedFile | undefined> {
  const { rows } = await tx.query(`select from images.files where id = $1 and status = 'waiting' for update`, [fileId])
  if (rows.length === 0) return undefined
  await tx.query(`delete from images.images where file_id = $1`, [fileId])
  return deleteUnusedFile(tx, fileId)
}

export type BegunRow = Pick<FileRow, 'id' | 'profile' | 'facts' | 'owner'> & { image_ids: string[] }

/** Marks files as being worked on. The commit need not reach the disk: what is lost with it is only the mark. */
export async function beginFiles(
  db: Queryable,
  files: readonly { id: string; attempt: number }[],
): Promise<BegunRow[]> {
  const { rows } = await db.query<BegunRow>(
    `with i as (select * from unnest($1::uuid[], $2::smallint[]) as i(id, attempt)),
     begun as (
       update images.files f set status = 'processing', attempt = i.attempt
       from i where f.id = i.id and f.status in ('waiting', 'processing')
       returning f.id, f.profile, f.facts, f.owner, f.attempt
     ), event as (
       insert into images.events (file_id, seq, data)
       select b.id, (select coalesce(max(e.seq), 0) + 1 from images.events e where e.file_id = b.id),
              jsonb_build_object('status', 'processing', 'attempt', b.attempt)
       from begun b
     )
     select b.id, b.profile, b.facts, b.owner, array(select i.id from images.images i where i.file_id = b.id) as image_ids
     from begun b, set_config('synchronous_commit', 'off', true)`,
    [files.map(file => file.id), files.map(file => file.attempt)],
  )
  return rows
}

export interface EndedFile {
  id: string
  status: 'ready' | 'failed' | 'refused'
  description: StoredDescription | null
  variants: Variant[]
  error: string | null
}

/** Answers those that are still there. */
export async function endFiles(tx: Tx, files: readonly EndedFile[]) {
  const { rows } = await tx.query<{ id: string; owner: string | null; image_ids: string[] }>(
    `with i as (
       select * from unnest($1::uuid[], $2::text[], $3::jsonb[], $4::jsonb[], $5::text[])
         as i(id, status, description, variants, error)
     ), ended as (
       update images.files f
       set status = i.status, description = i.description, variants = i.variants, error = i.error, ended_at = now(),
           shared = f.shared and i.status = 'ready'
       from i where f.id = i.id
       returning f.id, f.owner, f.status, f.error, f.variants, f.description
     ), event as (
       insert into images.events (file_id, seq, data)
       select e.id, (select coalesce(max(o.seq), 0) + 1 from images.events o where o.file_id = e.id),
              jsonb_strip_nulls(jsonb_build_object('status', e.status, 'error', e.error, 'description', e.description)) ||
              jsonb_build_object('variants', e.variants)
       from ended e
     )
     select id, owner, array(select i.id from images.images i where i.file_id = ended.id) as image_ids from ended`,
    [
      files.map(file => file.id),
      files.map(file => file.status),
      files.map(file => (file.description ? JSON.stringify(file.description) : null)),
      files.map(file => JSON.stringify(file.variants)),
      files.map(file => file.error),
    ],
  )
  return rows
}

/** A failed file is lined up again. */
export async function requeueFile(tx: Tx, id: string) {
  await tx.query(
    `with f as (update images.files set status = 'waiting', attempt = 0, error = null, ended_at = null where id = $1 returning id)
     insert into images.events (file_id, seq, data)
     select f.id, (select coalesce(max(e.seq), 0) + 1 from images.events e where e.file_id = f.id), '{"status":"waiting"}' from f`,
    [id],
  )
}

export interface EventRow {
  seq: number
  data: { status: FileStatus; [field: string]: unknown }
}

export async function listEvents(db: Queryable, given: { imageId: string; after: number; limit: number }) {
  const { rows } = await db.query<EventRow>(
    `select e.seq, e.data from images.images i join images.events e on e.file_id = i.file_id
     where i.id = $1 and e.seq > $2 order by e.seq limit $3`,
    [given.imageId, given.after, given.limit],
  )
  return rows
}

export async function listHeads(db: Queryable, imageIds: readonly string[]): Promise<Map<string, number>> {
  const { rows } = await db.query<{ id: string; seq: number }>(
    `select i.id, (select coalesce(max(e.seq), 0) from images.events e where e.file_id = i.file_id) as seq
     from images.images i where i.id = any($1::uuid[])`,
    [imageIds],
  )
  return new Map(rows.map(row => [row.id, row.seq]))
}

/** Those of the files whose work has begun. */
export async function findBegun(db: Queryable, ids: readonly string[]): Promise<string[]> {
  return findByStatus(db, ids, ['processing', 'ready', 'failed', 'refused'])
}

/** Those of the files whose work has ended. */
export async function findEnded(db: Queryable, ids: readonly string[]): Promise<string[]> {
  return findByStatus(db, ids, ['ready', 'failed', 'refused'])
}

async function findByStatus(db: Queryable, ids: readonly string[], statuses: FileStatus[]): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `select id from images.files where id = any($1::uuid[]) and status = any($2::text[])`,
    [ids, statuses],
  )
  return rows.map(row => row.id)
}

/** What belongs to files: the names under which their blobs are kept. */
export interface KnownBlobs {
  id: string
  variants: Variant[]
  transforms: string[]
}

export async function findKnownBlobs(db: Queryable, fileIds: readonly string[]): Promise<KnownBlobs[]> {
  const { rows } = await db.query<KnownBlobs>(
    `select f.id, f.variants, array(select t.name from images.transforms t where t.file_id = f.id) as transforms
     from images.files f where f.id = any($1::uuid[])`,
    [fileIds],
  )
  return rows
}

export interface NewTransform {
  fileId: string
  name: string
  bytes: number
}

/**
 * Says that transforms are kept, but those whose file is gone or has too many. Their files must be locked. Answers those
 * that were not there before.
 */
export async function insertTransforms(
  tx: Tx,
  given: { transforms: readonly NewTransform[]; max: number },
): Promise<NewTransform[]> {
  const { rows } = await tx.query<NewTransform & { owner: string | null }>(
    `with given as (
       select distinct on (file_id, name) * from unnest($1::uuid[], $2::text[], $3::bigint[]) as g(file_id, name, bytes)
     ), fresh as (
       select g.*, row_number() over (partition by g.file_id order by g.name) as nth,
              (select count(*) from images.transforms t where t.file_id = g.file_id) as kept
       from given g join images.files f on f.id = g.file_id
       where not exists (select from images.transforms t where t.file_id = g.file_id and t.name = g.name)
     ), put as (
       insert into images.transforms (file_id, name, bytes)
       select file_id, name, bytes from fresh where kept + nth <= $4
       on conflict (file_id, name) do nothing
       returning file_id, name, bytes
     )
     select p.file_id as "fileId", p.name, p.bytes, f.owner from put p join images.files f on f.id = p.file_id`,
    [
      given.transforms.map(each => each.fileId),
      given.transforms.map(each => each.name),
      given.transforms.map(each => each.bytes),
      given.max,
    ],
  )
  addUsage(tx, rows)
  return rows
}
