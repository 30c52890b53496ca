import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { LightMyRequestResponse } from 'fastify'
import { type Bus, makeBus } from '#platform/bus.ts'
import { readSettings } from '#platform/config.ts'
import { makeRateLimiter } from '#platform/http/rate-limit.ts'
import { type HttpApp, makeHttp } from '#platform/http/server.ts'
import { type Log, silentLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import type { TestDatabase } from '../../../test/support/database.ts'
import { type IdentityDeps, type IdentityService, identitySettings, makeIdentity } from './index.ts'

export const testScopes = ['runs:read', 'runs:write']
export const testSecret = 'a secret of tests, long enough to be one'
const secretsDir = mkdtempSync(path.join(tmpdir(), 'capstan-identity-'))
atEnd(() => rmSync(secretsDir, { recursive: true, force: true }))

/** A bus that carries nothing, as when NOTIFY and Redis are both broken. */
export const silentBus: Bus = {
  publish: () => {},
  subscribe: () => () => {},
  onGap: () => () => {},
  start: async () => {},
  stop: async () => {},
}

export interface TestServer {
  app: HttpApp
  identity: IdentityService
  /** POST with a JSON body. */
  post(url: string, body: unknown, headers?: Record<string, string>): Promise<LightMyRequestResponse>
  call(method: 'GET' | 'DELETE' | 'POST', url: string, token?: string): Promise<LightMyRequestResponse>
}

/** One process's worth of identity behind HTTP. */
export async function makeTestServer(
  database: TestDatabase,
  options: {
    environment?: Record<string, string>
    mode?: 'test' | 'development' | 'production'
    publicUrl?: string
    clock?: () => number
    withoutBus?: boolean
    log?: Log
    started?: boolean
    scopes?: readonly string[]
  } = {},
): Promise<TestServer> {
  const log = options.log ?? silentLog
  const bus = options.withoutBus ? silentBus : makeBus({ db: database.db, redisUrl: undefined, log: silentLog })
  await bus.start()
  const deps: IdentityDeps = {
    db: database.db,
    bus,
    log,
    settings: readSettings(identitySettings, { AUTH_SECRET: testSecret, ...options.environment }),
    platform: {
      NODE_ENV: options.mode ?? 'test',
      PUBLIC_URL: options.publicUrl,
      DATABASE_URL: database.url,
      IDEMPOTENCY_HOURS: 24,
    },
    scopes: options.scopes ?? testScopes,
    secretsDir,
    clock: options.clock,
  }
  const identity = makeIdentity(deps)
  const app = await makeHttp({
    settings: { BODY_LIMIT_BYTES: 1_048_576, TRUST_PROXY: false, NODE_ENV: 'test', PUBLIC_URL: options.publicUrl },
    log,
    metrics: makeMetrics({ processMetrics: false }),
    authenticate: identity.authenticate,
    rateLimiter: makeRateLimiter({ name: 'test', points: 0, windowSeconds: 60, redis: undefined }),
    version: '0.0.0',
  })
  await identity.routes(app)
  await identity.compatRoutes(app)
  if (options.started ?? true) await identity.start()
  atEnd(async () => {
    await identity.stop()
    await app.close()
    await bus.stop()
  })
  return {
    app,
    identity,
    post: (url, body, headers = {}) =>
      app.inject({
        method: 'POST',
        url,
        headers: { 'content-type': 'application/json', ...headers },
        payload: typeof body === 'string' ? body : JSON.stringify(body),
      }),
    call: (method, url, token) =>
      app.inject({ method, url, headers: token === undefined ? {} : { authorization: `Bearer ${token}` } }),
  }
}

export const bearer = (token: string) => ({ authorization: `Bearer ${token}` })

let names = 0
/** A name nobody has yet. */
export function freshName(): string {
  return `user-${process.pid}-${++names}`
}

export interface SignedUp {
  id: string
  username: string
  password: string
  token: string
  refreshToken: string
  sessionId: string
  cookie: string
}

export async function signUp(server: TestServer, given: { username?: string; email?: string } = {}): Promise<SignedUp> {
  const username = given.username ?? freshName()
  const password = 'correct horse'
  const answer = await server.post('/v1/auth/register', {
    username,
    password,
    ...(given.email ? { email: given.email } : {}),
  })
  if (answer.statusCode !== 201) throw new Error(`Registering ${username} failed: ${answer.body}`)
  const body = answer.json()
  return {
    id: body.user.id,
    username,
    password,
    token: body.access_token,
    refreshToken: body.refresh_token,
    sessionId: body.session_id,
    cookie: cookieIn(answer),
  }
}

export function cookieIn(answer: LightMyRequestResponse): string {
  const header = answer.headers['set-cookie']
  return String(Array.isArray(header) ? header[0] : header).split(';')[0]!
}

/** Asks again until the answer is as wished. */
export async function eventually<T>(
  ask: () => Promise<T>,
  isRight: (answer: T) => boolean,
  withinMs = 5000,
): Promise<number> {
  const start = performance.now()
  for (;;) {
    const answer = await ask()
    if (isRight(answer)) return performance.now() - start
    if (performance.now() - start > withinMs) throw new Error(`Not within ${withinMs} ms.`)
    await new Promise(resolve => setImmediate(resolve))
  }
}
