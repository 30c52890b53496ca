/**
 * Topics that can be followed as they change, over WebSocket and as event streams. Nothing is carried here: the
 * events are rows of the services' own tables, numbered without a gap; a wake-up says only that there are more. So
 * whatever is lost on the way (a wake-up, a connection, this process), whoever comes back with the last number that
 * was seen misses nothing and gets nothing twice.
 *
 * Two things besides have no number and are kept nowhere: signals, and who is present.
 *
 * source.ts what a service gives · topics.ts which topics this process follows · hub.ts one of them ·
 * websocket.ts, sse.ts one client · calls.ts what a client asks for · roster.ts all clients ·
 * presence.ts, rooms.ts who is there · protocol.ts, batch.ts what goes over the wire
 */
import type { FastifyReply } from 'fastify'
import { Type } from 'typebox'
import type { Bus } from '../bus.ts'
import type { PlatformSettings } from '../config.ts'
import type { Authenticate, Caller } from '../http/guard.ts'
import type { RateLimiter } from '../http/rate-limit.ts'
import type { HttpApp } from '../http/server.ts'
import type { Log } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import { type Calls, makeCalls } from './calls.ts'
import { errors } from './errors.ts'
import { makeRoster, type Roster } from './roster.ts'
import type { LiveCall, LiveEvent, LiveSignal, TopicSource } from './source.ts'
import { answerStream, type StreamDeps } from './sse.ts'
import { makeTopics, type PresenceTimes, type Topics } from './topics.ts'
import { admitHandshake, openConnection, type SocketDeps } from './websocket.ts'

export type { LiveCall, LiveEvent, LiveSignal, TopicSource } from './source.ts'

export interface Live {
  /** Before `start`, once a kind. */
  addSource(source: TopicSource): void
  /** Before `start`, once a name. */
  addCall(call: LiveCall): void
  /** Call it after the commit, with topics `<kind>/<id>`. Never throws. Only wakes, in all processes. */
  wake(topics: readonly string[]): void
  /** Asks again at once, in all processes, whether each follower may still follow these: a membership has ended. */
  recheck(topics: readonly string[]): void
  /**
   * Tells those who follow the topic just now, in all processes, and keeps it nowhere. Best effort: it may be lost,
   * and never waits. Never throws; what is longer than 1 KB as JSON is not sent.
   * @param options.except the id of a user who is not told: the one it comes from
   */
  signal(topic: string, signal: LiveSignal, options?: { except?: string }): void
  /** Who follows the topic just now, in any process, sorted; for sources with `presence`. As far as is known here. */
  present(topic: string): string[]
  /**
   * Follows a topic inside this process: calls back with events in order, none missed, none twice, from above
   * `after` on, never before it has returned. Whether the caller may is the service's to ask. Returns the way to stop.
   * @throws bad_topic, unknown_topic
   */
  follow(topic: string, after: number, listener: (events: LiveEvent[]) => void): () => void
  /** Adds `GET /v1/live` (WebSocket) and `GET /v1/live/events`. */
  routes(app: HttpApp): Promise<void>
  start(): Promise<void>
  /**
   * Tells all clients that the server stops, closes their connections and resolves when all are gone. The HTTP
   * server's own close waits for it, as streams are requests that do not end by themselves.
   */
  stop(): Promise<void>
  /** Clients connected to this process. */
  readonly connections: number
}

export interface LiveOptions {
  bus: Bus
  log: Log
  metrics: Metrics
  settings: Pick<PlatformSettings, 'LIVE_BUFFER_BYTES' | 'LIVE_TOPICS_MAX' | 'LIVE_CONNECTIONS_MAX' | 'PUBLIC_URL'>
  /** For a token that comes in an `auth` frame. */
  authenticate: (token: string) => Promise<Caller | undefined>
  /** For a request whose connection is still open; asked every `checkMs`, so it must see a revocation soon. */
  reauthenticate: Authenticate
  /** Counts calls, by the caller's id, as the HTTP server counts requests. Without it they are not counted. */
  rateLimiter?: RateLimiter
  presence?: PresenceTimes
  /** How often the sources are asked for what no wake-up told. */
  pollMs?: number
  /** How often a connection's credential is checked; three of these between heartbeats of a stream, five between pings. */
  checkMs?: number
  /** How long a client may take to send `auth`. */
  authMs?: number
  /** How long a client that was told to go may take. */
  leaveMs?: number
}

export function makeLive(options: LiveOptions): Live {
  const { bus, log, settings, pollMs = 2000, checkMs = 5000, authMs = 10_000, leaveMs = 5000 } = options
  const topics = makeTopics({ bus, log, pollMs, presence: options.presence ?? {} })
  const roster = makeRoster({ connectionsMax: settings.LIVE_CONNECTIONS_MAX, checkMs, leaveMs, log })
  const count = makeCounters(options.metrics, topics, roster)
  const calls = makeCalls({ limiter: options.rateLimiter, log, onAnswered: countCalls(options.metrics) })
  const common = {
    topics,
    roster,
    log,
    reauthenticate: options.reauthenticate,
    bufferBytes: settings.LIVE_BUFFER_BYTES,
    topicsMax: settings.LIVE_TOPICS_MAX,
  }
  const socketDeps: SocketDeps = {
    ...common,
    ...count('websocket'),
    calls,
    authenticate: options.authenticate,
    publicUrl: settings.PUBLIC_URL,
    authMs,
    leaveMs,
  }
  const streamDeps: StreamDeps = { ...common, ...count('sse') }

  return {
    addSource: topics.addSource,
    addCall: calls.add,
    signal: topics.signal,
    present: topics.present,
    wake: topics.wake,
    recheck: topics.recheck,
    follow: (topic, after, listener) =>
      topics.follow(topic, after, { take: batch => listener(batch.items.map(item => item.event)) }),
    async routes(app) {
      addSocketRoute(app, socketDeps)
      addStreamRoute(app, streamDeps)
    },
    async start() {
      topics.start()
      roster.start()
    },
    async stop() {
      await roster.stop()
      topics.stop()
    },
    get connections() {
      return roster.size
    },
  }
}

function makeCounters(metrics: Metrics, topics: Topics, roster: Roster) {
  metrics.gauge('live_connections', 'Live clients connected.', ['transport'], gauge => {
    for (const transport of ['websocket', 'sse'] as const) gauge.set({ transport }, roster.count(transport))
  })
  metrics.gauge('live_topics', 'Topics followed in this process.', [], gauge => gauge.set(topics.size))
  const delivered = metrics.counter('live_events_delivered', 'Events handed to live clients.', ['transport'])
  const slow = metrics.counter('live_slow_closed', 'Live clients cut off because they read too slowly.', ['transport'])
  return (transport: 'websocket' | 'sse') => ({
    onDelivered: gather(events => delivered.inc({ transport }, events)),
    onSlow: () => slow.inc({ transport }),
  })
}

/** Adds up what is counted in one turn of the event loop: a metric costs more than a small delivery. */
function gather(add: (sum: number) => void): (count: number) => void {
  let sum = 0
  return count => {
    if (sum === 0) {
      setImmediate(() => {
        add(sum)
        sum = 0
      })
    }
    sum += count
  }
}

function countCalls(metrics: Metrics): Calls['onAnswered'] {
  const answered = metrics.counter('live_calls', 'Calls over WebSockets answered.', ['call', 'outcome'])
  return (call, outcome) => answered.inc({ call, outcome })
}

function addSocketRoute(app: HttpApp, deps: SocketDeps) {
  app.route({
    method: 'GET',
    url: '/v1/live',
    exposeHeadRoute: false,
    config: { access: 'optional' },
    schema: {
      summary: 'Follow topics over a WebSocket',
      description:
        'Frames are JSON texts. Send `{"type":"auth","token"}` first where no credential came with the handshake, then ' +
        '`{"type":"subscribe","topic","after"}` with the last number you have (0: everything), ' +
        '`{"type":"unsubscribe","topic"}`, `{"type":"call","id","call","params"}`, `{"type":"ping"}`. You are sent ' +
        '`ready`, `subscribed` (`seq` is the newest number), `events`, `signal` (not kept), `complete` (the final event ' +
        'was sent), `results` (of calls, by their ids), `error`, `pong` and `closing`. Close codes: 1001 the ' +
        'server stops, 1009 a frame was too large, 4001 the credential is missing or has ended, 4008 you read too ' +
        'slowly, 4029 too many frames. Connecting again with your last numbers misses nothing.',
      tags: ['live'],
      response: { 101: { type: 'null', description: 'The connection is a WebSocket now.' } },
    },
    preHandler: async request => {
      if (!request.ws) throw errors.upgradeRequired()
      admitHandshake(deps, request)
    },
    // A handshake refused by the guard, which comes before the plugin's hooks, would leave its socket open for ever.
    onResponse: async request => {
      if (request.headers.upgrade !== undefined) request.raw.socket.destroy()
    },
    handler: async () => {
      throw errors.upgradeRequired()
    },
    wsHandler: (socket, request) => openConnection(deps, socket, request),
  })
}

function addStreamRoute(app: HttpApp, deps: StreamDeps) {
  app.route({
    method: 'GET',
    url: '/v1/live/events',
    exposeHeadRoute: false,
    config: { access: 'user', isStream: true },
    schema: {
      summary: 'Follow topics as an event stream (SSE)',
      description:
        'Each event’s `id` is the positions of all topics, in the order of the query, joined by `.`; an EventSource ' +
        'sends it back by itself. When every topic has ended so does the stream, and coming back to it answers 204.',
      tags: ['live'],
      querystring: Type.Object({
        topic: Type.Array(Type.String({ maxLength: 200, description: '`<kind>/<id>`' }), {
          minItems: 1,
          description: 'The topics to follow; may be given several times.',
        }),
        after: Type.Optional(
          Type.String({
            maxLength: 4000,
            description: 'The last numbers you have, one a topic, joined by `.` or `,`. Without it: everything.',
          }),
        ),
      }),
      response: {
        200: {
          description: 'Events: `event` is their type, `data` is `{"topic","seq","type","data"}`.',
          content: { 'text/event-stream': { schema: Type.String() } },
        },
        204: { type: 'null', description: 'All topics have ended and you have everything.' },
      },
    },
    handler: (request, reply) => answerStream(deps, request, reply as unknown as FastifyReply),
  })
}
