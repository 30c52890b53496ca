/**
 * API keys: `capk_` and 256 random bits, of which only the SHA-256 is stored. A key acts for its owner with the
 * owner's present role, within its scopes.
 */
import { createHash, createHmac, randomBytes } from 'node:crypto'
import type { Bus } from '#platform/bus.ts'
import type { Database } from '#platform/database/pool.ts'
import { errors as platformErrors } from '#platform/errors.ts'
import { uuidv7 } from '#platform/ids.ts'
import { makeRecentMap } from '#platform/recent-map.ts'
import { errors } from './errors.ts'
import * as store from './store.ts'
import { makeUseLog } from './use-log.ts'

export const apiKeyPrefix = 'capk_'

export interface ApiKeyCaller {
  userId: string
  name: string
  role: store.Role
  number: number
  by: 'api_key'
  credentialId: string
  scopes: readonly string[]
}

export interface ApiKeys {
  create(given: {
    owner: { userId: string; role: store.Role }
    name: string
    scopes: readonly string[]
    expiresInDays: number | undefined
    idempotencyKey: string | undefined
  }): Promise<{ row: store.ApiKeyRow; key: string }>
  list(given: { userId: string; beforeId: string | undefined; limit: number }): Promise<store.ApiKeyRow[]>
  /** @throws not_found */
  delete(given: { userId: string; id: string }): Promise<void>
  /** @throws unauthenticated */
  check(key: string): Promise<ApiKeyCaller>
  /** Drops what this and other processes remember of a user's keys. */
  forgetUser(userId: string): void
  flushUses(): Promise<void>
  start(): void
  stop(): void
}

/** What only an admin's key may hold. */
export const adminScopes = ['users:read', 'users:write'] as const
/** What only a banker's or an admin's key may hold. */
export const bankerScopes = ['ledger:bank'] as const

const channel = 'identity.keys'
/** A deleted key works no longer than this where the bus is silent. */
const rememberedMs = 4000
const rememberedMax = 10_000
const keysPerUser = 100
const keyPattern = /^capk_[\w-]{43}$/

interface Remembered {
  caller: ApiKeyCaller
  expiresAtMs: number
  untilMs: number
}

export function makeApiKeys(options: {
  db: Database
  bus: Bus
  /** Makes the key of a repeated request the same again, so that it need not be stored. */
  derivationKey: Buffer
  scopes: readonly string[]
  clock: () => number
}): ApiKeys {
  const { db, bus, clock } = options
  const remembered = makeRecentMap<Remembered>(rememberedMax)
  const uses = makeUseLog(batch => store.touchApiKeys(db, batch))
  let unsubscribe = () => {}

  function forget(ids: readonly string[]) {
    for (const id of ids) {
      for (const entry of remembered.values()) {
        if (entry.caller.credentialId === id || entry.caller.userId === id) entry.untilMs = 0
      }
    }
  }

  function announce(id: string) {
    forget([id])
    bus.publish(channel, [id])
  }

  async function look(hash: Buffer): Promise<Remembered> {
    const untilMs = performance.now() + rememberedMs
    const row = await store.findApiKey(db, hash)
    if (!row || row.owner_disabled) throw platformErrors.unauthenticated('There is no such API key.')
    const caller: ApiKeyCaller = {
      userId: row.user_id,
      name: row.owner_name,
      role: row.owner_role,
      number: row.owner_number,
      by: 'api_key',
      credentialId: row.id,
      // What its owner may no longer do, the key may not either.
      scopes: row.scopes.filter(scope => mayHold(row.owner_role, scope)),
    }
    return { caller, untilMs, expiresAtMs: row.expires_at?.getTime() ?? Number.POSITIVE_INFINITY }
  }

  return {
    async create({ owner, name, scopes, expiresInDays, idempotencyKey }) {
      for (const scope of scopes) {
        const isKnown = options.scopes.includes(scope) || isOneOf(adminScopes, scope)
        if (!isKnown || !mayHold(owner.role, scope)) throw errors.unknownScope(scope)
      }
      const secret = idempotencyKey
        ? createHmac('sha256', options.derivationKey).update(`${owner.userId}\n${idempotencyKey}`).digest()
        : randomBytes(32)
      const key = apiKeyPrefix + secret.toString('base64url')
      const at = new Date(clock())
      const wish = {
        id: uuidv7(),
        userId: owner.userId,
        name,
        hash: digest(key),
        hint: key.slice(0, 10),
        scopes: [...new Set(scopes)].sort(),
        expiresAt: expiresInDays === undefined ? null : new Date(at.getTime() + expiresInDays * 86_400_000),
        at,
      }
      return { row: await insertOrFind(db, wish), key }
    },
    list: given => store.listApiKeys(db, given),
    async delete(given) {
      if (!(await store.deleteApiKey(db, given))) throw platformErrors.notFound('API key')
      announce(given.id)
    },
    async check(key) {
      if (!keyPattern.test(key)) throw platformErrors.unauthenticated()
      const hash = digest(key)
      const name = hash.toString('base64')
      let entry = remembered.get(name)
      if (!entry || entry.untilMs < performance.now()) {
        remembered.delete(name)
        entry = await look(hash)
        remembered.set(name, entry)
      }
      const now = clock()
      if (entry.expiresAtMs <= now) throw platformErrors.unauthenticated('This API key has expired.')
      uses.note(entry.caller.credentialId, now)
      return entry.caller
    },
    forgetUser: announce,
    flushUses: uses.flush,
    start() {
      unsubscribe = bus.subscribe(channel, forget)
    },
    stop() {
      unsubscribe()
    },
  }
}

/** The owner's row is locked, so that the count holds. A repeated request finds what the first one made. */
async function insertOrFind(db: Database, wish: Parameters<typeof store.insertApiKey>[1]): Promise<store.ApiKeyRow> {
  return db.tx(async tx => {
    await store.lockUser(tx, wish.userId)
    const earlier = await store.findApiKey(tx, wish.hash)
    if (earlier) {
      if (!isSameWish(earlier, wish)) throw platformErrors.idempotencyMismatch()
      return earlier
    }
    if ((await store.countApiKeys(tx, wish.userId)) >= keysPerUser) throw errors.tooManyApiKeys(keysPerUser)
    return (await store.insertApiKey(tx, wish))!
  })
}

function isSameWish(row: store.ApiKeyRow, wish: Parameters<typeof store.insertApiKey>[1]): boolean {
  const days = (expiry: Date | null, from: Date) =>
    expiry && Math.round((expiry.getTime() - from.getTime()) / 86_400_000)
  return (
    row.name === wish.name &&
    row.scopes.join() === wish.scopes.join() &&
    days(row.expires_at, row.created_at) === days(wish.expiresAt, wish.at)
  )
}

function mayHold(role: store.Role, scope: string): boolean {
  if (isOneOf(adminScopes, scope)) return role === 'admin'
  if (isOneOf(bankerScopes, scope)) return role === 'banker' || role === 'admin'
  return true
}

function isOneOf(scopes: readonly string[], scope: string): boolean {
  return scopes.includes(scope)
}

function digest(key: string): Buffer {
  return createHash('sha256').update(key).digest()
}
