/**
 * The hubs of this process, one for each topic that somebody here follows, and what wakes them: the bus at once, the
 * poll at last.
 */
import { type Batcher, makeBatcher } from '../batch.ts'
import type { Bus } from '../bus.ts'
import { isConnectionLoss } from '../database/pool.ts'
import { isAppError } from '../errors.ts'
import type { Caller } from '../http/guard.ts'
import type { Log } from '../log.ts'
import { type Allowance, makeAllowance } from './allowance.ts'
import { makeSignal } from './batch.ts'
import { errors } from './errors.ts'
import { makeGate } from './gate.ts'
import { type Follower, type Hub, makeHub } from './hub.ts'
import { makePresence, type PresenceOptions } from './presence.ts'
import type { LiveSignal, TopicSource } from './source.ts'

export interface Topics {
  addSource(source: TopicSource): void
  /** @throws bad_topic, unknown_topic */
  follow(topic: string, after: number, follower: Follower): () => void
  /** @throws bad_topic, unknown_topic, or what the source throws for one who may not follow. */
  authorize(caller: Caller, topic: string): Promise<void>
  /** Asks the same, and answers by which name the caller is present there, where that is told. */
  admit(caller: Caller, topic: string): Promise<{ presentAs: string | undefined }>
  wake(topics: readonly string[]): void
  recheck(topics: readonly string[]): void
  signal(topic: string, signal: LiveSignal, options?: { except?: string }): void
  present(topic: string): string[]
  start(): void
  stop(): void
  readonly size: number
}

interface Kind {
  source: TopicSource
  heads: Batcher<string, number>
}

const wakeChannel = 'live.wake'
const recheckChannel = 'live.recheck'
const signalChannel = 'live.signal'
const headsMax = 500
const signalBytesMax = 1024
/** Of one topic in this process; those above it are not told. */
const signalsPerSecond = 50
const signalsBurst = 100
const presentAsCharsMax = 128
/** Opening and catching up take at most so many database connections at once; the rest is for requests. */
const readsAbreast = 8

export type PresenceTimes = Omit<PresenceOptions, 'bus' | 'onChange'>

export function makeTopics(options: { bus: Bus; log: Log; pollMs: number; presence?: PresenceTimes }): Topics {
  const { bus, log, pollMs } = options
  const kinds = new Map<string, Kind>()
  const hubs = new Map<string, { hub: Hub; kind: string; id: string; signals: Allowance }>()
  const gate = makeGate(readsAbreast)
  const poll = makePoll({ pollMs, run: checkAll })
  const presence = makePresence({
    ...options.presence,
    bus,
    onChange: (topic, data) =>
      hubs.get(topic)?.hub.signal(makeSignal(topic, JSON.stringify({ type: 'presence', data }))),
  })
  let unsubscribe: (() => void)[] = []

  function resolve(topic: string) {
    const { kind, id } = parseTopic(topic)
    const known = kinds.get(kind)
    if (!known) throw errors.unknownTopic(kind)
    return { ...known, kind, id }
  }

  function openHub(topic: string): Hub {
    const { source, heads, kind, id } = resolve(topic)
    const hub = makeHub({
      topic,
      id,
      source,
      gate,
      log,
      newest: () => heads.push(id),
      onRemove: ({ presentAs }) => {
        if (presentAs !== undefined) presence.leave(topic, presentAs)
      },
      onEmpty: () => {
        if (hubs.get(topic)?.hub === hub) hubs.delete(topic)
      },
    })
    hubs.set(topic, { hub, kind, id, signals: makeAllowance({ perSecond: signalsPerSecond, burst: signalsBurst }) })
    return hub
  }

  async function authorize(caller: Caller, topic: string) {
    const { source, id } = resolve(topic)
    await gate(() => source.authorize(caller, id))
    return source
  }

  function hearSignal(item: string) {
    const { topic, signal, except } = parseSignal(item) ?? {}
    const known = topic === undefined ? undefined : hubs.get(topic)
    if (known?.signals.take()) known.hub.signal(makeSignal(topic!, JSON.stringify(signal), except))
  }

  /** Asks the sources for the newest numbers of what is followed and wakes the hubs that are behind. */
  async function checkAll() {
    const asked: Promise<void>[] = []
    for (const { hub, kind, id } of hubs.values()) {
      asked.push(kinds.get(kind)!.heads.push(id).then(hub.check))
    }
    const failed = (await Promise.allSettled(asked)).find(outcome => outcome.status === 'rejected')
    if (failed) log.debug({ err: failed.reason }, 'the live poll could not look at everything')
  }

  return {
    addSource(source) {
      if (kinds.has(source.kind)) throw new Error(`There are two sources of live topics of the kind ${source.kind}.`)
      kinds.set(source.kind, { source, heads: batchHeads(source) })
    },
    follow(topic, after, follower) {
      const hub = hubs.get(topic)?.hub ?? openHub(topic)
      if (follower.presentAs !== undefined) presence.join(topic, follower.presentAs)
      return hub.add(follower, after)
    },
    async authorize(caller, topic) {
      await authorize(caller, topic)
    },
    async admit(caller, topic) {
      const source = await authorize(caller, topic)
      if (!source.presence) return { presentAs: undefined }
      const name = (await gate(async () => source.presenceOf?.(caller))) ?? caller.userId
      return { presentAs: name.slice(0, presentAsCharsMax) }
    },
    wake: topics => bus.publish(wakeChannel, topics),
    recheck: topics => bus.publish(recheckChannel, topics),
    signal(topic, signal, { except } = {}) {
      const item = writeSignal({ topic, signal, except })
      if (item === undefined)
        log.warn({ topic, type: signal.type }, 'a signal is too long, or no JSON, and was not sent')
      else bus.publish(signalChannel, [item])
    },
    present: presence.present,
    start() {
      unsubscribe = [
        bus.subscribe(wakeChannel, topics => {
          for (const topic of topics) hubs.get(topic)?.hub.wake()
        }),
        bus.subscribe(recheckChannel, topics => {
          for (const topic of topics) hubs.get(topic)?.hub.recheck()
        }),
        bus.subscribe(signalChannel, items => {
          for (const item of items) hearSignal(item)
        }),
        bus.onGap(() => poll.now()),
      ]
      poll.start()
      presence.start()
    },
    stop() {
      presence.stop()
      for (const each of unsubscribe) each()
      poll.stop()
    },
    get size() {
      return hubs.size
    },
  }
}

const topicPattern = /^([a-z][a-z0-9_-]{0,31})\/([\w.:@~-]{1,128})$/

/** @throws bad_topic */
export function parseTopic(topic: string): { kind: string; id: string } {
  const match = topicPattern.exec(topic)
  if (!match) throw errors.badTopic()
  return { kind: match[1]!, id: match[2]! }
}

/** True when the answer is that the caller may not, not that nobody can tell just now. */
export function isRefusal(error: unknown): boolean {
  return isAppError(error) && [401, 403, 404].includes(error.status)
}

interface SignalItem {
  topic: string
  signal: LiveSignal
  except: string | undefined
}

/** Undefined for one that is no JSON or too long to be a signal. */
function writeSignal({ topic, signal: { type, data }, except }: SignalItem): string | undefined {
  try {
    const item = JSON.stringify({ topic, except, signal: { type, data } })
    return Buffer.byteLength(JSON.stringify({ type, data })) <= signalBytesMax ? item : undefined
  } catch {
    return undefined
  }
}

/** What others send on the same database or Redis is not ours to believe. */
function parseSignal(item: string): SignalItem | undefined {
  try {
    const found = JSON.parse(item) as SignalItem
    return typeof found.topic === 'string' && typeof found.signal?.type === 'string' ? found : undefined
  } catch {
    return undefined
  }
}

/** Topics opened at the same time share a question. */
function batchHeads(source: TopicSource): Batcher<string, number> {
  return makeBatcher<string, number>({
    name: `live ${source.kind}`,
    size: headsMax,
    waitingMax: 1_000_000,
    isCommon: isConnectionLoss,
    run: async ids => {
      const newest = await source.heads([...new Set(ids)])
      return ids.map(id => ({ value: newest.get(id) ?? 0 }))
    },
  })
}

/** Runs `run`, which must not throw, every `pollMs`, and at once when asked; never twice at the same time. */
function makePoll(options: { pollMs: number; run: () => Promise<void> }) {
  let timer: NodeJS.Timeout | undefined
  let running = false
  let asked = false
  let started = false

  async function run() {
    asked = true
    if (running || !started) return
    running = true
    clearTimeout(timer)
    while (asked) {
      asked = false
      await options.run()
    }
    running = false
    if (started) timer = setTimeout(() => void run(), options.pollMs)
  }

  return {
    now: () => void run(),
    start() {
      started = true
      timer = setTimeout(() => void run(), options.pollMs)
    },
    stop() {
      started = false
      clearTimeout(timer)
    },
  }
}
