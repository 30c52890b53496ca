import assert from 'node:assert/strict'
import { test } from 'node:test'
import { silentLog } from '#platform/log.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { retain } from './retention.ts'
import { appendBatch } from './segment-store.ts'
import { makeTestStreams } from './stores-test-support.ts'

const dayMs = 86_400_000
const { db } = await makeTestDatabase()
const { declare } = makeTestStreams(db)
const today = Date.now()
const retainAt = (now: number) => retain({ db, log: silentLog, rollupDays: 400, now: new Date(now) })

const add = (streamId: number, at: number) =>
  appendBatch(db, {
    streamId,
    segments: [{ route: 'a', records: 1, lines: '{}' }],
    at: new Date(at),
    delta: undefined,
  })

async function count(streamId: number): Promise<number> {
  const { rows } = await db.query<{ count: number }>('select count(*) from ingest.segments where stream_id = $1', [
    streamId,
  ])
  return rows[0]!.count
}

async function parts(): Promise<string[]> {
  const { rows } = await db.query<{ name: string }>(
    `select inhrelid::regclass::text as name from pg_inherits where inhparent = 'ingest.segments'::regclass order by 1`,
  )
  return rows.map(row => row.name)
}

test('each stream keeps its records for its days, and a day that none keeps is dropped', async () => {
  const [short, long] = [await declare({ retentionDays: 1 }), await declare({ retentionDays: 40 })]
  for (const stream of [short, long]) await add(stream.id, today)
  await retainAt(today)
  assert.deepEqual([await count(short.id), await count(long.id)], [1, 1])
  await retainAt(today + 2 * dayMs)
  assert.deepEqual([await count(short.id), await count(long.id)], [0, 1])
  const before = await parts()
  await retainAt(today + 42 * dayMs)
  assert.equal(await count(long.id), 0)
  assert.ok(before.length > 1 && !(await parts()).includes(before[0]!), String(await parts()))
})

test('however many are too old, they are gone afterwards', async () => {
  const stream = await declare({ retentionDays: 1 })
  await db.query(
    `insert into ingest.segments (stream_id, first_offset, last_offset, at, route, lines)
     select $1, n, n, $2::timestamptz - interval '3 days', 'a', '{}' from generate_series(1, 25000) n`,
    [stream.id, new Date(today)],
  )
  await retainAt(today)
  assert.equal(await count(stream.id), 0)
})

test('who reads for long holds up nobody who adds while a day is to be made', async () => {
  const stream = await declare({ retentionDays: 200 })
  const reader = await db.connect()
  try {
    await reader.query('begin')
    await reader.query('select count(*) from ingest.segments')
    const made = retainAt(today + 100 * dayMs)
    await add(stream.id, today)
    await made
    assert.equal(await count(stream.id), 1)
  } finally {
    await reader.query('rollback')
    reader.release()
  }
  const before = (await parts()).length
  await Promise.all([retainAt(today + 100 * dayMs), retainAt(today + 100 * dayMs)])
  assert.ok((await parts()).length > before)
})

test('a process whose clock is far ahead moves no stream into the future', async () => {
  const stream = await declare()
  const timesOf = async () => {
    const { rows } = await db.query<{ at: Date; ahead: number }>(
      `select at, extract(epoch from at - now())::float8 as ahead from ingest.segments where stream_id = $1
       order by first_offset`,
      [stream.id],
    )
    return rows
  }
  await add(stream.id, Date.now() - 60_000)
  await add(stream.id, Date.now() + 400 * dayMs)
  await add(stream.id, Date.now() - 60_000)
  const [behind, ahead, next] = await timesOf()
  // Nothing but the bound is above what the database's clock says now.
  assert.ok(ahead!.ahead <= 5, `${ahead!.ahead} s`)
  assert.ok(behind!.at < ahead!.at && ahead!.at <= next!.at)
  assert.ok(next!.ahead <= 5, `${next!.ahead} s`)
})
