/**
 * Three kinds of token.
 *
 * access   A JWT of minutes, for `Authorization: Bearer`. `aud` is `capstan`: other services may verify it with the
 *          published keys.
 * session  A JWT that lives as long as the session, for the browser's cookie. Its `aud` is `capstan:session`, so that
 *          who verifies access tokens elsewhere, and hears of no revocation, does not take it.
 * refresh  `capr_` and 52 bytes: the session's id, a generation and an HMAC over both and the session's secret.
 *          Nothing of it is stored; the session's row says which generation is the newest.
 */
import { createHmac, timingSafeEqual } from 'node:crypto'
import { type CryptoKey, type JWTVerifyResult, errors as joseErrors, jwtVerify, SignJWT } from 'jose'
import { errors as platformErrors } from '#platform/errors.ts'
import { userRoles } from '#platform/http/guard.ts'
import { isId } from './names.ts'
import { type SigningKeys, signingAlgorithm } from './signing-keys.ts'
import type { Role } from './store.ts'

export type JwtKind = 'access' | 'session'

export interface TokenSubject {
  userId: string
  sessionId: string
  name: string
  role: Role
  number: number
}

export interface Tokens {
  issue(kind: JwtKind, subject: TokenSubject, expiresAtMs: number): Promise<string>
  /** @throws unauthenticated for anything but a token of ours that still lives */
  read(token: string): Promise<{ kind: JwtKind; subject: TokenSubject; expiresAtMs: number }>
}

const types = { access: 'at+jwt', session: 'session+jwt' } as const
const audiences = { access: 'capstan', session: 'capstan:session' } as const
const tokenLengthMax = 4096

export function makeTokens(options: { keys: SigningKeys; issuer: string; clock: () => number }): Tokens {
  const { keys, issuer, clock } = options

  async function findKey(header: { kid?: string }): Promise<CryptoKey> {
    const key = header.kid === undefined ? undefined : await keys.findPublicKey(header.kid)
    if (!key) throw platformErrors.unauthenticated('This token was not signed here.')
    return key
  }

  return {
    async issue(kind, subject, expiresAtMs) {
      const { kid, key } = await keys.signer()
      return new SignJWT({ sid: subject.sessionId, name: subject.name, role: subject.role, num: subject.number })
        .setProtectedHeader({ alg: signingAlgorithm, kid, typ: types[kind] })
        .setIssuer(issuer)
        .setAudience(audiences[kind])
        .setSubject(subject.userId)
        .setIssuedAt(Math.floor(clock() / 1000))
        .setExpirationTime(Math.floor(expiresAtMs / 1000))
        .sign(key)
    },
    async read(token) {
      if (token.length > tokenLengthMax) throw platformErrors.unauthenticated()
      try {
        const verified = await jwtVerify(token, findKey, {
          algorithms: [signingAlgorithm],
          issuer,
          audience: Object.values(audiences),
          requiredClaims: ['exp'],
          currentDate: new Date(clock()),
        })
        return understand(verified)
      } catch (error) {
        throw translate(error)
      }
    },
  }
}

function understand({ payload, protectedHeader }: JWTVerifyResult) {
  const kind = (['access', 'session'] as const).find(
    each => types[each] === protectedHeader.typ && audiences[each] === payload.aud,
  )
  const { sub, sid, name, role, num } = payload
  const isOurs = kind && isId(sub) && isId(sid) && typeof name === 'string' && typeof num === 'number'
  if (!isOurs || !userRoles.some(known => known === role)) throw platformErrors.unauthenticated()
  return {
    kind,
    subject: { userId: sub, sessionId: sid, name, role: role as Role, number: num },
    expiresAtMs: payload.exp! * 1000,
  }
}

/** What the library says of a token becomes a 401; a database that is away stays what it is. */
function translate(error: unknown): unknown {
  if (error instanceof joseErrors.JWTExpired) return platformErrors.unauthenticated('The token has expired. Renew it.')
  if (error instanceof joseErrors.JOSEError) return platformErrors.unauthenticated()
  return error
}

const refreshPrefix = 'capr_'

export interface RefreshToken {
  sessionId: string
  generation: number
  mac: Buffer
}

export function writeRefreshToken(
  key: Buffer,
  given: { sessionId: string; generation: number; sessionSecret: string },
) {
  const head = Buffer.alloc(20)
  head.write(given.sessionId.replaceAll('-', ''), 'hex')
  head.writeUInt32BE(given.generation, 16)
  const mac = createHmac('sha256', key).update(head).update(given.sessionSecret).digest()
  return refreshPrefix + Buffer.concat([head, mac]).toString('base64url')
}

/** Undefined for what cannot be one. Whether it is genuine says `isGenuine`. */
export function parseRefreshToken(token: string): RefreshToken | undefined {
  if (!token.startsWith(refreshPrefix) || token.length !== refreshPrefix.length + 70) return undefined
  const bytes = Buffer.from(token.slice(refreshPrefix.length), 'base64url')
  if (bytes.length !== 52) return undefined
  const hex = bytes.toString('hex', 0, 16)
  const sessionId = [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-')
  return { sessionId, generation: bytes.readUInt32BE(16), mac: bytes.subarray(20) }
}

export function isGenuine(key: Buffer, token: RefreshToken, sessionSecret: string): boolean {
  const right = parseRefreshToken(
    writeRefreshToken(key, { sessionId: token.sessionId, generation: token.generation, sessionSecret }),
  )!
  return timingSafeEqual(token.mac, right.mac)
}
