/**
 * Live topics alone, without a service: how fast events that are committed reach many followers, and what a connection
 * that only waits costs. The server is this process; the followers are another.
 */
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { makeBatcher } from '../server/platform/batch.ts'
import { makeBus } from '../server/platform/bus.ts'
import { type Database, makeDatabase } from '../server/platform/database/pool.ts'
import type { Caller } from '../server/platform/http/guard.ts'
import { makeHttp } from '../server/platform/http/server.ts'
import { type Live, makeLive, type TopicSource } from '../server/platform/live/live.ts'
import { silentLog } from '../server/platform/log.ts'
import { makeMetrics } from '../server/platform/metrics.ts'
import { collectGarbage } from '../test/support/garbage.ts'
import { pipelineCalls } from './support/live-caller.ts'
import { type Crowd, clock, type Delivery, withCrowd } from './support/live-crowd.ts'
import { figureOf, interleave, printBound, printHead, type Sample } from './support/measure.ts'
import { withPostgres } from './support/servers.ts'

const rounds = 5
const followers = 1000
const messages = 1000
/** Of the paced messages; a thousand followers make it 100,000 deliveries a second. */
const pacedPerSecond = 100
const batchMax = 256
const calls = 100_000
const callWindow = 256
const idle = 10_000
const idleRounds = 3
const warmUp = 100
const poolMax = 10
const settleMs = 500

const user: Caller = { userId: 'bench', name: 'bench', role: 'user', by: 'session', credentialId: 'bench' }

interface Server {
  port: number
  /** Commits one event of the room, together with those of the same moment, and wakes. */
  send(): Promise<void>
  newest(): number
}

async function withServer<T>(db: Database, action: (server: Server) => Promise<T>): Promise<T> {
  await db.query('create table if not exists bench_events (seq int primary key, data jsonb not null)')
  await db.query('truncate bench_events')
  const bus = makeBus({ db, redisUrl: undefined, log: silentLog })
  const metrics = makeMetrics({ processMetrics: false })
  const live = makeLive({
    bus,
    log: silentLog,
    metrics,
    settings: {
      LIVE_BUFFER_BYTES: 1_048_576,
      LIVE_TOPICS_MAX: 100,
      LIVE_CONNECTIONS_MAX: 100_000,
      PUBLIC_URL: undefined,
    },
    authenticate: async () => user,
    reauthenticate: async () => user,
  })
  const http = await makeHttp({
    settings: { BODY_LIMIT_BYTES: 65_536, TRUST_PROXY: false, NODE_ENV: 'production', PUBLIC_URL: undefined },
    log: silentLog,
    metrics,
    authenticate: async () => user,
    rateLimiter: { take: async () => {}, reset: async () => {} },
    version: 'bench',
  })
  const room = makeRoom(db, live)
  live.addSource(room.source)
  live.addCall({ name: 'bench.echo', run: async (_caller, params) => params })
  await live.routes(http)
  await bus.start()
  await live.start()
  await http.listen({ host: '127.0.0.1', port: 0 })
  try {
    return await action({ port: (http.server.address() as AddressInfo).port, ...room })
  } finally {
    await Promise.all([live.stop(), http.close()])
    await bus.stop()
  }
}

/** One topic over a table, whose events are numbered by the one who writes. */
function makeRoom(db: Database, live: Live) {
  let newest = 0
  const source: TopicSource = {
    kind: 'rooms',
    authorize: async () => {},
    async read(_id, after, limit) {
      const { rows } = await db.query<{ seq: number; data: unknown }>(
        'select seq, data from bench_events where seq > $1 order by seq limit $2',
        [after, limit],
      )
      return rows.map(row => ({ ...row, type: 'message' }))
    },
    async heads() {
      const { rows } = await db.query<{ seq: number }>('select coalesce(max(seq), 0) as seq from bench_events')
      return new Map([['bench', rows[0]!.seq]])
    },
  }
  const batcher = makeBatcher<string, void>({
    name: 'bench',
    size: batchMax,
    waitingMax: 1_000_000,
    run: async data => {
      await db.query(
        `insert into bench_events select $1 + at, data::jsonb from unnest($2::text[]) with ordinality as e(data, at)`,
        [newest, data],
      )
      newest += data.length
      live.wake(['rooms/bench'])
      return data.map(() => ({ value: undefined }))
    },
  })
  return {
    source,
    newest: () => newest,
    send: () =>
      batcher.push(JSON.stringify({ sent_at: clock(), from: 'somebody', text: 'A message as people write.' })),
  }
}

/** All messages as fast as they can be committed. */
async function sendAll(server: Server, crowd: Crowd): Promise<Delivery> {
  const received = crowd.expect(messages)
  await Promise.all(Array.from({ length: messages }, server.send))
  return received
}

/** One after another, as many as make up the rate. */
async function sendPaced(server: Server, crowd: Crowd): Promise<Delivery> {
  const received = crowd.expect(messages)
  const begun = performance.now()
  const sent: Promise<void>[] = []
  while (sent.length < messages) {
    const due = Math.min(messages, Math.ceil(((performance.now() - begun) / 1000) * pacedPerSecond))
    while (sent.length < due) sent.push(server.send())
    await sleep(1)
  }
  await Promise.all(sent)
  return received
}

async function measure(send: (server: Server, crowd: Crowd) => Promise<Delivery>, given: [Server, Crowd]) {
  const before = process.cpuUsage()
  const { deliveries, frames, tookMs, p50, p99, closed } = await send(...given)
  const { user: inCode, system } = process.cpuUsage(before)
  if (closed > 0) throw new Error(`${closed} followers were cut off.`)
  const sample: Sample = {
    rate: (deliveries / tookMs) * 1000,
    p50,
    p99,
    eventsAFrame: deliveries / frames,
    cpuMicros: (inCode + system) / deliveries,
  }
  return sample
}

async function benchFanOut(db: Database) {
  await withServer(db, server =>
    withCrowd(async crowd => {
      await crowd.connect({ port: server.port, token: 'bench', count: followers })
      await crowd.follow('rooms/bench', 0)
      const { all, paced } = await interleave(
        { all: () => measure(sendAll, [server, crowd]), paced: () => measure(sendPaced, [server, crowd]) },
        rounds,
      )
      printHead(`Live: one topic, ${followers} followers, ${messages} events`)
      printBound('deliveries, all sent at once', all!.rate!, '/s', { atLeast: 100_000 })
      printBound(`send to receipt at ${pacedPerSecond} events/s, p50`, paced!.p50!, 'ms', 100)
      printBound(`send to receipt at ${pacedPerSecond} events/s, p99`, paced!.p99!, 'ms', 100)
      printBound('server CPU a delivery, all sent at once', all!.cpuMicros!, 'µs', 10)
      printBound(`server CPU a delivery at ${pacedPerSecond} events/s`, paced!.cpuMicros!, 'µs', 10)
      printBound('events in a frame, all sent at once', all!.eventsAFrame!, '', { atLeast: 1 })
    }),
  )
}

/** Calls that do nothing, from this same process: what the way there and back costs. */
async function benchCalls(db: Database) {
  await withServer(db, async ({ port }) => {
    const paramsOf = (index: number) => `{"text":"A message as people write.","client_id":"${index}"}`
    const measureCalls = async (): Promise<Sample> => {
      const { errors, ...figures } = await pipelineCalls({
        port,
        token: 'bench',
        call: 'bench.echo',
        paramsOf,
        count: calls,
        window: callWindow,
      })
      if (Object.keys(errors).length > 0) throw new Error(`Calls failed: ${JSON.stringify(errors)}`)
      return figures
    }
    const { pipelined } = await interleave({ pipelined: measureCalls }, rounds)
    printHead('Live: calls over one connection')
    printBound(`answered, ${callWindow} at once`, pipelined!.perSecond!, '/s', { atLeast: 20_000 })
    printBound('call to answer, p99', pipelined!.p99!, 'ms', 100)
  })
}

interface Memory {
  resident: number
  heap: number
}

async function memory(): Promise<Memory> {
  await sleep(settleMs)
  collectGarbage()
  await sleep(settleMs)
  collectGarbage()
  const { rss, heapUsed, external } = process.memoryUsage()
  return { resident: rss, heap: heapUsed + external }
}

/** KiB that each of many waiting connections adds to the process. */
async function measureIdle(server: Server, crowd: Crowd): Promise<Sample> {
  const before = await memory()
  await crowd.connect({ port: server.port, token: 'bench', count: idle })
  const connected = await memory()
  await crowd.follow('rooms/bench', 0)
  const following = await memory()
  await crowd.close()
  const each = (then: Memory, key: keyof Memory) => (then[key] - before[key]) / idle / 1024
  return {
    resident: each(following, 'resident'),
    heap: each(following, 'heap'),
    heapUnsubscribed: each(connected, 'heap'),
  }
}

async function benchIdle(db: Database) {
  await withServer(db, server =>
    withCrowd(async crowd => {
      // What the first ones cost is the process's, not theirs.
      await crowd.connect({ port: server.port, token: 'bench', count: warmUp })
      await crowd.close()
      const samples: Sample[] = []
      for (let round = 0; round < idleRounds; round++) samples.push(await measureIdle(server, crowd))
      const heap = (key: string) => figureOf(samples.map(sample => sample[key]!))
      printHead(`Live: ${idle.toLocaleString('en')} connections that wait, one topic each`)
      // A process keeps the memory it once had: only the first round shows what it takes.
      printBound('memory of the process a connection', figureOf([samples[0]!.resident!]), 'KiB', 20)
      printBound('heap and buffers a connection', heap('heap'), 'KiB', 20)
      printBound('heap and buffers a connection without its topic', heap('heapUnsubscribed'), 'KiB', 20)
    }),
  )
}

export async function benchLive() {
  await withPostgres(async url => {
    const db = makeDatabase({ url, poolMax, log: silentLog, applicationName: `capstan:${process.pid}` })
    // First, as a process keeps the memory that it once had.
    await benchIdle(db)
    await benchFanOut(db)
    await benchCalls(db)
    await db.close()
  })
}
