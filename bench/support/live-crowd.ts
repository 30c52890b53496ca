/**
 * Many live connections in a process of their own, so that what they cost is not counted with the server's. Run as a
 * program it is that process.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { connectLive, type LiveClient } from './live-client.ts'
import { latencyOf } from './measure.ts'

export interface Crowd {
  /** Opens so many connections. Resolves when all are ready. */
  connect(given: { port: number; token: string; count: number }): Promise<void>
  /** All follow the topic from above `after` on. Resolves when all do. */
  follow(topic: string, after: number): Promise<void>
  /**
   * Resolves when each connection has had so many events more. Where an event's `data.sent_at`, or what its
   * `data.text` begins with, is a time as `clock` tells it, the latencies are from there to its receipt.
   */
  expect(events: number): Promise<Delivery>
  close(): Promise<void>
}

export interface Delivery {
  deliveries: number
  frames: number
  /** From the first receipt to the last, in milliseconds. */
  tookMs: number
  p50: number
  p99: number
  /** Connections that were closed by the server. */
  closed: number
}

type Order =
  | { do: 'connect'; port: number; token: string; count: number }
  | { do: 'follow'; topic: string; after: number }
  | { do: 'expect'; events: number }
  | { do: 'close' }
type Answer = { delivery?: Delivery; error?: string }

const connectingAtOnce = 100

/** Milliseconds, the same in all processes of this machine. */
export function clock(): number {
  return performance.timeOrigin + performance.now()
}

export async function withCrowd<T>(action: (crowd: Crowd) => Promise<T>): Promise<T> {
  const child = fork(import.meta.filename, { env: { ...process.env, LIVE_CROWD: '1' } })
  try {
    return await action({
      connect: async given => void (await ask(child, { do: 'connect', ...given })),
      follow: async (topic, after) => void (await ask(child, { do: 'follow', topic, after })),
      expect: async events => (await ask(child, { do: 'expect', events })).delivery!,
      close: async () => void (await ask(child, { do: 'close' })),
    })
  } finally {
    child.kill()
  }
}

function ask(child: ChildProcess, order: Order): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const onExit = () => reject(new Error('The process with the live connections ended.'))
    child.once('exit', onExit)
    child.once('message', (answer: Answer) => {
      child.off('exit', onExit)
      if (answer.error) reject(new Error(answer.error))
      else resolve(answer)
    })
    child.send(order)
  })
}

// What runs in the process.

/** A frame that many connections are sent alike is read once: the rest is a comparison of bytes. */
interface Read {
  payload: Buffer
  type: string
  sentAt: number[]
}

function makeCrowd() {
  const clients: LiveClient[] = []
  let last: Read = { payload: Buffer.alloc(0), type: '', sentAt: [] }
  let times: number[] = []
  let frames = 0
  let closed = 0
  let firstAt = 0
  let lastAt = 0
  let subscribed = 0
  let ready = 0
  let onProgress = () => {}

  function read(payload: Buffer): Read {
    if (payload.equals(last.payload)) return last
    const { type, events = [] } = JSON.parse(payload.toString()) as {
      type: string
      events?: { data: { sent_at?: number; text?: string } }[]
    }
    last = {
      payload: Buffer.from(payload),
      type,
      sentAt: events.map(({ data }) => data.sent_at ?? Number.parseFloat(data.text ?? '0')),
    }
    return last
  }

  function onText(payload: Buffer) {
    const { type, sentAt } = read(payload)
    if (type === 'ready') ready++
    if (type === 'subscribed') subscribed++
    if (type === 'events') count(sentAt)
    if (type === 'error') console.error(payload.toString())
    onProgress()
  }

  function count(sentAt: number[]) {
    frames++
    lastAt = clock()
    if (times.length === 0) firstAt = lastAt
    for (const at of sentAt) times.push(lastAt - at)
  }

  function until(seen: () => boolean): Promise<void> {
    return new Promise(resolve => {
      onProgress = () => {
        if (!seen()) return
        onProgress = () => {}
        resolve()
      }
      onProgress()
    })
  }

  async function connect({ port, token, count }: Order & { do: 'connect' }) {
    const wanted = clients.length + count
    while (clients.length < wanted) {
      const some = Math.min(connectingAtOnce, wanted - clients.length)
      const onClose = (reason: string) => {
        if (closed++ === 0) console.error(`a live connection was closed: ${reason}`)
        onProgress()
      }
      clients.push(
        ...(await Promise.all(Array.from({ length: some }, () => connectLive({ port, token, onText, onClose })))),
      )
    }
    await until(() => ready === clients.length)
  }

  async function expect(events: number): Promise<Delivery> {
    await until(() => times.length >= events * (clients.length - closed))
    const delivery = { deliveries: times.length, frames, tookMs: lastAt - firstAt, closed, ...latencyOf(times) }
    times = []
    frames = 0
    return delivery
  }

  return async (order: Order): Promise<Answer> => {
    if (order.do === 'connect') await connect(order)
    if (order.do === 'follow') {
      subscribed = 0
      for (const client of clients) client.send({ type: 'subscribe', topic: order.topic, after: order.after })
      await until(() => subscribed === clients.length)
    }
    if (order.do === 'expect') return { delivery: await expect(order.events) }
    if (order.do === 'close') {
      for (const client of clients.splice(0)) client.close()
      ready = 0
    }
    return {}
  }
}

if (process.env.LIVE_CROWD && process.send) {
  const obey = makeCrowd()
  process.on('message', (order: Order) => {
    obey(order).then(
      answer => process.send!(answer),
      (error: Error) => process.send!({ error: error.message }),
    )
  })
  process.on('disconnect', () => process.exit())
}
