/**
 * Answers who makes a request. A token seen before costs a look into two maps: what it says, and whether its session
 * has ended since.
 */
import { hash } from 'node:crypto'
import type { Database } from '#platform/database/pool.ts'
import { errors as platformErrors } from '#platform/errors.ts'
import type { Caller, Credentials } from '#platform/http/guard.ts'
import { makeRecentMap } from '#platform/recent-map.ts'
import { type ApiKeys, apiKeyPrefix } from './api-keys.ts'
import { errors } from './errors.ts'
import type { Revocations } from './revocations.ts'
import * as store from './store.ts'
import type { TokenSubject, Tokens } from './tokens.ts'
import { makeUseLog } from './use-log.ts'

export const cookieName = 'Authorization'

/** A caller as this service knows it. */
export interface IdentityCaller extends Caller {
  /** The integer id that the old contracts show. */
  number: number
}

export interface Authenticator {
  authenticate(request: Credentials): Promise<IdentityCaller | undefined>
  /** Forgets every token, as when a signing key is gone. */
  forgetAll(): void
  flushUses(): Promise<void>
}

interface Remembered {
  caller: IdentityCaller
  /** When the token must be looked at again: its end, or for a session token at most an access token's life. */
  untilMs: number
}

const rememberedMax = 100_000
const safeMethods = new Set(['GET', 'HEAD', 'OPTIONS'])

export function makeAuthenticator(options: {
  db: Database
  tokens: Tokens
  revocations: Revocations
  apiKeys: ApiKeys
  accessMs: number
  publicUrl: string | undefined
  clock: () => number
}): Authenticator {
  const { db, tokens, revocations, apiKeys, clock } = options
  const publicHost = options.publicUrl === undefined ? undefined : new URL(options.publicUrl).host
  const remembered = makeRecentMap<Remembered>(rememberedMax)
  const uses = makeUseLog(batch =>
    store.touchSessions(
      db,
      batch.map(use => ({ sessionId: use.id, usedAt: use.usedAt })),
    ),
  )

  async function checkToken(token: string): Promise<IdentityCaller> {
    if (!revocations.isFresh()) await revocations.catchUp()
    const digest = hash('sha256', token, 'base64')
    const now = clock()
    let entry = remembered.get(digest)
    if (!entry || entry.untilMs <= now) {
      remembered.delete(digest)
      entry = await learn(token, now)
      remembered.set(digest, entry)
    }
    const { caller } = entry
    if (revocations.has(caller.credentialId))
      throw platformErrors.unauthenticated('This session has ended. Sign in again.')
    uses.note(caller.credentialId, now)
    return caller
  }

  async function learn(token: string, now: number): Promise<Remembered> {
    const { kind, subject, expiresAtMs } = await tokens.read(token)
    if (kind === 'access') return { caller: callerOf(subject), untilMs: expiresAtMs }
    // The list of ended sessions goes back no further than an access token lives; this token may be older.
    const signedIn = await store.findSignedInById(db, subject.sessionId)
    if (!signedIn || signedIn.session.expires_at.getTime() <= now || signedIn.user.disabled_at) {
      throw platformErrors.unauthenticated('This session has ended. Sign in again.')
    }
    return {
      caller: callerOf({ ...subject, name: signedIn.user.name, role: signedIn.user.role }),
      untilMs: Math.min(expiresAtMs, now + options.accessMs),
    }
  }

  return {
    async authenticate(request) {
      const { authorization, cookie } = request.headers
      if (authorization !== undefined) return check(bearerOf(authorization))
      const token = cookie === undefined ? undefined : tokenInCookie(cookie)
      if (token === undefined) return undefined
      assertOwnOrigin(request, publicHost)
      return check(token)
    },
    forgetAll: remembered.clear,
    flushUses: uses.flush,
  }

  function check(token: string): Promise<IdentityCaller> {
    return token.startsWith(apiKeyPrefix) ? apiKeys.check(token) : checkToken(token)
  }
}

function callerOf(subject: TokenSubject): IdentityCaller {
  const { userId, name, role, number, sessionId } = subject
  return { userId, name, role, number, by: 'session', credentialId: sessionId }
}

function bearerOf(header: string): string {
  const token = /^Bearer +([\w.~+/=-]+) *$/i.exec(header)?.[1]
  if (token === undefined) throw platformErrors.unauthenticated()
  return token
}

/** The guard runs before the cookie plugin has parsed anything. */
function tokenInCookie(header: string): string | undefined {
  for (const pair of header.split(';')) {
    const at = pair.indexOf('=')
    if (at > 0 && pair.slice(0, at).trim() === cookieName) return pair.slice(at + 1).trim() || undefined
  }
  return undefined
}

/**
 * A browser sends the cookie whoever made it ask. Where the request may change something, or opens a WebSocket, the
 * page it comes from must be ours. SameSite=Lax covers most of this; older browsers and sister domains it does not.
 */
function assertOwnOrigin(request: Credentials, publicHost: string | undefined) {
  if (safeMethods.has(request.method) && request.headers.upgrade === undefined) return
  const { origin } = request.headers
  if (origin === undefined) {
    if (request.headers['sec-fetch-site'] === 'cross-site') throw errors.crossOrigin()
    return
  }
  if (!URL.canParse(origin)) throw errors.crossOrigin()
  const { host, protocol } = new URL(origin)
  // Read as the origin is read, so that `example.com:443` and `example.com` are one. The scheme is not compared: a
  // proxy may have ended TLS.
  const ownUrl = `${protocol}//${request.host}`
  const ownHost = URL.canParse(ownUrl) ? new URL(ownUrl).host : undefined
  if (host === '' || (host !== ownHost && host !== publicHost)) throw errors.crossOrigin()
}
