/** What live's tests stand on: a source over a real table, an instance of the platform, and clients. */
import { EventEmitter, once } from 'node:events'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import { after } from 'node:test'
import { WebSocket } from 'ws'
import { type Bus, makeBus } from '../bus.ts'
import type { Database } from '../database/pool.ts'
import { errors } from '../errors.ts'
import type { Caller, Credentials } from '../http/guard.ts'
import { makeHttp } from '../http/server.ts'
import { silentLog } from '../log.ts'
import { makeMetrics } from '../metrics.ts'
import { type Live, type LiveOptions, makeLive } from './live.ts'
import type { LiveCall, LiveEvent, TopicSource } from './source.ts'

export interface TestSource extends TopicSource {
  /** Commits events with the next numbers and answers the last one. Does not wake. */
  append(
    id: string,
    events: number | { data: unknown; ends?: string[] }[],
    options?: { final?: boolean },
  ): Promise<number>
  /** Users who may not follow, as `user id`. */
  readonly denied: Set<string>
  reads: number
  headCalls: number
}

export async function makeTestSource(db: Database, kind = 'runs'): Promise<TestSource> {
  await db.query('create schema if not exists livetest')
  await db.query(`create table livetest.${kind} (id text primary key, head int not null)`)
  await db.query(`create table livetest.${kind}_events (id text not null, seq int not null, data jsonb, final bool not null,
    ends text[], primary key (id, seq))`)
  const denied = new Set<string>()
  const source: TestSource = {
    kind,
    denied,
    reads: 0,
    headCalls: 0,
    async authorize(caller, id) {
      if (id.startsWith('missing')) throw errors.notFound('Run')
      if (denied.has(`${caller.userId} ${id}`)) throw errors.forbidden('This run is not yours.')
    },
    async read(id, after, limit) {
      source.reads++
      const { rows } = await db.query<{ seq: number; data: unknown; final: boolean; ends: string[] | null }>(
        `select seq, data, final, ends from livetest.${kind}_events where id = $1 and seq > $2 order by seq limit $3`,
        [id, after, limit],
      )
      return rows.map(row => ({
        seq: row.seq,
        type: 'output',
        data: row.data,
        ...(row.final ? { final: true } : {}),
        ...(row.ends ? { ends: row.ends } : {}),
      }))
    },
    async heads(ids) {
      source.headCalls++
      const { rows } = await db.query<{ id: string; head: number }>(
        `select id, head from livetest.${kind} where id = any($1)`,
        [ids],
      )
      return new Map(rows.map(row => [row.id, row.head]))
    },
    append: (id, events, options = {}) =>
      db.tx(async tx => {
        const list: { data: unknown; ends?: string[] }[] =
          typeof events === 'number' ? Array.from({ length: events }, () => ({ data: {} })) : events
        const { rows } = await tx.query<{ head: number }>(
          `insert into livetest.${kind} values ($1, $2) on conflict (id) do update set head = ${kind}.head + $2
           returning head`,
          [id, list.length],
        )
        const head = rows[0]!.head
        await tx.query(
          `insert into livetest.${kind}_events
           select $1, $2 + at, event->'data', $4 and at = $5, string_to_array(event->>'ends', ' ')
           from jsonb_array_elements($3::jsonb) with ordinality as e(event, at)`,
          [
            id,
            head - list.length,
            JSON.stringify(list.map(event => ({ data: event.data, ends: event.ends?.join(' ') }))),
            options.final ?? false,
            list.length,
          ],
        )
        return head
      }),
  }
  return source
}

/** Tokens and whom they stand for; take one out to revoke it. */
export const tokens = new Map<string, Caller>()

export function addUser(name: string): string {
  tokens.set(name, { userId: name, name, role: 'user', by: 'session', credentialId: `${name}-session` })
  return name
}

async function authenticateToken(token: string): Promise<Caller | undefined> {
  return tokens.get(token)
}

async function authenticateRequest(request: Credentials): Promise<Caller | undefined> {
  const token =
    request.headers.authorization?.replace(/^Bearer /, '') ??
    /\bAuthorization=(\w+)/.exec(request.headers.cookie ?? '')?.[1]
  if (token === undefined) return undefined
  const caller = tokens.get(token)
  if (!caller) throw errors.unauthenticated()
  return caller
}

export interface Instance {
  live: Live
  bus: Bus
  app: Awaited<ReturnType<typeof makeHttp>>
  metrics: ReturnType<typeof makeMetrics>
  /** `127.0.0.1:port` */
  host: string
  close(): Promise<void>
}

export async function makeInstance(given: {
  db: Database
  sources: TopicSource[]
  calls?: LiveCall[]
  bus?: Bus
  settings?: Partial<LiveOptions['settings']>
  options?: Partial<LiveOptions>
}): Promise<Instance> {
  const log = silentLog
  const bus = given.bus ?? makeBus({ db: given.db, redisUrl: undefined, log })
  const metrics = makeMetrics({ processMetrics: false })
  const live = makeLive({
    bus,
    log,
    metrics,
    settings: {
      LIVE_BUFFER_BYTES: 1_048_576,
      LIVE_TOPICS_MAX: 100,
      LIVE_CONNECTIONS_MAX: 20_000,
      PUBLIC_URL: undefined,
      ...given.settings,
    },
    authenticate: authenticateToken,
    reauthenticate: authenticateRequest,
    ...given.options,
  })
  for (const source of given.sources) live.addSource(source)
  for (const call of given.calls ?? []) live.addCall(call)
  const app = await makeHttp({
    settings: { BODY_LIMIT_BYTES: 65_536, TRUST_PROXY: false, NODE_ENV: 'test', PUBLIC_URL: undefined },
    log,
    metrics,
    authenticate: authenticateRequest,
    rateLimiter: { take: async () => {}, reset: async () => {} },
    version: '0',
  })
  await live.routes(app)
  await bus.start()
  await live.start()
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  const close = async () => {
    await live.stop()
    await app.close()
    await bus.stop()
  }
  after(close)
  return { live, bus, app, metrics, host: `127.0.0.1:${port}`, close }
}

/** A bus that carries nothing, not even inside the process. */
export function makeDeafBus(): Bus {
  return {
    publish() {},
    subscribe: () => () => {},
    onGap: () => () => {},
    async start() {},
    async stop() {},
  }
}

// biome-ignore lint/suspicious/noExplicitAny: frames are looked at field by field
type Frame = any

/** A WebSocket client that keeps every frame it is sent. */
export class TestClient extends EventEmitter {
  readonly socket: WebSocket
  readonly frames: Frame[] = []
  /** Events of all topics, in the order in which they came. */
  readonly events: LiveEvent[] = []
  closed: { code: number; reason: string } | undefined

  constructor(host: string, options: { token?: string; headers?: Record<string, string> } = {}) {
    super()
    this.setMaxListeners(0)
    const headers = { ...(options.token ? { authorization: `Bearer ${options.token}` } : {}), ...options.headers }
    this.socket = new WebSocket(`ws://${host}/v1/live`, { headers, perMessageDeflate: false })
    this.socket.on('message', data => {
      const frame: Frame = JSON.parse(String(data))
      this.frames.push(frame)
      if (frame.type === 'events') this.events.push(...frame.events)
      this.emit('change')
    })
    this.socket.on('error', () => {})
    this.socket.on('close', (code, reason) => {
      this.closed = { code, reason: String(reason) }
      this.emit('change')
    })
  }

  static async connect(host: string, options: { token?: string; headers?: Record<string, string> } = {}) {
    const client = new TestClient(host, options)
    await client.frame('ready')
    return client
  }

  send(frame: unknown) {
    this.socket.send(typeof frame === 'string' || Buffer.isBuffer(frame) ? frame : JSON.stringify(frame))
  }

  /** Resolves when `seen` is true of what has come. */
  async until(seen: () => boolean, what: string) {
    while (!seen()) {
      if (this.closed) {
        throw new Error(
          `closed (${JSON.stringify(this.closed)}) before: ${what}; ${JSON.stringify(this.frames.at(-1))}`,
        )
      }
      await once(this, 'change')
    }
  }

  /** The first frame of a type, and of a topic where one is given. */
  async frame(type: string, topic?: string): Promise<Frame> {
    const find = () => this.frames.find(frame => frame.type === type && (!topic || frame.topic === topic))
    await this.until(() => find() !== undefined, `a frame ${type}`)
    return find()
  }

  /** What a frame is answered with. */
  async ask(frame: unknown): Promise<Frame> {
    const at = this.frames.length
    this.send(frame)
    await this.until(() => this.frames.length > at, `an answer to ${String(frame).slice(0, 80)}`)
    return this.frames[at]
  }

  async toClose(): Promise<{ code: number; reason: string }> {
    while (!this.closed) await once(this, 'change')
    return this.closed
  }

  async drop() {
    this.socket.terminate()
    await this.toClose()
  }
}

export interface StreamAnswer {
  status: number
  headers: http.IncomingHttpHeaders
  /** Everything received so far. */
  text: string
  ended: boolean
  events: { id: string; event: string; data: Frame }[]
  until(seen: () => boolean): Promise<void>
  drop(): void
  response: http.IncomingMessage
}

/** Opens an event stream, or any answer to a GET. */
export async function openStream(
  host: string,
  path: string,
  headers: Record<string, string> = {},
): Promise<StreamAnswer> {
  const request = http.get(`http://${host}${path}`, { headers, agent: false })
  const [response] = (await once(request, 'response')) as [http.IncomingMessage]
  const changes = new EventEmitter()
  const answer: StreamAnswer = {
    status: response.statusCode!,
    headers: response.headers,
    text: '',
    ended: false,
    events: [],
    response,
    async until(seen) {
      while (!seen()) {
        if (answer.ended) throw new Error(`the stream ended first: ${answer.text.slice(-200)}`)
        await once(changes, 'change')
      }
    },
    drop: () => request.destroy(),
  }
  let rest = ''
  response.setEncoding('utf8')
  response.on('data', (piece: string) => {
    answer.text += piece
    const blocks = (rest + piece).split('\n\n')
    rest = blocks.pop()!
    for (const block of blocks) {
      const fields = Object.fromEntries(
        block.split('\n').map(line => [line.split(': ')[0], line.replace(/^\w+: /, '')]),
      )
      if (fields.data) answer.events.push({ id: fields.id!, event: fields.event!, data: JSON.parse(fields.data) })
    }
    changes.emit('change')
  })
  response.on('error', () => {})
  response.on('close', () => {
    answer.ended = true
    changes.emit('change')
  })
  return answer
}

/** Waits, a turn of the event loop at a time, for what gives no sign. */
export async function eventually(seen: () => boolean | Promise<boolean>, what: string) {
  const deadline = performance.now() + 20_000
  while (!(await seen())) {
    if (performance.now() > deadline) throw new Error(`never: ${what}`)
    await new Promise(resolve => setImmediate(resolve))
  }
}

/** 1, 2, …, n. */
export function upTo(n: number): number[] {
  return Array.from({ length: n }, (_, index) => index + 1)
}

export function seqs(events: readonly { seq: number }[]): number[] {
  return events.map(event => event.seq)
}
