/**
 * Many small pushes, one haul. A batcher holds what is pushed while a batch is in flight and sends it all with the
 * next one: an idle batcher runs a lone item at once, a busy one gathers hundreds. No timer is involved.
 *
 * States of an item: waiting → in flight → settled. Of the batcher: idle, or up to `parallel` batches in flight.
 */
import { errors } from './errors.ts'

export type Outcome<R> = { value: R } | { error: unknown }

export interface Batcher<T, R> {
  /** Resolves or rejects with this item's own outcome. Rejects at once with `overloaded` when the queue is full. */
  push(item: T): Promise<R>
  /** Resolves when nothing waits and nothing is in flight. */
  idle(): Promise<void>
  /** Items waiting, not counting those in flight. */
  readonly waiting: number
}

export interface BatcherOptions<T, R> {
  /** Named in the answer when the queue is full. */
  name: string
  /** Most items in one batch; with `weigh`, the most they weigh together. A heavier item is alone. */
  size: number
  weigh?: (item: T) => number
  /** Most items that may wait; a push beyond is refused. */
  waitingMax: number
  /** Batches in flight at once; 1 keeps the order of pushes. */
  parallel?: number
  /**
   * Does the whole batch in one transaction and answers an outcome an item, in order. When it throws for a batch of
   * several, nothing of it must have been kept: each half is then run again by itself, so that one poisoned item
   * fails alone.
   */
  run: (items: T[]) => Promise<Outcome<R>[]>
  /** True for an error that would strike any item (the database is down): the batch is not split then. */
  isCommon?: (error: unknown) => boolean
}

interface Waiting<T, R> {
  item: T
  resolve: (value: R) => void
  reject: (error: unknown) => void
}

export function makeBatcher<T, R>(options: BatcherOptions<T, R>): Batcher<T, R> {
  const parallel = options.parallel ?? 1
  let queue: Waiting<T, R>[] = []
  let inFlight = 0
  let scheduled = false
  /** Batches that have ended and whose items were not told yet. */
  const settled: (() => void)[] = []
  const onIdle: (() => void)[] = []

  function pump() {
    scheduled = false
    while (inFlight < parallel && queue.length > 0) {
      const count = countNext()
      const batch = queue.length <= count ? queue : queue.slice(0, count)
      queue = queue.length <= count ? [] : queue.slice(count)
      inFlight++
      void send(batch).then(settle => {
        inFlight--
        settled.push(settle)
        if (queue.length === 0) return tell()
        // The next batch goes off before those who wait for this one are told: telling them makes work for this
        // process, and the database need not stand idle meanwhile.
        pump()
        setImmediate(tell)
      })
    }
  }

  /** How many of those that wait go together. */
  function countNext(): number {
    const { size, weigh } = options
    if (!weigh) return size
    let weight = 0
    for (let index = 0; index < queue.length; index++) {
      weight += weigh(queue[index]!.item)
      if (weight > size) return Math.max(1, index)
    }
    return queue.length
  }

  /** In the order in which batches ended. */
  function tell() {
    for (const settle of settled.splice(0)) settle()
    if (inFlight > 0 || queue.length > 0) return
    for (const resolve of onIdle.splice(0)) resolve()
  }

  /** Answers what tells each item its outcome. */
  async function send(batch: Waiting<T, R>[]): Promise<() => void> {
    let outcomes: Outcome<R>[]
    try {
      outcomes = await options.run(batch.map(waiting => waiting.item))
    } catch (error) {
      if (batch.length === 1 || options.isCommon?.(error)) {
        return () => {
          for (const waiting of batch) waiting.reject(error)
        }
      }
      const middle = batch.length >> 1
      const halves = [await send(batch.slice(0, middle)), await send(batch.slice(middle))]
      return () => {
        for (const settle of halves) settle()
      }
    }
    return () => {
      for (const [index, waiting] of batch.entries()) settleOne(waiting, outcomes[index])
    }
  }

  function settleOne(waiting: Waiting<T, R>, outcome: Outcome<R> | undefined) {
    if (outcome === undefined) waiting.reject(new Error(`The batcher ${options.name} answered too few outcomes.`))
    else if ('error' in outcome) waiting.reject(outcome.error)
    else waiting.resolve(outcome.value)
  }

  return {
    push(item) {
      if (queue.length >= options.waitingMax) return Promise.reject(errors.overloaded(`The queue of ${options.name}`))
      return new Promise<R>((resolve, reject) => {
        queue.push({ item, resolve, reject })
        // One turn of the microtask queue, so that what is pushed in the same tick shares the first batch.
        if (!scheduled && inFlight < parallel) {
          scheduled = true
          queueMicrotask(pump)
        }
      })
    },
    idle() {
      if (inFlight === 0 && queue.length === 0 && settled.length === 0) return Promise.resolve()
      return new Promise(resolve => onIdle.push(resolve))
    },
    get waiting() {
      return queue.length
    },
  }
}
