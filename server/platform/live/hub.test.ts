import assert from 'node:assert/strict'
import { test } from 'node:test'
import { silentLog } from '../log.ts'
import { makeGate } from './gate.ts'
import { type Follower, makeHub } from './hub.ts'
import type { LiveEvent, TopicSource } from './source.ts'
import { seqs, upTo } from './test-kit.ts'

/** A source whose answers, fixed when asked, are given only when the test says so. */
function makeHeldSource() {
  const events: LiveEvent[] = []
  const held: (() => void)[] = []
  let reads = 0
  const answer = <T>(value: T) => new Promise<T>(resolve => held.push(() => resolve(value)))
  const source: TopicSource = {
    kind: 'held',
    authorize: async () => {},
    read: (_id, after, limit) => {
      reads++
      return answer(events.slice(after, after + limit))
    },
    heads: async () => new Map(),
  }
  return {
    source,
    newest: () => answer(events.length),
    append(count: number, final = false) {
      for (let i = 0; i < count; i++) events.push({ seq: events.length + 1, type: 'x', data: 'y'.repeat(i % 7) })
      if (final) events.at(-1)!.final = true
    },
    /** Gives one answer, the n-th asked, and lets its consequences happen. */
    async release(index = 0) {
      held.splice(index, 1)[0]?.()
      await new Promise(resolve => setImmediate(resolve))
    },
    get held() {
      return held.length
    },
    get head() {
      return events.length
    },
    get reads() {
      return reads
    },
  }
}

function openHub(store: ReturnType<typeof makeHeldSource>, onEmpty = () => {}) {
  const { source, newest } = store
  return makeHub({ topic: 'held/a', id: 'a', source, newest, gate: makeGate(2), log: silentLog, onEmpty })
}

function reader() {
  const seen: number[] = []
  const calls: string[] = []
  const follower: Follower = {
    opened: seq => calls.push(`opened ${seq}`),
    take: batch => {
      calls.push('take')
      seen.push(...seqs(batch.items.map(item => item.event)))
    },
    completed: () => calls.push('completed'),
  }
  return { seen, calls, follower }
}

test('a wake while the topic is opened, or during a read, makes one read more', async () => {
  const store = makeHeldSource()
  const hub = openHub(store)
  const { seen, follower } = reader()
  hub.add(follower, 0)
  store.append(1)
  hub.wake()
  await store.release()
  assert.equal(store.reads, 1, 'opened without events; the wake reads')
  store.append(1)
  for (let i = 0; i < 10; i++) hub.wake()
  await store.release()
  assert.deepEqual(seen, [1])
  assert.equal(store.reads, 2)
  await store.release()
  assert.deepEqual(seen, [1, 2])
  assert.equal(store.held, 0)
})

test('a topic that has ended is completed for whoever comes, at any position', async () => {
  for (const [after, calls] of [
    [0, ['opened 3', 'take', 'completed']],
    [2, ['opened 3', 'take', 'completed']],
    [3, ['opened 3', 'completed']],
    [9, ['opened 3', 'completed']],
  ] as const) {
    const store = makeHeldSource()
    store.append(3, true)
    let empty = 0
    const hub = openHub(store, () => empty++)
    const own = reader()
    hub.add(own.follower, after)
    await store.release()
    await store.release()
    assert.deepEqual(own.calls, calls)
    assert.equal(empty, 1)
  }
})

test('a follower from a number that is still to come gets only what is above it', async () => {
  const store = makeHeldSource()
  store.append(2)
  const hub = openHub(store)
  const ahead = reader()
  hub.add(ahead.follower, 4)
  while (store.held > 0) await store.release()
  for (let i = 0; i < 4; i++) {
    store.append(1)
    hub.wake()
    await store.release()
  }
  assert.deepEqual(ahead.seen, [5, 6])
})

test('a removed follower is told nothing more, even when it leaves inside its own call', async () => {
  const store = makeHeldSource()
  const hub = openHub(store)
  const own = reader()
  const other = reader()
  const take = own.follower.take
  own.follower.take = batch => {
    take(batch)
    stop()
  }
  const stop = hub.add(own.follower, 0)
  hub.add(other.follower, 0)
  await store.release()
  for (let i = 0; i < 3; i++) {
    store.append(1)
    hub.wake()
    await store.release()
  }
  assert.deepEqual([own.seen, other.seen], [[1], [1, 2, 3]])
})

test('history that the source has removed is skipped', async () => {
  const store = makeHeldSource()
  store.append(5)
  const hub = makeHub({
    topic: 'held/a',
    id: 'a',
    source: { ...store.source, read: async (_id, after) => (after < 400 ? [{ seq: 401, type: 'x', data: null }] : []) },
    newest: async () => 401,
    gate: makeGate(2),
    log: silentLog,
    onEmpty: () => {},
  })
  const own = reader()
  hub.add(own.follower, 0)
  await new Promise(resolve => setImmediate(resolve))
  assert.deepEqual(own.seen, [401])
})

test('whatever the order of writes, wakes, answers, arrivals and stalls, each follower sees every number once', async () => {
  for (let seed = 1; seed <= 150; seed++) await playOut(seed)
})

async function playOut(seed: number) {
  let state = seed
  const below = (n: number) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * n)
  }
  const store = makeHeldSource()
  store.append(below(300))
  const hub = openHub(store)
  const readers = new Set<{ after: number; seen: number[]; stop: () => void; resume: () => void }>()
  let calm = false
  const arrive = () => {
    const { seen, follower } = reader()
    const after = below(store.head + 1)
    const own = { after, seen, stop: () => {}, resume: () => {} }
    follower.drained = () =>
      calm || below(4) > 0
        ? undefined
        : new Promise(resolve => {
            own.resume = resolve
          })
    own.stop = hub.add(follower, after)
    readers.add(own)
  }
  const moves = [
    () => store.append(1 + below(below(10) === 0 ? 200 : 4)),
    () => hub.wake(),
    () => hub.wake(),
    () => store.release(below(store.held)),
    () => store.release(below(store.held)),
    arrive,
    () => [...readers][below(readers.size)]?.resume(),
    () => {
      const leaving = [...readers][below(readers.size)]
      if (readers.size < 3 || !leaving) return
      leaving.stop()
      readers.delete(leaving)
    },
  ]
  arrive()
  for (let step = 0; step < 80; step++) await moves[below(moves.length)]!()
  hub.wake()
  // Let everything that waits come to its end.
  calm = true
  for (const own of readers) own.resume()
  do await store.release()
  while (store.held > 0)
  for (const { after, seen } of readers) assert.deepEqual(seen, upTo(store.head).slice(after), `seed ${seed}`)
}
