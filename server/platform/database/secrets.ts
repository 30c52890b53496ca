/** Keys that Capstan makes for itself, and that all processes of a database share. */
import { randomBytes } from 'node:crypto'
import type { Queryable } from './pool.ts'

/**
 * The secret of that name, made by whoever asks first.
 * @param given name, such as `images.links`; bytes, of which a new one has so many
 */
export async function ensureSecret(db: Queryable, given: { name: string; bytes: number }): Promise<Buffer> {
  await db.query(`insert into platform.secrets (name, value) values ($1, $2) on conflict do nothing`, [
    given.name,
    randomBytes(given.bytes),
  ])
  const { rows } = await db.query<{ value: Buffer }>(`select value from platform.secrets where name = $1`, [given.name])
  return rows[0]!.value
}
