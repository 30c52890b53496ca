import { createHash } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import type { Database, Queryable, Tx } from '../database/pool.ts'
import { type AppError, errors } from '../errors.ts'

/** A request that may come twice. Two are the same when owner, key and fingerprint are. */
export interface IdempotencyKey {
  owner: string
  key: string
  /** SHA-256 over method, path and body. */
  fingerprint: Buffer
}

export interface Answer<B = unknown> {
  status: number
  body: B
}

/** What became of a key: the first to use it goes on; a later one gets the first one's answer or an error. */
export type Claim<B = unknown> = 'fresh' | { answer: Answer<B> } | { error: AppError }

/** @throws bad_idempotency_key for a header that is no key. */
export function idempotencyKeyOf(request: FastifyRequest): IdempotencyKey | undefined {
  if (request.headers['idempotency-key'] === undefined) return undefined
  const { body } = request
  return keyOfRequest(request, Buffer.isBuffer(body) ? body : JSON.stringify(body ?? null))
}

function keyOfRequest(request: FastifyRequest, body: string | Buffer): IdempotencyKey {
  const fingerprint = createHash('sha256')
    // Without the query: how long to wait, say, does not make it another request.
    .update(`${request.method} ${request.url.split('?', 1)[0]}\n`)
    .update(body)
    .digest()
  return { owner: request.caller?.userId ?? '', key: checkKey(request.headers['idempotency-key']), fingerprint }
}

/** @throws bad_idempotency_key */
export function checkKey(key: unknown): string {
  if (typeof key !== 'string' || !/^[\x20-\x7e]{1,255}$/.test(key)) throw errors.badIdempotencyKey()
  return key
}

/**
 * Takes the keys of a whole batch inside its transaction, each with the answer it will get. An item without a key is
 * fresh. Of equal keys inside the batch, the first is fresh. A key that another transaction is writing is waited for.
 */
export async function claimKeys<B>(
  tx: Tx,
  items: readonly { key: IdempotencyKey | undefined; answer: Answer<B> }[],
): Promise<Claim<B>[]> {
  const keyed = items.filter(item => item.key !== undefined)
  if (keyed.length === 0) return items.map(() => 'fresh')
  const taken = new Set(await insertKeys(tx, keyed as { key: IdempotencyKey; answer: Answer }[]))
  const someAreLate = taken.size < keyed.length
  const stored = await findAnswers(tx, someAreLate ? keyed.map(item => item.key!) : [])
  return items.map(({ key }) => {
    if (key === undefined || taken.delete(nameOf(key))) return 'fresh'
    return judge<B>(stored.get(nameOf(key)), key)
  })
}

/**
 * Does `work` in a transaction, once a key. A repeated request gets the stored answer; one that comes while the first
 * is at work waits for it.
 */
export async function idempotently<B>(
  db: Database,
  key: IdempotencyKey | undefined,
  work: (tx: Tx) => Promise<Answer<B>>,
): Promise<Answer<B>> {
  return db.tx(async tx => {
    if (key === undefined) return work(tx)
    const [claim] = await claimKeys<B | null>(tx, [{ key, answer: { status: 0, body: null } }])
    if (claim !== 'fresh') {
      if ('error' in claim!) throw claim.error
      return claim!.answer as Answer<B>
    }
    const answer = await work(tx)
    await tx.query(`update platform.idempotency_keys set status = $3, body = $4 where owner = $1 and key = $2`, [
      key.owner,
      key.key,
      answer.status,
      JSON.stringify(answer.body),
    ])
    return answer
  })
}

/** Forgets keys older than their time, a bounded number at once. Answers how many. */
export async function forgetOldKeys(db: Queryable, given: { hours: number; limit: number }): Promise<number> {
  const { rowCount } = await db.query(
    `delete from platform.idempotency_keys where (owner, key) in (
       select owner, key from platform.idempotency_keys where created_at < now() - make_interval(hours => $1) limit $2)`,
    [given.hours, given.limit],
  )
  return rowCount
}

function nameOf(key: IdempotencyKey): string {
  return `${key.owner}\n${key.key}`
}

interface StoredRow {
  owner: string
  key: string
  fingerprint: Buffer
  status: number
  body: unknown
}

async function insertKeys(tx: Tx, items: readonly { key: IdempotencyKey; answer: Answer }[]): Promise<string[]> {
  // Sorted, so that two batches which share keys wait for each other in one order and cannot deadlock.
  const sorted = items.toSorted((a, b) => (nameOf(a.key) < nameOf(b.key) ? -1 : nameOf(a.key) > nameOf(b.key) ? 1 : 0))
  const { rows } = await tx.query<Pick<StoredRow, 'owner' | 'key'>>(
    `insert into platform.idempotency_keys (owner, key, fingerprint, status, body)
     select * from unnest($1::text[], $2::text[], $3::bytea[], $4::smallint[], $5::jsonb[])
     on conflict (owner, key) do nothing
     returning owner, key`,
    [
      sorted.map(item => item.key.owner),
      sorted.map(item => item.key.key),
      sorted.map(item => item.key.fingerprint),
      sorted.map(item => item.answer.status),
      sorted.map(item => JSON.stringify(item.answer.body)),
    ],
  )
  return rows.map(row => `${row.owner}\n${row.key}`)
}

async function findAnswers(tx: Tx, keys: readonly IdempotencyKey[]): Promise<Map<string, StoredRow>> {
  if (keys.length === 0) return new Map()
  const { rows } = await tx.query<StoredRow>(
    `select owner, key, fingerprint, status, body from platform.idempotency_keys
     where (owner, key) in (select * from unnest($1::text[], $2::text[]))`,
    [keys.map(key => key.owner), keys.map(key => key.key)],
  )
  return new Map(rows.map(row => [`${row.owner}\n${row.key}`, row]))
}

function judge<B>(stored: StoredRow | undefined, key: IdempotencyKey): Claim<B> {
  if (stored === undefined)
    return { error: errors.unavailable('The first request with this key just failed; try again.', 1) }
  if (!stored.fingerprint.equals(key.fingerprint)) return { error: errors.idempotencyMismatch() }
  return { answer: { status: stored.status, body: stored.body as B } }
}
