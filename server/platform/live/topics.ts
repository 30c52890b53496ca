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
import { errors } from './errors.ts'
import { makeGate } from './gate.ts'
import { type Follower, type Hub, makeHub } from './hub.ts'
import type { TopicSource } from './source.ts'

export interface Topics {
  addSource(source: TopicSource): void
  /** @throws bad_topic, unknown_topic */
  follow(topic: string, after: number, follower: Follower): () => void
  /** @throws bad_topic, unknown_topic, or what the source throws for one who may not follow. */
  authorize(caller: Caller, topic: string): Promise<void>
  wake(topics: readonly string[]): void
  recheck(topics: readonly string[]): void
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
const headsMax = 500
/** Opening and catching up take at most so many database connections at once; the rest is for requests. */
const readsAbreast = 8

export function makeTopics(options: { bus: Bus; log: Log; pollMs: number }): Topics {
  const { bus, log, pollMs } = options
  const kinds = new Map<string, Kind>()
  const hubs = new Map<string, { hub: Hub; kind: string; id: string }>()
  const gate = makeGate(readsAbreast)
  const poll = makePoll({ pollMs, run: checkAll })
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
      onEmpty: () => {
        if (hubs.get(topic)?.hub === hub) hubs.delete(topic)
      },
    })
    hubs.set(topic, { hub, kind, id })
    return hub
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
      return hub.add(follower, after)
    },
    async authorize(caller, topic) {
      const { source, id } = resolve(topic)
      await gate(() => source.authorize(caller, id))
    },
    wake: topics => bus.publish(wakeChannel, topics),
    recheck: topics => bus.publish(recheckChannel, topics),
    start() {
      unsubscribe = [
        bus.subscribe(wakeChannel, topics => {
          for (const topic of topics) hubs.get(topic)?.hub.wake()
        }),
        bus.subscribe(recheckChannel, topics => {
          for (const topic of topics) hubs.get(topic)?.hub.recheck()
        }),
        bus.onGap(() => poll.now()),
      ]
      poll.start()
    },
    stop() {
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
