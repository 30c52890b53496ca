/**
 * One topic in one process: however many follow it, one read a wake.
 *
 * States of a hub:
 * - opening: its newest number is not known yet; everybody waits. Left by the first successful look at the source.
 * - open: `head` is the number up to which it has read. A wake makes it read on; wakes during a read make one more.
 * - finished: it has seen an event marked final; nothing is read any more, and it is dropped once all followers have it.
 *
 * States of a follower: waiting (for the opening, or for the poll after a failed read) → catching up (fed from the
 * tail in memory or from pages of the source, at its own pace) → live (fed by the hub's reads) → removed. It goes
 * live in the same tick in which it is seen to stand at the head, so that nothing comes between, missed or doubled.
 * With an event that ends its user's right it is asking, and given nothing: allowed, it catches up from there;
 * refused, it removes itself; doubtful, when nobody can tell just now, it asks again with the poll.
 */
import type { Log } from '../log.ts'
import { type Batch, type Item, makeBatch, makeItem, type Signal, splitItems } from './batch.ts'
import type { Gate } from './gate.ts'
import type { TopicSource } from './source.ts'
import { makeTail, tailEventsMax } from './tail.ts'

/** Who follows. After its removal nothing is called any more; nothing is called before `add` has returned. */
export interface Follower {
  /** Whose right to follow an event may end. Undefined inside this process. */
  readonly userId?: string
  /** By which name it is shown as present. */
  readonly presentAs?: string | undefined
  /** First of all: the newest number of the topic. */
  opened?(seq: number): void
  /** Events above the last ones taken, in order. */
  take(batch: Batch): void
  /** The final event has been taken; the follower is removed already. */
  completed?(): void
  /** The topic could not be opened; the follower is removed already. Without this, the poll tries again. */
  failed?(error: unknown): void
  /** While catching up: what to wait for before taking more. */
  drained?(): Promise<void> | undefined
  /** Whether it may still follow is to be asked now. */
  recheck?(): void
  /**
   * The last event taken ended its user's right: resolves when it may go on all the same, throws when nobody can tell
   * just now. When it may not, it has removed itself.
   */
  askAgain?(): Promise<void>
  /** What is told to those who are there. It may be let go. */
  signal?(signal: Signal): void
}

export interface Hub {
  /** Returns the way to remove the follower. */
  add(follower: Follower, after: number): () => void
  /** There may be more in the source. */
  wake(): void
  /** The poll has seen this newest number; also takes up again what failed. */
  check(newest: number): void
  recheck(): void
  signal(signal: Signal): void
}

export interface HubOptions {
  topic: string
  id: string
  source: TopicSource
  /** Answers the topic's newest number. */
  newest: () => Promise<number>
  /** Holds back openings and catching up, so that a herd of returning clients leaves connections to others. */
  gate: Gate
  log: Log
  onRemove?: (follower: Follower) => void
  onEmpty: () => void
}

interface Entry {
  follower: Follower
  /** The last number it was given. */
  at: number
  state: 'waiting' | 'catching up' | 'live' | 'asking' | 'doubtful'
}

const readMax = 128

export function makeHub(options: HubOptions): Hub {
  const { topic, id, source, log } = options
  const entries = new Set<Entry>()
  const tail = makeTail()
  let head: number | undefined
  let opening = false
  let reading = false
  let woken = false
  let finalSeq: number | undefined

  function tell(entry: Entry, action: (follower: Follower) => void) {
    if (entries.has(entry)) call(entry, action)
  }

  /** Whatever a follower does wrong must not hurt the others. */
  function call(entry: Entry, action: (follower: Follower) => void) {
    try {
      action(entry.follower)
    } catch (error) {
      log.error({ err: error, topic }, 'a follower of a topic threw and was removed')
      remove(entry)
    }
  }

  function remove(entry: Entry) {
    if (!entries.delete(entry)) return
    options.onRemove?.(entry.follower)
    if (entries.size === 0) options.onEmpty()
  }

  /** Gives what of these events lies above the follower's number, and nothing after one that ended its right. */
  function offer(entry: Entry, batch: Batch) {
    const { userId } = entry.follower
    const end = batch.hasEnds && userId !== undefined ? batch.items.find(item => ends(item, userId)) : undefined
    if (end === undefined && entry.at < batch.items[0]!.event.seq) {
      give(entry, batch)
    } else {
      const last = end?.event.seq ?? Number.POSITIVE_INFINITY
      const due = batch.items.filter(({ event }) => event.seq > entry.at && event.seq <= last)
      if (due.length > 0) give(entry, makeBatch(topic, due))
    }
    if (end) void askAgain(entry)
    else finishWhenDone(entry)
  }

  function give(entry: Entry, batch: Batch) {
    entry.at = batch.items.at(-1)!.event.seq
    tell(entry, follower => follower.take(batch))
  }

  async function askAgain(entry: Entry) {
    if (!entries.has(entry)) return
    entry.state = 'asking'
    try {
      await entry.follower.askAgain?.()
    } catch (error) {
      log.debug({ err: error, topic }, 'nobody can tell whether a follower may go on; the poll asks again')
      entry.state = 'doubtful'
      return
    }
    entry.state = 'waiting'
    void catchUp(entry)
  }

  function finishWhenDone(entry: Entry) {
    if (finalSeq === undefined || entry.at < finalSeq || !entries.has(entry)) return
    remove(entry)
    call(entry, follower => follower.completed?.())
  }

  async function read(after: number): Promise<{ items: Item[]; full: boolean }> {
    const events = await source.read(id, after, readMax)
    const items: Item[] = []
    let last = after
    for (const event of events) {
      if (event.seq <= last) continue
      items.push(encode(event))
      last = event.seq
    }
    return { items, full: events.length >= readMax }
  }

  function encode(event: Item['event']): Item {
    try {
      return makeItem(event)
    } catch (error) {
      log.error({ err: error, topic, seq: event.seq }, 'an event cannot be written as JSON')
      return makeItem({ ...event, data: null })
    }
  }

  function remember(items: readonly Item[]) {
    tail.add(items)
    if (items.at(-1)?.event.final) finalSeq = items.at(-1)!.event.seq
  }

  async function open() {
    if (opening) return
    opening = true
    try {
      const newest = await options.newest()
      // Reads the last event at least, which tells whether the topic is finished.
      let from = newest - 1
      for (const entry of entries) from = Math.min(from, entry.at)
      from = Math.max(0, newest - tailEventsMax, from)
      const { items } = newest > 0 ? await options.gate(() => read(from)) : { items: [] }
      remember(items)
      head = items.at(-1)?.event.seq ?? newest
      if (head < newest) woken = true
    } catch (error) {
      log.debug({ err: error, topic }, 'a topic could not be opened')
      for (const entry of [...entries]) {
        if (!entry.follower.failed) continue
        remove(entry)
        call(entry, follower => follower.failed?.(error))
      }
    } finally {
      opening = false
    }
    if (head === undefined) return
    for (const entry of [...entries]) begin(entry)
    if (woken) void readOn()
  }

  function begin(entry: Entry) {
    tell(entry, follower => follower.opened?.(head!))
    // Its right may have ended between the answer that it may follow and now, with an event it does not ask for.
    const { userId } = entry.follower
    if (userId !== undefined && tail.items.some(item => item.event.seq <= entry.at && ends(item, userId))) {
      void askAgain(entry)
    } else {
      void catchUp(entry)
    }
  }

  async function catchUp(entry: Entry) {
    if (!entries.has(entry) || entry.state !== 'waiting') return
    entry.state = 'catching up'
    try {
      await feed(entry)
    } catch (error) {
      log.debug({ err: error, topic }, 'a read was not possible; the poll tries again')
      entry.state = 'waiting'
    }
  }

  /** Gives a follower what it lacks, in pieces, until it stands at the head. */
  async function feed(entry: Entry) {
    let pieces: Item[][] = []
    while (entries.has(entry) && entry.state === 'catching up') {
      const draining = entry.at < head! ? entry.follower.drained?.() : undefined
      if (draining) {
        await draining
      } else if (pieces.length > 0) {
        offer(entry, makeBatch(topic, pieces.shift()!))
      } else if (entry.at >= head!) {
        entry.state = 'live'
        return finishWhenDone(entry)
      } else {
        const items = tail.after(entry.at) ?? (await options.gate(() => read(entry.at))).items
        pieces = splitItems(items)
        // The source has removed what the follower lacks: go on with what there is.
        if (items.length === 0) entry.at = Math.max(entry.at, head!)
      }
    }
  }

  async function readOn() {
    woken = true
    if (reading || head === undefined) return
    reading = true
    try {
      while (woken && entries.size > 0 && finalSeq === undefined) {
        woken = false
        const { items, full } = await read(head)
        if (items.length > 0) spread(items)
        if (full) woken = true
      }
    } catch (error) {
      log.warn({ err: error, topic }, 'a read failed; the poll tries again')
    } finally {
      reading = false
    }
  }

  function spread(items: Item[]) {
    const before = head!
    if (items[0]!.event.seq !== before + 1) {
      log.error({ topic, after: before, got: items[0]!.event.seq }, 'a topic’s numbers have a gap')
    }
    remember(items)
    head = items.at(-1)!.event.seq
    const batch = makeBatch(topic, items)
    for (const entry of entries) {
      if (entry.state === 'live') offer(entry, batch)
    }
  }

  return {
    add(follower, after) {
      const entry: Entry = { follower, at: after, state: 'waiting' }
      entries.add(entry)
      if (head === undefined) void open()
      else queueMicrotask(() => begin(entry))
      return () => remove(entry)
    },
    wake() {
      void readOn()
    },
    check(newest) {
      if (head === undefined) return void open()
      if (newest > head) void readOn()
      for (const entry of [...entries]) void (entry.state === 'doubtful' ? askAgain(entry) : catchUp(entry))
    },
    recheck() {
      for (const entry of [...entries]) tell(entry, follower => follower.recheck?.())
    },
    signal(signal) {
      for (const entry of entries) {
        if (entry.state === 'live' || entry.state === 'catching up') tell(entry, follower => follower.signal?.(signal))
      }
    },
  }
}

function ends(item: Item, userId: string): boolean {
  return item.event.ends?.includes(userId) ?? false
}
