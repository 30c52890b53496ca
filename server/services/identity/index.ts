import path from 'node:path'
import type { Bus } from '#platform/bus.ts'
import type { PlatformSettings } from '#platform/config.ts'
import type { Database } from '#platform/database/pool.ts'
import { messageOf } from '#platform/errors.ts'
import type { Authenticate } from '#platform/http/guard.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Log } from '#platform/log.ts'
import { makeApiKeys } from './api-keys.ts'
import { makeAuth } from './auth.ts'
import { makeAuthenticator } from './authenticator.ts'
import { addCompatRoutes } from './compat.ts'
import { type Identity, makeDecisions } from './identity.ts'
import { makeLoginLimits } from './login-limits.ts'
import { makePasswords } from './passwords.ts'
import { makeRevocations } from './revocations.ts'
import { addRoutes, makeCookies } from './routes.ts'
import { deriveKey, resolveSecret } from './secret.ts'
import type { IdentitySettings } from './settings.ts'
import { makeSigningKeys } from './signing-keys.ts'
import * as store from './store.ts'
import { makeTokens } from './tokens.ts'

export { adminScopes } from './api-keys.ts'
export type { IdentityCaller } from './authenticator.ts'
export type { Grant } from './identity.ts'
export { type IdentitySettings, identitySettings } from './settings.ts'
export type { Role, UserRow } from './store.ts'

export interface IdentityDeps {
  db: Database
  bus: Bus
  log: Log
  settings: IdentitySettings
  platform: Pick<PlatformSettings, 'NODE_ENV' | 'PUBLIC_URL' | 'DATABASE_URL' | 'IDEMPOTENCY_HOURS'>
  /** What API keys may be given, `bankerScopes` by bankers and admins alone; admins may give `adminScopes` too. */
  scopes: readonly string[]
  /** Absolute path. Holds the root secret where AUTH_SECRET does not. */
  secretsDir: string
  /** Unix milliseconds. */
  clock?: () => number
}

export interface IdentityService
  extends Pick<
    Identity,
    'createUser' | 'setRole' | 'setDisabled' | 'findUserByName' | 'getUser' | 'registerOnly' | 'login' | 'renew'
  > {
  authenticate: Authenticate
  routes(app: HttpApp): Promise<void>
  /** The old code runner's `/auth/*`. */
  compatRoutes(app: HttpApp): Promise<void>
  /** Adds a signing key, which takes over in ten minutes. */
  rotateSigningKey(): Promise<void>
  /** Loads what every request needs and follows what other processes do. Works without: slower, and by asking. */
  start(): Promise<void>
  stop(): Promise<void>
  /** Deletes what is over and replaces an old signing key, a bounded amount at once. Call it every few minutes. */
  maintain(): Promise<void>
}

const flushEveryMs = 60_000

/** @throws SettingsError when AUTH_SECRET is missing where it is needed */
export function makeIdentity(deps: IdentityDeps): IdentityService {
  const { db, bus, log, settings, platform } = deps
  const clock = deps.clock ?? Date.now
  const isProduction = platform.NODE_ENV === 'production'
  const secret = resolveSecret({
    configured: settings.AUTH_SECRET,
    mustBeConfigured: isProduction && platform.DATABASE_URL !== undefined,
    folder: path.resolve(deps.secretsDir),
  })
  const passwords = makePasswords({ mode: platform.NODE_ENV, queueMax: settings.PASSWORD_QUEUE_MAX })
  const keys = makeSigningKeys({
    db,
    sealKey: deriveKey(secret, 'signing keys'),
    keyDays: settings.SIGNING_KEY_DAYS,
    sessionDays: settings.SESSION_DAYS,
    log,
  })
  const tokens = makeTokens({ keys, issuer: settings.TOKEN_ISSUER, clock })
  const revocations = makeRevocations({ db, bus, log })
  const apiKeys = makeApiKeys({ db, bus, derivationKey: deriveKey(secret, 'API keys'), scopes: deps.scopes, clock })
  const authenticator = makeAuthenticator({
    db,
    tokens,
    revocations,
    apiKeys,
    accessMs: settings.ACCESS_TOKEN_MINUTES * 60_000,
    publicUrl: platform.PUBLIC_URL,
    clock,
  })
  keys.onKeyGone = authenticator.forgetAll
  const identity = makeDecisions({
    db,
    auth: makeAuth({
      db,
      secret: deriveKey(secret, 'better-auth').toString('base64url'),
      passwords,
      sessionDays: settings.SESSION_DAYS,
      publicUrl: platform.PUBLIC_URL,
      log,
    }),
    tokens,
    passwords,
    limits: makeLoginLimits({
      db,
      perAccount: settings.LOGIN_ATTEMPTS_PER_ACCOUNT,
      perAddress: settings.LOGIN_ATTEMPTS_PER_ADDRESS,
    }),
    revocations,
    apiKeys,
    refreshKey: deriveKey(secret, 'refresh tokens'),
    settings,
    clock,
  })
  const cookies = makeCookies({ secure: platform.PUBLIC_URL?.startsWith('https:') ?? isProduction, clock })
  let timer: NodeJS.Timeout | undefined

  /** What may fail without harm: it is tried again. */
  async function attempt(what: string, work: () => Promise<void>) {
    try {
      await work()
    } catch (error) {
      log.warn({ reason: messageOf(error) }, `${what} failed and is tried again`)
    }
  }

  async function flush() {
    await attempt('noting which sessions were used', authenticator.flushUses)
    await attempt('noting which API keys were used', apiKeys.flushUses)
    await attempt('reading the signing keys', keys.reload)
  }

  return {
    ...identity,
    authenticate: authenticator.authenticate,
    routes: app => addRoutes(app, { identity, apiKeys, authenticator, keys, cookies }),
    compatRoutes: app => addCompatRoutes(app, { identity, cookies }),
    rotateSigningKey: keys.rotate,
    async start() {
      revocations.start()
      apiKeys.start()
      timer = setInterval(() => void flush(), flushEveryMs)
      timer.unref()
      await attempt('reading the signing keys', async () => void (await keys.signer()))
      await attempt('reading which sessions ended', revocations.catchUp)
    },
    async stop() {
      clearInterval(timer)
      apiKeys.stop()
      await revocations.stop()
      await attempt('noting which sessions were used', authenticator.flushUses)
      await attempt('noting which API keys were used', apiKeys.flushUses)
    },
    async maintain() {
      const limit = 10_000
      await keys.maintain()
      await revocations.maintain()
      await store.deleteExpiredSessions(db, { before: new Date(clock()), limit })
      await store.deleteOldAttempts(db, limit)
      await store.forgetRegistrationKeys(db, { hours: platform.IDEMPOTENCY_HOURS, limit })
    },
  }
}
