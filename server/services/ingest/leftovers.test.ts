import assert from 'node:assert/strict'
import { test } from 'node:test'
import { silentLog } from '#platform/log.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { claimLeftover, leftoverStores } from './leftover-store.ts'
import { makeLeftovers, type Remove } from './leftovers.ts'
import { retain } from './retention.ts'
import { makeTestStreams } from './stores-test-support.ts'

const { db } = await makeTestDatabase()
const { streams, declare } = makeTestStreams(db)
const makeRemoving = (mongodb: Remove) => makeLeftovers({ db, log: silentLog, removers: { mongodb } })

async function deleteOne() {
  const stream = await declare()
  await streams.remove(stream.name)
  return stream
}

/** As if a stream had been deleted so long ago, and what is to be done were due. */
async function letPass(streamId: number, seconds = 20) {
  await db.query(
    `update ingest.leftovers set deleted_at = deleted_at - make_interval(secs => $2), due_at = now() where stream_id = $1`,
    [streamId, seconds],
  )
}

async function storesLeft(streamId: number): Promise<string[]> {
  const { rows } = await db.query<{ store: string }>(
    'select store from ingest.leftovers where stream_id = $1 order by store',
    [streamId],
  )
  return rows.map(row => row.store)
}

test('what a deleted stream left is removed in each store a moment later, and once more at last', async () => {
  const removed: [number, string][] = []
  const leftovers = makeRemoving(async ({ id, name }) => {
    removed.push([id, name])
    return true
  })
  const stream = await deleteOne()
  const { rows } = await db.query<{ wait: number }>(
    'select extract(epoch from due_at - deleted_at)::float8 as wait from ingest.leftovers where stream_id = $1',
    [stream.id],
  )
  assert.deepEqual(new Set(rows.map(row => row.wait)), new Set([10]))
  await letPass(stream.id)
  await leftovers.remove()
  await leftovers.remove()
  assert.deepEqual(removed, [[stream.id, stream.name]])
  assert.deepEqual(await storesLeft(stream.id), [...leftoverStores])
  await letPass(stream.id, 600)
  await leftovers.remove()
  assert.equal(removed.length, 2)
  assert.deepEqual(await storesLeft(stream.id), ['kafka', 'redis'])
})

test('a large one is removed in pieces, and one whose removal fails is tried again', async () => {
  let calls = 0
  const leftovers = makeRemoving(async () => {
    calls++
    if (calls === 2) throw new Error('the store is away')
    return calls >= 5
  })
  const stream = await deleteOne()
  await letPass(stream.id, 700)
  await leftovers.remove()
  await leftovers.remove()
  assert.equal(calls, 2)
  await letPass(stream.id)
  await leftovers.remove()
  assert.equal(calls, 5)
  assert.ok(!(await storesLeft(stream.id)).includes('mongodb'))
})

test('one whose process died while it was at it is taken by another, and by no two at once', async () => {
  const stream = await deleteOne()
  await letPass(stream.id)
  const given = { stores: ['mongodb'], seconds: 60 } as const
  const claims = await Promise.all([claimLeftover(db, given), claimLeftover(db, given), claimLeftover(db, given)])
  assert.deepEqual(
    claims.flatMap(claim => (claim ? [claim.streamId] : [])),
    [stream.id],
  )
  // Its time is over, and nobody has said that it is removed.
  await letPass(stream.id)
  assert.equal((await claimLeftover(db, given))?.streamId, stream.id)
})

test('a stream that is not deleted after all leaves nothing, and a store that stays away is forgotten', async () => {
  const stream = await declare()
  await assert.rejects(streams.remove('nowhere'), { code: 'stream_not_found' })
  assert.deepEqual(await storesLeft(stream.id), [])
  await streams.remove(stream.name)
  const retained = () => retain({ db, log: silentLog, rollupDays: 400, now: new Date() })
  await retained()
  assert.deepEqual(await storesLeft(stream.id), [...leftoverStores])
  await letPass(stream.id, 91 * 86_400)
  await retained()
  assert.deepEqual(await storesLeft(stream.id), [])
})
