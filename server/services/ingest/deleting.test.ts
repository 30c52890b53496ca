import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Tx } from '#platform/database/pool.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { until } from '../../../test/support/until.ts'
import { lockCursor } from './cursor-store.ts'
import { insertDeltas } from './delta-store.ts'
import { movePartitions } from './kafka-store.ts'
import { appendBatch } from './segment-store.ts'
import { makeTestStreams } from './stores-test-support.ts'
import { deleteStream } from './stream-store.ts'

const { db } = await makeTestDatabase()
const { declare } = makeTestStreams(db)

async function isSomebodyWaiting(): Promise<boolean> {
  const { rows } = await db.query<{ waiting: boolean }>(
    `select exists (select from pg_stat_activity
       where datname = current_database() and wait_event_type = 'Lock') as waiting`,
  )
  return rows[0]!.waiting
}

/** What locks rows of a stream first, and its head last. */
const works: Record<string, { first(tx: Tx, streamId: number): Promise<unknown>; last(tx: Tx, id: number): unknown }> =
  {
    'the consumer': {
      first: (tx, streamId) => lockCursor(tx, { streamId, reader: 'consumer' }),
      last: (tx, streamId) =>
        insertDeltas(tx, { streamId, deltas: [{ minute: new Date(0), dimensions: '', counts: '{}' }] }),
    },
    'what takes over from Kafka': {
      first: (tx, streamId) => {
        const moves = [{ partition: 0, topicId: 'x', from: 0, to: 1 }]
        return movePartitions(tx, { streamId, moves })
      },
      last: (tx, streamId) => {
        const segments = [{ route: 'a' as const, records: 1, lines: '{}' }]
        return appendBatch(tx, { streamId, segments, at: new Date(), delta: undefined })
      },
    },
  }

for (const [name, { first, last }] of Object.entries(works)) {
  for (const isNew of [true, false]) {
    test(`a deletion waits for ${name}, and neither fails (${isNew ? 'for the first time' : 'later'})`, async () => {
      const stream = await declare()
      await db.query(`insert into ingest.kafka_offsets (stream_id, partition, topic_id) values ($1, 0, 'x')`, [
        stream.id,
      ])
      if (!isNew) await db.tx(tx => lockCursor(tx, { streamId: stream.id, reader: 'consumer' }))
      // A transaction that is given up for a deadlock begins again.
      const begun = { work: 0, deletion: 0 }
      const remove = () =>
        db.tx(tx => {
          begun.deletion++
          return deleteStream(tx, stream.id)
        })
      const removed = Promise.withResolvers<boolean>()
      await db.tx(async tx => {
        begun.work++
        await first(tx, stream.id)
        if (begun.work === 1) removed.resolve(remove())
        await until(isSomebodyWaiting)
        await last(tx, stream.id)
      })
      assert.ok(await removed.promise)
      assert.deepEqual(begun, { work: 1, deletion: 1 })
      for (const table of ['streams where id', 'heads where stream_id', 'cursors where stream_id']) {
        const { rowCount } = await db.query(`select from ingest.${table} = $1`, [stream.id])
        assert.equal(rowCount, 0, table)
      }
    })
  }
}
