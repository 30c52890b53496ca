import { hash } from 'node:crypto'
import type { IdempotencyKey } from '#platform/http/idempotency.ts'
import type { StoredKey } from './types.ts'

/** Two halves of SHA-256: 128 bits are enough to tell any two keys apart, and as uuids they take a third of the space. */
const hexChars = 32

export function toStoredKey(key: IdempotencyKey | undefined): StoredKey | null {
  if (!key) return null
  return { id: digest(`${key.owner}\n${key.key}`), fingerprint: key.fingerprint.toString('hex', 0, hexChars / 2) }
}

/** The key of one line of a batch: its own, or its place under the key of the whole. */
export function lineKey(given: {
  owner: string
  ownKey: string | undefined
  batchKey: string | undefined
  index: number
  line: unknown
}): StoredKey | null {
  const { owner, ownKey, batchKey, index, line } = given
  if (ownKey === undefined && batchKey === undefined) return null
  // A header cannot hold a line feed, so no key is taken for the place of another.
  const name = ownKey === undefined ? `${batchKey}\n${index}` : ownKey
  return { id: digest(`${owner}\n${name}`), fingerprint: digest(`line\n${JSON.stringify(line)}`) }
}

function digest(text: string): string {
  return hash('sha256', text, 'hex').slice(0, hexChars)
}
