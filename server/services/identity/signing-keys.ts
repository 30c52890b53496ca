/**
 * The keys that sign access tokens, shared by all processes through the database.
 *
 * States of a key: fresh (published, so that others learn it) → signing → superseded (still verifies) → deleted.
 * A key is fresh for ten minutes unless there is no other. A process that meets an unknown key id looks at the table.
 */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto'
import { type CryptoKey, calculateJwkThumbprint, exportJWK, generateKeyPair, importJWK, type JWK } from 'jose'
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import * as store from './store.ts'

export const signingAlgorithm = 'EdDSA'

export interface SigningKeys {
  /** The key to sign with. Makes the first one. */
  signer(): Promise<{ kid: string; key: CryptoKey }>
  findPublicKey(kid: string): Promise<CryptoKey | undefined>
  /** RFC 7517 */
  jwks(): Promise<{ keys: JWK[] }>
  reload(): Promise<void>
  /** Adds a key, which takes over once it is ten minutes old. */
  rotate(): Promise<void>
  /** Replaces a key that is too old and deletes those that no token can be signed with any more. */
  maintain(): Promise<void>
  /** Called when a key is gone from the table: what it signed is void. */
  onKeyGone: () => void
}

interface Key {
  kid: string
  jwk: JWK
  publicKey: CryptoKey
  /** Undefined when it was sealed with another AUTH_SECRET. */
  privateKey: CryptoKey | undefined
  madeAtMs: number
}

const freshMs = 10 * 60_000
const keysMax = 100
/** However many unknown key ids come, the table is read for them ten times, then once a second. */
const looksMax = 10
const lookEveryMs = 1000

export function makeSigningKeys(options: {
  db: Database
  sealKey: Buffer
  keyDays: number
  sessionDays: number
  log: Log
}): SigningKeys {
  const { db, sealKey, log } = options
  let keys: Key[] = []
  let looks = looksMax
  let looksAtMs = performance.now()
  let loading: Promise<void> | undefined

  const self: SigningKeys = {
    async signer() {
      if (keys.length === 0) await reload()
      let chosen = chooseSigner(keys)
      if (!chosen) {
        await addKey()
        chosen = chooseSigner(keys)!
      }
      return { kid: chosen.kid, key: chosen.privateKey! }
    },
    async findPublicKey(kid) {
      const found = keys.find(key => key.kid === kid)
      if (found) return found.publicKey
      if (!loading && !mayLook()) return undefined
      await reload()
      return keys.find(key => key.kid === kid)?.publicKey
    },
    async jwks() {
      if (keys.length === 0) await self.signer()
      return { keys: keys.map(key => key.jwk) }
    },
    reload,
    rotate: addKey,
    async maintain() {
      await reload()
      const newest = keys.find(key => key.privateKey)
      if (!newest || Date.now() - newest.madeAtMs > options.keyDays * 86_400_000) await addKey()
      // One day more than the last token it may have signed can live.
      const deleted = await store.deleteOldSigningKeys(db, options.keyDays + options.sessionDays + 1)
      if (deleted > 0) await reload()
    },
    onKeyGone: () => {},
  }
  return self

  function mayLook(): boolean {
    const now = performance.now()
    looks = Math.min(looksMax, looks + (now - looksAtMs) / lookEveryMs)
    looksAtMs = now
    if (looks < 1) return false
    looks--
    return true
  }

  function reload(): Promise<void> {
    loading ??= load().finally(() => {
      loading = undefined
    })
    return loading
  }

  async function load() {
    const rows = await store.listSigningKeys(db, keysMax)
    const known = new Map(keys.map(key => [key.kid, key]))
    const fresh: Key[] = []
    for (const row of rows) fresh.push(known.get(row.kid) ?? (await open(row, sealKey)))
    const someAreGone = keys.some(key => !rows.some(row => row.kid === key.kid))
    const unreadable = fresh.filter(key => !key.privateKey && !known.has(key.kid)).map(key => key.kid)
    if (unreadable.length > 0) log.warn({ kids: unreadable }, 'signing keys were made with another AUTH_SECRET')
    keys = fresh
    if (someAreGone) self.onKeyGone()
  }

  async function addKey() {
    const pair = await generateKeyPair(signingAlgorithm, { extractable: true })
    const jwk = await exportJWK(pair.publicKey)
    const kid = (await calculateJwkThumbprint(jwk)).slice(0, 16)
    const sealed = seal(JSON.stringify(await exportJWK(pair.privateKey)), { key: sealKey, kid })
    await store.insertSigningKey(db, { kid, publicJwk: jwk, privateKey: sealed })
    log.info({ kid }, 'made a signing key')
    await reload()
  }
}

/** The newest that is no longer fresh; where all are, the oldest, which others have known for longest. */
function chooseSigner(keys: readonly Key[]): Key | undefined {
  const usable = keys.filter(key => key.privateKey)
  return usable.find(key => Date.now() - key.madeAtMs > freshMs) ?? usable.at(-1)
}

async function open(row: store.SigningKeyRow, sealKey: Buffer): Promise<Key> {
  const jwk = row.public_jwk as JWK
  const privateJwk = unseal(row.private_key, { key: sealKey, kid: row.kid })
  return {
    kid: row.kid,
    jwk: { ...jwk, kid: row.kid, alg: signingAlgorithm, use: 'sig' },
    publicKey: (await importJWK(jwk, signingAlgorithm)) as CryptoKey,
    privateKey:
      privateJwk === undefined ? undefined : ((await importJWK(JSON.parse(privateJwk), signingAlgorithm)) as CryptoKey),
    madeAtMs: Date.now() - row.age_seconds * 1000,
  }
}

function seal(text: string, given: { key: Buffer; kid: string }): Buffer {
  const nonce = randomBytes(12)
  const cipher = createCipheriv('aes-256-gcm', given.key, nonce).setAAD(Buffer.from(given.kid))
  const sealed = Buffer.concat([cipher.update(text, 'utf8'), cipher.final()])
  return Buffer.concat([nonce, cipher.getAuthTag(), sealed])
}

function unseal(bytes: Buffer, given: { key: Buffer; kid: string }): string | undefined {
  try {
    const decipher = createDecipheriv('aes-256-gcm', given.key, bytes.subarray(0, 12), { authTagLength: 16 })
    decipher.setAAD(Buffer.from(given.kid)).setAuthTag(bytes.subarray(12, 28))
    return Buffer.concat([decipher.update(bytes.subarray(28)), decipher.final()]).toString('utf8')
  } catch {
    return undefined
  }
}
