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
  send(message: Message): Promise<void>
  stop(): Promise<void>
}

const wireChannel = 'capstan'
/** NOTIFY takes 8000 bytes; a longer list of items is sent in parts. */
const payloadBytesMax = 7500
const reconnectMs = 500

export function makeBus(options: { db: Database; redisUrl: string | undefined; log: Log }): Bus {
  const self = uuidv7()
  const listeners = new Map<string, Set<(items: readonly string[]) => void>>()
  const gapListeners = new Set<() => void>()
  let outgoing = new Map<string, Set<string>>()
  let sending = false
  let transport: Transport | undefined

  const deliver = (channel: string, items: readonly string[]) => {
    for (const listener of listeners.get(channel) ?? []) listener(items)
  }
  const receive = (payload: string) => {
    const message = JSON.parse(payload) as Message
    if (message.from !== self) deliver(message.channel, message.items)
  }
  const reportGap = () => {
    for (const listener of gapListeners) listener()
  }

  async function flush() {
    if (sending) return
    sending = true
    while (outgoing.size > 0 && transport) {
      const batch = outgoing
      outgoing = new Map()
      try {
        for (const [channel, items] of batch) {
          for (const part of splitItems([...items])) await transport.send({ from: self, channel, items: part })
        }
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
      const waiting = outgoing.get(channel) ?? new Set()
      for (const item of items) waiting.add(item)
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

function splitItems(items: string[]): string[][] {
  const parts: string[][] = [[]]
  let bytes = 0
  for (const item of items) {
    bytes += Buffer.byteLength(item) + 3
    if (bytes > payloadBytesMax) {
      parts.push([])
      bytes = Buffer.byteLength(item)
    }
    parts.at(-1)!.push(item)
  }
  return parts
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
    if (stopped) return
    try {
      const fresh = await db.connect()
      fresh.on('notification', ({ payload }) => options.receive(payload ?? ''))
      fresh.on('error', lost)
      fresh.on('end', lost)
      client = fresh
      await fresh.query(`listen ${wireChannel}`)
      options.reportGap()
    } catch (error) {
      log.debug({ err: error }, 'cannot listen just now')
      lost()
    }
  }

  function lost() {
    client?.removeAllListeners('end')
    client?.release(true)
    client = undefined
    clearTimeout(timer)
    if (!stopped) timer = setTimeout(() => void listen(), reconnectMs)
  }

  void listen()
  return {
    async send(message) {
      await db.query('select pg_notify($1, $2)', [wireChannel, JSON.stringify(message)])
    },
    async stop() {
      stopped = true
      lost()
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
  subscriber.on('ready', () => {
    subscriber.subscribe(wireChannel).then(options.reportGap, () => {})
  })
  // Neither is waited for: Capstan works without Redis, only slower.
  void publisher.connect().catch(() => {})
  void subscriber.connect().catch(() => {})
  return {
    async send(message) {
      await publisher.publish(wireChannel, JSON.stringify(message))
    },
    async stop() {
      publisher.disconnect()
      subscriber.disconnect()
    },
  }
}
