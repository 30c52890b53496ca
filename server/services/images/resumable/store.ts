/** Every statement on uploads and their parts. */
import type { Queryable, Tx } from '#platform/database/pool.ts'
import type { Visibility } from '../types.ts'

/** An error as it was answered, to be answered again. */
export interface StoredError {
  code: string
  status: number
  message: string
  details?: Record<string, unknown>
}

export interface UploadRow {
  id: string
  owner: string
  /** Null until the sender says it. */
  length: number | null
  at: number
  parts: number
  metadata: string | null
  name: string | null
  visibility: Visibility
  status: 'receiving' | 'finished' | 'refused'
  error: StoredError | null
  created_at: Date
  expires_at: Date
}

export interface NewUpload {
  id: string
  owner: string
  length: number | null
  metadata: string | null
  name: string | null
  visibility: Visibility
  createdAt: Date
  expiresAt: Date
}

/** One transaction at a time of an owner, so that each sees those before. */
export function lockOwner(tx: Tx, owner: string) {
  tx.send(`select pg_advisory_xact_lock('images.uploads'::regclass::oid::integer, hashtext($1))`, [owner])
}

/**
 * How many uploads of a user are open, and how many bytes they may come to, as far as is known: of one whose length is
 * not said yet, those that came.
 */
export async function sumOpen(
  tx: Tx,
  given: { owner: string; now: Date },
): Promise<{ uploads: number; bytes: number }> {
  const { rows } = await tx.query<{ uploads: number; bytes: number }>(
    `select count(*) as uploads, coalesce(sum(coalesce(length, at)), 0)::bigint as bytes
     from images.uploads where owner = $1 and status = 'receiving' and expires_at > $2`,
    [given.owner, given.now],
  )
  return rows[0]!
}

export async function insertUpload(tx: Tx, upload: NewUpload) {
  await tx.query(
    `insert into images.uploads (id, owner, length, metadata, name, visibility, created_at, expires_at)
     values ($1, $2, $3, $4, $5, $6, $7, $8)`,
    [
      upload.id,
      upload.owner,
      upload.length,
      upload.metadata,
      upload.name,
      upload.visibility,
      upload.createdAt,
      upload.expiresAt,
    ],
  )
}

export async function findUpload(db: Queryable, id: string): Promise<UploadRow | undefined> {
  const { rows } = await db.query<UploadRow>(
    `select id, owner, length, at, parts, metadata, name, visibility, status, error, created_at, expires_at
     from images.uploads where id = $1`,
    [id],
  )
  return rows[0]
}

/** Says how long the file is, where that was left open. Answers whether it was. */
export async function setLength(db: Queryable, given: { id: string; length: number }): Promise<boolean> {
  const { rowCount } = await db.query(
    `update images.uploads set length = $2 where id = $1 and length is null and at <= $2`,
    [given.id, given.length],
  )
  return rowCount > 0
}

export interface Part {
  at: number
  bytes: number
  blob: string
}

/** Adds a part to an upload that stands where the part begins. Answers whether it did: of several, one does. */
export async function addPart(db: Queryable, uploadId: string, part: Part): Promise<boolean> {
  const { rowCount } = await db.query(
    `with moved as (
       update images.uploads set at = at + $3, parts = parts + 1
       where id = $1 and at = $2 and status = 'receiving' and (length is null or at + $3 <= length)
       returning id
     )
     insert into images.upload_parts (upload_id, at, bytes, blob) select id, $2, $3, $4 from moved`,
    [uploadId, part.at, part.bytes, part.blob],
  )
  return rowCount > 0
}

/** In their order; their number is bounded by the upload's bound. */
export async function listParts(db: Queryable, uploadId: string): Promise<Part[]> {
  const { rows } = await db.query<Part>(
    `select at, bytes, blob from images.upload_parts where upload_id = $1 order by at`,
    [uploadId],
  )
  return rows
}

export async function deleteParts(db: Queryable, uploadId: string) {
  await db.query(`delete from images.upload_parts where upload_id = $1`, [uploadId])
}

/** Ends an upload that has not ended and stands there, where that is said. Answers whether it did. */
export async function endUpload(
  db: Queryable,
  given: { id: string; endedAt: Date; error: StoredError | null; at?: number | undefined },
): Promise<boolean> {
  const { rowCount } = await db.query(
    `update images.uploads set status = case when $3::jsonb is null then 'finished' else 'refused' end, error = $3, ended_at = $2
     where id = $1 and status = 'receiving' and at = coalesce($4, at)`,
    [given.id, given.endedAt, given.error ? JSON.stringify(given.error) : null, given.at ?? null],
  )
  return rowCount > 0
}

export interface DeletedUpload {
  id: string
  blobs: string[]
}

export async function deleteUpload(db: Queryable, id: string): Promise<DeletedUpload | undefined> {
  const { rows } = await db.query<DeletedUpload>(
    `with gone as (select id from images.uploads where id = $1 for update),
     deleted as (delete from images.uploads u using gone where u.id = gone.id)
     select gone.id, array(select p.blob from images.upload_parts p where p.upload_id = gone.id) as blobs from gone`,
    [id],
  )
  return rows[0]
}

/** Deletes uploads whose time was over before then, those that somebody works on left out. */
export async function deleteExpired(db: Queryable, given: { before: Date; limit: number }): Promise<DeletedUpload[]> {
  const { rows } = await db.query<DeletedUpload>(
    `with gone as (
       select id from images.uploads where expires_at < $1 order by expires_at limit $2 for update skip locked
     ), deleted as (delete from images.uploads u using gone where u.id = gone.id)
     select gone.id, array(select p.blob from images.upload_parts p where p.upload_id = gone.id) as blobs from gone`,
    [given.before, given.limit],
  )
  return rows
}

/** Uploads that ended before then and whose parts are still there. */
export async function findLeftParts(db: Queryable, given: { before: Date; limit: number }): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `select u.id from images.uploads u
     where u.status <> 'receiving' and u.ended_at < $1
       and exists (select from images.upload_parts p where p.upload_id = u.id)
     limit $2`,
    [given.before, given.limit],
  )
  return rows.map(row => row.id)
}

/** The parts' blobs that uploads know of. */
export async function findKnownParts(db: Queryable, uploadIds: readonly string[]) {
  const { rows } = await db.query<{ upload_id: string; blob: string }>(
    `select upload_id, blob from images.upload_parts where upload_id = any($1::uuid[])`,
    [uploadIds],
  )
  return rows
}
