import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isAppError } from '#platform/errors.ts'
import { makeShares, type Shares } from './shares.ts'

/** Takes all that the holder gets, and answers how many, and how it was refused more. */
function takeAll(shares: Shares, holder: string) {
  for (let count = 0; ; count++) {
    try {
      shares.take(holder)
    } catch (error) {
      assert.ok(isAppError(error))
      return { count, code: error.code }
    }
  }
}

test('one holder gets half of the places, and whoever comes finds one until all are taken', () => {
  const shares = makeShares({ places: 16, abreast: 1 })
  assert.deepEqual(takeAll(shares, 'ann'), { count: 8, code: 'too_many_transforms' })
  assert.deepEqual(takeAll(shares, 'bob'), { count: 4, code: 'too_many_transforms' })
  for (let n = 0; n < 4; n++) shares.take(`${n}`)
  assert.deepEqual(takeAll(shares, 'cid'), { count: 0, code: 'image_makers_full' })
  assert.equal(shares.taken, 16)
})

test('those who come together get equal shares', () => {
  const shares = makeShares({ places: 30, abreast: 1 })
  for (let n = 0; n < 10; n++) for (const holder of ['ann', 'bob']) shares.take(holder)
  for (const holder of ['ann', 'bob']) assert.deepEqual(takeAll(shares, holder).count, 0)
})

test('a place that was given back is another’s', () => {
  const shares = makeShares({ places: 2, abreast: 1 })
  const place = shares.take('ann')
  assert.equal(takeAll(shares, 'ann').code, 'too_many_transforms')
  place.end()
  assert.equal(shares.taken, 0)
  assert.equal(takeAll(shares, 'ann').count, 1)
})

test('of those that wait each holder’s next goes in turn, and one that fails makes room too', async () => {
  const shares = makeShares({ places: 100, abreast: 2 })
  const begun: string[] = []
  let running = 0
  const run = (name: string) =>
    shares.take(name[0]!).run(async () => {
      begun.push(name)
      assert.ok(++running <= 2)
      await new Promise(setImmediate)
      running--
      if (name === 'a2') throw new Error('broken')
    })
  const names = ['a1', 'a2', 'a3', 'a4', 'a5', 'b1', 'b2', 'c1']
  const results = await Promise.allSettled(names.map(run))
  assert.deepEqual(begun, ['a1', 'a2', 'a3', 'b1', 'c1', 'a4', 'b2', 'a5'])
  assert.equal(results.filter(each => each.status === 'rejected').length, 1)
})
