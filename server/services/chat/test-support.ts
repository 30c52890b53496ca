/** Chats on a database of their own, behind HTTP and WebSockets, for callers who say by themselves who they are. */
import assert from 'node:assert/strict'
import type { AddressInfo } from 'node:net'
import { makeBus } from '#platform/bus.ts'
import { type Database, makeDatabase } from '#platform/database/pool.ts'
import type { Caller } from '#platform/http/guard.ts'
import { makeOpenRoutes } from '#platform/http/open-routes.ts'
import { makeRateLimiter } from '#platform/http/rate-limit.ts'
import { makeHttp } from '#platform/http/server.ts'
import { makeLive } from '#platform/live/live.ts'
import { silentLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { type ChatSettings, makeChatService } from './index.ts'

export interface Answer {
  status: number
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it as they need.
  body: any
  text: string
  headers: Record<string, unknown>
}

export interface TestUser {
  name: string
  caller: Caller
  get(url: string): Promise<Answer>
  post(url: string, body?: unknown, key?: string): Promise<Answer>
  put(url: string, body?: unknown): Promise<Answer>
  patch(url: string, body?: unknown): Promise<Answer>
  delete(url: string): Promise<Answer>
  /** Sends a text that must be accepted, and answers its number. */
  say(chatId: string, text: string): Promise<number>
  /** All of a chat, in order. */
  texts(chatId: string): Promise<string[]>
}

type Method = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'

interface Options {
  settings?: Partial<ChatSettings>
  openRoutes?: readonly string[]
  /** Whether messages become searchable by themselves. */
  work?: boolean
  /** How often live looks for what no wake-up told. */
  pollMs?: number
}

const defaults: ChatSettings = {
  CHAT_SENDS_PER_MINUTE: 0,
  CHAT_SENDS_PER_MINUTE_PER_CHAT: 0,
  CHAT_MEMBERS_MAX: 1000,
  CHAT_CHANGES_DAYS: 30,
}
const live = {
  LIVE_BUFFER_BYTES: 1_048_576,
  LIVE_TOPICS_MAX: 100,
  LIVE_CONNECTIONS_MAX: 20_000,
  PUBLIC_URL: undefined,
}

export type TestChat = Awaited<ReturnType<typeof makeTestChat>>
export type TestProcess = Awaited<ReturnType<typeof makeProcess>>

export async function makeTestChat(options: Options = {}) {
  const { db, url } = await makeTestDatabase({ poolMax: 10 })
  const time = { offsetMs: 0 }
  const registered = new Map<string, Caller>()
  const common = { ...options, clock: () => Date.now() + time.offsetMs, registered }
  const main = await makeProcess({ ...common, db })
  return {
    ...main,
    db,
    url,
    time,
    /** Another Capstan on the same database. */
    async another(more: Options = {}) {
      const own = makeDatabase({ url, poolMax: 8, log: silentLog, applicationName: `capstan:${process.pid}` })
      atEnd(() => own.close())
      return makeProcess({ ...common, ...more, db: own })
    },
    /** Everybody's view of the numbers: dense, and as the chats say. */
    async assertDense() {
      const { rows } = await db.query(
        `select c.id, c.last_seq, count(m.seq)::int, min(m.seq), max(m.seq) from chat.chats c
         left join chat.messages m on m.chat_id = c.id group by c.id
         having count(m.seq) <> c.last_seq or coalesce(max(m.seq), 0) <> c.last_seq`,
      )
      assert.deepEqual(rows, [])
    },
  }
}

async function makeProcess(given: Options & { db: Database; clock: () => number; registered: Map<string, Caller> }) {
  const { db, registered } = given
  const bus = makeBus({ db, redisUrl: undefined, log: silentLog })
  const metrics = makeMetrics({ processMetrics: false })
  const callerOf = (token: string) => registered.get(token)
  const authenticate = async (request: { headers: Record<string, unknown> }) =>
    callerOf(String(request.headers.authorization ?? '').replace(/^Bearer /, ''))
  const topics = makeLive({
    bus,
    log: silentLog,
    metrics,
    settings: live,
    authenticate: async token => callerOf(token),
    reauthenticate: authenticate,
    pollMs: given.pollMs ?? 2000,
  })
  const service = makeChatService({
    db,
    live: topics,
    log: silentLog,
    metrics,
    settings: { ...defaults, ...given.settings },
    identity: {
      async findUserByName(name) {
        const caller = registered.get(name.toLowerCase())
        return caller && { id: caller.userId, name: caller.name }
      },
    },
    redis: undefined,
    openRoutes: makeOpenRoutes({ OPEN_ROUTES: given.openRoutes, NODE_ENV: 'test' }),
    work: given.work ?? false,
    clock: given.clock,
  })
  const app = await makeHttp({
    settings: { BODY_LIMIT_BYTES: 1_000_000, TRUST_PROXY: false, NODE_ENV: 'test', PUBLIC_URL: undefined },
    log: silentLog,
    metrics,
    authenticate,
    rateLimiter: makeRateLimiter({ name: 'requests', points: 0, windowSeconds: 60, redis: undefined }),
    version: 'test',
  })
  await topics.routes(app)
  await service.routes(app)
  await service.compatRoutes(app)
  await bus.start()
  await topics.start()
  service.start()
  await app.listen({ port: 0, host: '127.0.0.1' })
  let closed = false
  async function close() {
    if (closed) return
    closed = true
    await topics.stop()
    await app.close()
    await service.stop()
    await bus.stop()
  }
  atEnd(close)

  async function send(
    method: Method,
    target: string,
    more: { token?: string; body?: unknown; raw?: string | Buffer; headers?: Record<string, string> } = {},
  ): Promise<Answer> {
    const payload = more.raw ?? (more.body === undefined ? undefined : JSON.stringify(more.body))
    const answer = await app.inject({
      method,
      url: target,
      headers: {
        ...(more.token === undefined ? {} : { authorization: `Bearer ${more.token}` }),
        ...(payload === undefined ? {} : { 'content-type': 'application/json' }),
        ...more.headers,
      },
      ...(payload === undefined ? {} : { payload }),
    })
    const isJson = /json/.test(String(answer.headers['content-type']))
    return {
      status: answer.statusCode,
      body: isJson ? JSON.parse(answer.body) : undefined,
      text: answer.body,
      headers: answer.headers,
    }
  }

  /** A registered user; the same one in all processes. */
  function user(name: string, scopes?: string[]): TestUser {
    const token = name.toLowerCase()
    const base: Caller = { userId: `id-of-${token}`, name, role: 'user', by: 'session', credentialId: '' }
    const caller = registered.get(token) ?? (scopes ? { ...base, scopes } : base)
    registered.set(token, caller)
    const self: TestUser = {
      name,
      caller,
      get: url => send('GET', url, { token }),
      post: (url, body, key) =>
        send('POST', url, { token, body, ...(key ? { headers: { 'idempotency-key': key } } : {}) }),
      put: (url, body) => send('PUT', url, { token, body }),
      patch: (url, body) => send('PATCH', url, { token, body }),
      delete: url => send('DELETE', url, { token }),
      async say(chatId, text) {
        const { status, body, text: shown } = await self.post(`/v1/chats/${chatId}/messages`, { text })
        assert.equal(status, 201, shown)
        return body.seq
      },
      async texts(chatId) {
        const found: string[] = []
        for (let after: number | null = 0; after !== null; ) {
          const { status, body, text } = await self.get(`/v1/chats/${chatId}/messages?after=${after}&limit=500`)
          assert.equal(status, 200, text)
          found.push(...body.messages.map((message: { text: string }) => message.text))
          after = body.after
        }
        return found
      },
    }
    return self
  }

  /** A room of users, the first of them its owner. */
  async function room(members: readonly TestUser[], options: { name?: string; open?: boolean } = {}): Promise<string> {
    const [owner, ...others] = members
    const body = { kind: 'room', name: 'Harbour', ...options, members: others.map(other => other.name) }
    const made = await owner!.post('/v1/chats', body)
    assert.equal(made.status, 201, made.text)
    return made.body.id
  }

  async function direct(one: TestUser, other: TestUser): Promise<string> {
    const made = await one.post('/v1/chats', { kind: 'direct', with: other.name })
    assert.ok(made.status === 200 || made.status === 201, made.text)
    return made.body.id
  }

  const { port } = app.server.address() as AddressInfo
  return { service, app, live: topics, metrics, host: `127.0.0.1:${port}`, send, user, room, direct, close }
}
