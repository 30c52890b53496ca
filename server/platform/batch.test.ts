import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeBatcher, type Outcome } from './batch.ts'

/** A batcher whose batches end when the test says so. */
function makeHeld(options: { size?: number; waitingMax?: number } = {}) {
  const batches: { items: number[]; end: PromiseWithResolvers<Outcome<string>[]> }[] = []
  const batcher = makeBatcher<number, string>({
    name: 'test',
    size: options.size ?? 100,
    waitingMax: options.waitingMax ?? 1000,
    run: items => {
      const end = Promise.withResolvers<Outcome<string>[]>()
      batches.push({ items, end })
      return end.promise
    },
  })
  return { batcher, batches }
}

const ok = (items: number[]) => items.map(item => ({ value: `done ${item}` }))
const turn = () => new Promise(resolve => setImmediate(resolve))

test('an idle batcher runs a lone item at once, and what comes meanwhile goes together', async () => {
  const { batcher, batches } = makeHeld()
  const first = batcher.push(1)
  await turn()
  assert.deepEqual(
    batches.map(batch => batch.items),
    [[1]],
  )
  const others = [2, 3, 4].map(item => batcher.push(item))
  await turn()
  assert.equal(batches.length, 1)
  batches[0]!.end.resolve(ok([1]))
  await turn()
  assert.deepEqual(batches[1]!.items, [2, 3, 4])
  batches[1]!.end.resolve(ok([2, 3, 4]))
  assert.deepEqual(await Promise.all([first, ...others]), ['done 1', 'done 2', 'done 3', 'done 4'])
  await batcher.idle()
})

test('no batch is larger than its size, and the order is kept', async () => {
  const seen: number[][] = []
  const batcher = makeBatcher<number, string>({
    name: 'test',
    size: 3,
    waitingMax: 100,
    run: async items => {
      seen.push(items)
      return ok(items)
    },
  })
  await Promise.all(Array.from({ length: 8 }, (_, n) => batcher.push(n)))
  assert.deepEqual(seen, [
    [0, 1, 2],
    [3, 4, 5],
    [6, 7],
  ])
})

test('one poisoned item fails alone', async () => {
  const batcher = makeBatcher<number, string>({
    name: 'test',
    size: 64,
    waitingMax: 100,
    run: async items => {
      if (items.includes(5)) throw new Error('five')
      return ok(items)
    },
  })
  const results = await Promise.allSettled(Array.from({ length: 20 }, (_, n) => batcher.push(n)))
  assert.deepEqual(
    results.flatMap((result, n) => (result.status === 'rejected' ? [n] : [])),
    [5],
  )
})

test('an error common to all is not tried item by item', async () => {
  let runs = 0
  const batcher = makeBatcher<number, string>({
    name: 'test',
    size: 64,
    waitingMax: 100,
    isCommon: () => true,
    run: async () => {
      runs++
      throw new Error('the database is down')
    },
  })
  const results = await Promise.allSettled(Array.from({ length: 20 }, (_, n) => batcher.push(n)))
  assert.ok(results.every(result => result.status === 'rejected'))
  assert.equal(runs, 1)
})

test('an outcome of its own rejects an item and not its neighbours', async () => {
  const batcher = makeBatcher<number, string>({
    name: 'test',
    size: 64,
    waitingMax: 100,
    run: async items => items.map(item => (item === 1 ? { error: new Error('one') } : { value: 'fine' })),
  })
  const results = await Promise.allSettled([0, 1, 2].map(item => batcher.push(item)))
  assert.deepEqual(
    results.map(result => result.status),
    ['fulfilled', 'rejected', 'fulfilled'],
  )
})

test('past its bound a push is refused at once with 503', async () => {
  const { batcher, batches } = makeHeld({ waitingMax: 2 })
  const accepted = [batcher.push(0)]
  await turn()
  accepted.push(batcher.push(1), batcher.push(2))
  await assert.rejects(batcher.push(3), { code: 'overloaded', status: 503 })
  batches[0]!.end.resolve(ok([0]))
  await turn()
  batches[1]!.end.resolve(ok([1, 2]))
  await Promise.all(accepted)
})

test('with weights a batch is as heavy as it may be, and a heavier item is alone', async () => {
  const batches: number[][] = []
  const gate = Promise.withResolvers<void>()
  const batcher = makeBatcher<number, number>({
    name: 'weighed',
    size: 10,
    weigh: item => item,
    waitingMax: 100,
    async run(items) {
      batches.push(items)
      await gate.promise
      return items.map(value => ({ value }))
    },
  })
  const first = batcher.push(1)
  await Promise.resolve()
  const rest = [3, 4, 3, 4, 50, 1, 9, 1].map(item => batcher.push(item))
  gate.resolve()
  await Promise.all([first, ...rest])
  assert.deepEqual(batches, [[1], [3, 4, 3], [4], [50], [1, 9], [1]])
})
