import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeMetrics } from '#platform/metrics.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { makePostgresLog } from './log-postgres.ts'
import { makeReading, pageBytesMax } from './reading.ts'
import { listSegments } from './segment-store.ts'
import { makeTestStreams } from './stores-test-support.ts'
import type { StreamRow } from './types.ts'

const { db } = await makeTestDatabase()
const { streams, declare } = makeTestStreams(db)
const store = makePostgresLog({
  db,
  metrics: makeMetrics({ processMetrics: false }),
  onAppended: () => {},
  waitingMax: 1000,
  clock: Date.now,
})
const cuts: string[] = []
const reading = makeReading({ db, streams, onCut: name => cuts.push(name) })

async function add(stream: StreamRow, texts: string[]) {
  for (let from = 0; from < texts.length; from += 10) {
    const some = texts.slice(from, from + 10)
    await store.append(stream, { route: 'b', bunch: { texts: some, keys: some.map(() => '["","","",""]') } })
  }
}

/** @param bytes about how many; each character of it has three */
const makeText = (id: number, bytes: number) => JSON.stringify({ id, text: '€'.repeat(bytes / 3) })

/** The sizes of the pages, one after the other. */
async function readPages(stream: StreamRow, limit: number) {
  const pages: string[][] = []
  for (let after = 0; ; ) {
    const page = await reading.read(stream, { after, limit })
    if (page.length === 0) return pages
    pages.push(page.map(each => each.text))
    after = page.at(-1)!.offset
  }
}

test('a page of long records ends at its bytes, and the next one goes on there', async () => {
  const stream = await declare()
  const texts = Array.from({ length: 200 }, (_, id) => makeText(id, 60_000))
  await add(stream, texts)
  const pages = await readPages(stream, 1000)
  assert.deepEqual(pages.flat(), texts)
  for (const page of pages) assert.ok(Buffer.byteLength(page.join('')) <= pageBytesMax, `${page.length} records`)
  assert.ok(pages.length <= 2 * Math.ceil(Buffer.byteLength(texts.join('')) / pageBytesMax), `${pages.length} pages`)
  // Nor is more than that fetched, but for the rest of a segment.
  const segments = await listSegments(db, { streamId: stream.id, after: 0, records: 1000, bytes: pageBytesMax })
  const fetched = segments.reduce((sum, { lines }) => sum + Buffer.byteLength(lines), 0)
  assert.ok(fetched >= pageBytesMax && fetched < 1.5 * pageBytesMax, String(fetched))
  assert.deepEqual((await readPages(stream, 7)).slice(0, 2), [texts.slice(0, 7), texts.slice(7, 14)])
})

test('a record that is longer than a page is a page', async () => {
  const stream = await declare()
  const texts = [makeText(0, 30), makeText(1, pageBytesMax + 3000), makeText(2, pageBytesMax + 3000), makeText(3, 30)]
  await add(stream, texts)
  assert.deepEqual(
    await readPages(stream, 1000),
    texts.map(text => [text]),
  )
})

test('who follows is given no more at once, and is woken for the rest', async () => {
  const stream = await declare()
  const texts = Array.from({ length: 100 }, (_, id) => makeText(id, 60_000))
  await add(stream, texts)
  let after = 0
  let reads = 0
  for (; after < texts.length; reads++) {
    const events = await reading.source.read(stream.name, after, 128)
    assert.equal(events[0]!.seq, after + 1)
    after = events.at(-1)!.seq
    // Whoever is given all there is need not be woken.
    assert.equal(cuts.length, after < texts.length ? reads + 1 : reads)
  }
  assert.ok(reads > 1)
  assert.deepEqual(new Set(cuts), new Set([stream.name]))
})
