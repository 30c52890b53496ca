/**
 * Wakes other processes. A message says only "look at the table": it may be lost, doubled or late, and nobody may
 * depend on it for more than speed. It travels by Redis where that is configured, else by NOTIFY.
 *
 * What is published in one tick, or while a NOTIFY is in flight, travels together: NOTIFY takes a lock that the
 * whole server shares, so few large ones beat many small ones. Listeners of this process are called at once.
 */
import { Redis } from 'ioredis'
import type pg from 'pg'
import type { Database } from './database/pool.ts'
import { uuidv7 } from './ids.ts'
import type { Log } from './log.ts'

export interface Bus {
  /** Never throws; call it after the commit. */
  publish(channel: string, items: readonly string[]): void
  /** Calls back with what any process published. Returns the way to unsubscribe. */
  subscribe(channel: string, listener: (items: readonly string[]) => void): () => void
  /** Calls back when messages may have been lost: look at the tables now. */
  onGap(listener: () => void): () => void
  start(): Promise<void>
  stop(): Promise<void>
}

interface Message {
  from: string
  channel: string
  items: readonly string[]
}

type Transport = {
  send(payloads: readonly string[]): Promise<void>
  stop(): Promise<void>
}

const wireChannel = 'capstan'
/** NOTIFY takes less than 8000 bytes; a longer list of items is sent in parts. */
const payloadBytesMax = 7900
const reconnectMs = 500
/** Of one channel, while none can be sent. Those beyond are lost, as any may be. */
const waitingMax = 10_000
/** A peer that vanished without a word is noticed by asking: the listener itself only ever waits. */
const listenerCheckMs = 15_000

export function makeBus(options: { db: Database; redisUrl: string | undefined; log: Log }): Bus {
  const self = uuidv7()
  const listeners = new Map<string, Set<(items: readonly string[]) => void>>()
  const gapListeners = new Set<() => void>()
  let outgoing = new Map<string, Set<string>>()
  let sending = false
  let transport: Transport | undefined

  /** One listener's fault is neither the others' nor the publisher's. */
  const tell = (call: () => void) => {
    try {
      call()
    } catch (error) {
      options.log.error({ err: error }, 'a listener of the bus threw')
    }
  }
  const deliver = (channel: string, items: readonly string[]) => {
    for (const listener of listeners.get(channel) ?? []) tell(() => listener(items))
  }
  const receive = (payload: string) => {
    const message = parseMessage(payload)
    if (message && message.from !== self) deliver(message.channel, message.items)
  }
  const reportGap = () => {
    for (const listener of gapListeners) tell(listener)
  }

  async function flush() {
    if (sending) return
    sending = true
    while (outgoing.size > 0 && transport) {
      const batch = outgoing
      outgoing = new Map()
      try {
        await transport.send([...batch].flatMap(([channel, items]) => writePayloads(self, channel, items)))
      } catch (error) {
        // Whoever missed it finds the rows by its slow poll.
        options.log.debug({ err: error }, 'a wake-up was not sent')
      }
    }
    sending = false
  }

  return {
    publish(channel, items) {
      if (items.length === 0) return
      deliver(channel, items)
      // Before the start and after the stop nobody else is told; else the list would grow without a bound.
      if (!transport) return
      const waiting = outgoing.get(channel) ?? new Set()
      for (const item of items) if (waiting.size < waitingMax) waiting.add(item)
      outgoing.set(channel, waiting)
      queueMicrotask(() => void flush())
    },
    subscribe(channel, listener) {
      const set = listeners.get(channel) ?? new Set()
      listeners.set(channel, set.add(listener))
      return () => set.delete(listener)
    },
    onGap(listener) {
      gapListeners.add(listener)
      return () => gapListeners.delete(listener)
    },
    async start() {
      const { db, redisUrl, log } = options
      transport = redisUrl
        ? await redisTransport({ redisUrl, receive, reportGap, log })
        : postgresTransport({ db, receive, reportGap, log })
    },
    async stop() {
      const last = transport
      transport = undefined
      await last?.stop()
    },
  }
}

/** Messages that carry the items, each short enough for NOTIFY. An item too long for any is left to the slow poll. */
function writePayloads(from: string, channel: string, items: Iterable<string>): string[] {
  const open = `{"from":${JSON.stringify(from)},"channel":${JSON.stringify(channel)},"items":[`
  const room = payloadBytesMax - Buffer.byteLength(open) - 2
  const parts: string[][] = []
  let bytes = Number.POSITIVE_INFINITY
  for (const item of items) {
    const json = JSON.stringify(item)
    const size = Buffer.byteLength(json) + 1
    if (size > room) continue
    if (bytes + size > room) {
      parts.push([])
      bytes = 0
    }
    parts.at(-1)!.push(json)
    bytes += size
  }
  return parts.map(part => `${open}${part.join(',')}]}`)
}

/** What others send on the same database or Redis is not ours to believe. */
function parseMessage(payload: string): Message | undefined {
  try {
    const { from, channel, items } = JSON.parse(payload) as Partial<Message>
    if (typeof channel !== 'string' || !Array.isArray(items)) return undefined
    return { from: String(from), channel, items: items.filter(item => typeof item === 'string') }
  } catch {
    return undefined
  }
}

interface TransportOptions {
  receive: (payload: string) => void
  reportGap: () => void
  log: Log
}

/** Listens on a connection of its own and opens a new one whenever that is lost. */
function postgresTransport(options: TransportOptions & { db: Database }): Transport {
  const { db, log } = options
  let client: pg.PoolClient | undefined
  let stopped = false
  let timer: NodeJS.Timeout | undefined

  async function listen() {
    try {
      const fresh = await db.connect()
      if (stopped) return fresh.release(true)
      client = fresh
      // A client that was given up may still speak; only the present one counts.
      fresh.on('notification', ({ payload }) => fresh === client && options.receive(payload ?? ''))
      fresh.on('error', () => lose(fresh))
      fresh.on('end', () => lose(fresh))
      await fresh.query(`listen ${wireChannel}`)
      if (fresh !== client) return
      checkLater(fresh)
      options.reportGap()
    } catch (error) {
      log.debug({ err: error }, 'cannot listen just now')
      if (client) lose(client)
      else listenLater()
    }
  }

  function lose(lost: pg.PoolClient) {
    if (lost !== client) return
    client = undefined
    lost.release(true)
    listenLater()
  }

  function listenLater() {
    clearTimeout(timer)
    if (!stopped) timer = setTimeout(() => void listen(), reconnectMs)
  }

  function checkLater(current: pg.PoolClient) {
    timer = setTimeout(() => {
      const late = setTimeout(() => lose(current), listenerCheckMs)
      current.query('select 1').then(
        () => {
          clearTimeout(late)
          if (current === client) checkLater(current)
        },
        () => {
          clearTimeout(late)
          lose(current)
        },
      )
    }, listenerCheckMs)
  }

  void listen()
  return {
    async send(payloads) {
      // A wake-up may be lost, so its commit, which makes others' commits wait, need not wait for the disk.
      await db.query(
        `select set_config('synchronous_commit', 'off', true), pg_notify($1, payload) from unnest($2::text[]) as payload`,
        [wireChannel, payloads],
      )
    },
    async stop() {
      stopped = true
      clearTimeout(timer)
      if (client) lose(client)
    },
  }
}

async function redisTransport(options: TransportOptions & { redisUrl: string }): Promise<Transport> {
  const { redisUrl, log } = options
  const redisOptions = { maxRetriesPerRequest: 1, enableOfflineQueue: false, lazyConnect: true }
  const publisher = new Redis(redisUrl, redisOptions)
  const subscriber = new Redis(redisUrl, { ...redisOptions, enableOfflineQueue: true, autoResubscribe: false })
  for (const redis of [publisher, subscriber]) {
    redis.on('error', error => log.warn({ err: error }, 'Redis is away; wake-ups are slower until it is back'))
  }
  subscriber.on('message', (_channel, payload) => options.receive(payload))
  let isListening = false
  subscriber.on('close', () => {
    isListening = false
  })
  subscriber.on('ready', () => {
    const listening = () => {
      isListening = true
      options.reportGap()
    }
    subscriber.subscribe(wireChannel).then(listening, () => {})
  })
  // What was to be sent meanwhile is lost as well, and whoever speaks upon a gap is heard only from here on.
  publisher.on('ready', () => {
    if (isListening) options.reportGap()
  })
  // Neither is waited for: Capstan works without Redis, only slower.
  void publisher.connect().catch(() => {})
  void subscriber.connect().catch(() => {})
  return {
    async send(payloads) {
      await Promise.all(payloads.map(payload => publisher.publish(wireChannel, payload)))
    },
    async stop() {
      publisher.disconnect()
      subscriber.disconnect()
    },
  }
}
