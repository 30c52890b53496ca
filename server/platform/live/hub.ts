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
 */
import type { Log } from '../log.ts'
import { type Batch, type Item, makeBatch, makeItem, splitItems } from './batch.ts'
import type { Gate } from './gate.ts'
import type { TopicSource } from './source.ts'

/** Who follows. After its removal nothing is called any more; nothing is called before `add` has returned. */
export interface Follower {
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
}

export interface Hub {
  /** Returns the way to remove the follower. */
  add(follower: Follower, after: number): () => void
  /** There may be more in the source. */
  wake(): void
  /** The poll has seen this newest number; also takes up again what failed. */
  check(newest: number): void
  recheck(): void
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
  onEmpty: () => void
}

interface Entry {
  follower: Follower
  /** The last number it was given. */
  at: number
  state: 'waiting' | 'catching up' | 'live'
}

const readMax = 128
const tailEventsMax = 128
const tailCharsMax = 65_536

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
    if (entries.delete(entry) && entries.size === 0) options.onEmpty()
  }

  function give(entry: Entry, batch: Batch) {
    entry.at = batch.items.at(-1)!.event.seq
    tell(entry, follower => follower.take(batch))
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
    void catchUp(entry)
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
    while (entries.has(entry)) {
      const draining = entry.at < head! ? entry.follower.drained?.() : undefined
      if (draining) {
        await draining
      } else if (pieces.length > 0) {
        give(entry, makeBatch(topic, pieces.shift()!))
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
      if (entry.state !== 'live') continue
      if (entry.at === before) give(entry, batch)
      else giveAbove(entry, items)
      finishWhenDone(entry)
    }
  }

  /** For a follower that asked for events from a number on that is still to come. */
  function giveAbove(entry: Entry, items: Item[]) {
    const above = items.filter(item => item.event.seq > entry.at)
    if (above.length > 0) give(entry, makeBatch(topic, above))
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
      for (const entry of [...entries]) void catchUp(entry)
    },
    recheck() {
      for (const entry of [...entries]) tell(entry, follower => follower.recheck?.())
    },
  }
}

/** The newest events, so that whoever is a little behind costs no query. */
function makeTail() {
  let items: Item[] = []
  let chars = 0
  let last = 0
  return {
    add(more: readonly Item[]) {
      for (const item of more) {
        // After a gap the older ones no longer join on.
        if (item.event.seq !== last + 1) {
          items = []
          chars = 0
        }
        items.push(item)
        chars += item.json.length
        last = item.event.seq
      }
      let dropped = 0
      while (items.length - dropped > tailEventsMax || chars > tailCharsMax) {
        chars -= items[dropped++]!.json.length
      }
      if (dropped > 0) items = items.slice(dropped)
    },
    /** All events above a number, or undefined when the tail does not reach back to it. */
    after(seq: number): Item[] | undefined {
      const first = items[0]?.event.seq
      if (first === undefined || seq + 1 < first) return undefined
      return items.slice(seq + 1 - first)
    },
  }
}
