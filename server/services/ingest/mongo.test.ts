import assert from 'node:assert/strict'
import { test } from 'node:test'
import { BSON, Long, MongoBulkWriteError, MongoClient, MongoServerError } from 'mongodb'
import { silentLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { makeTestMongo, mongoIsMissing } from '../../../test/support/mongo.ts'
import { listBehind } from './cursor-store.ts'
import { makePostgresLog } from './log-postgres.ts'
import { type Insertable, type Mongo, makeCopier, makeMongo } from './mongo.ts'
import { type RecordDocument, toDocument } from './mongo-documents.ts'
import { inventory, makeTestStreams } from './stores-test-support.ts'
import type { Route, StreamRow } from './types.ts'

const skip = mongoIsMissing
const server = skip ? undefined : await makeTestMongo()
const { db } = await makeTestDatabase()
const { streams, declare } = makeTestStreams(db)
const client = new MongoClient(server?.url ?? 'mongodb://127.0.0.1:1/none')
atEnd(() => client.close())
const store = makePostgresLog({
  db,
  metrics: makeMetrics({ processMetrics: false }),
  onAppended: () => {},
  waitingMax: 1000,
  clock: Date.now,
})
let refused = 0

function makeCopies(holder = 'one'): Mongo {
  const onRefused = (_: string, records: number) => {
    refused += records
  }
  const mongo = makeMongo({ db, log: silentLog, holder, onRefused, url: server!.url })
  atEnd(() => mongo.stop())
  return mongo
}

async function add(stream: StreamRow, given: { route: Route; texts: string[] }) {
  const keys = given.texts.map(() => JSON.stringify(stream.dimensions.map(() => '')))
  await store.append(stream, { route: given.route, bunch: { texts: given.texts, keys } })
}

/** As the loop of the readers does it. */
async function copyAll(mongo: Mongo, routes: readonly Route[] = ['a', 'b']) {
  for (const route of routes) {
    const reader = mongo.readerOf(route)
    for (let more = true; more; ) {
      more = false
      for (const behind of await listBehind(db, { reader: reader.name, counted: 'last_offset', limit: 100 })) {
        more = (await reader.step(behind)) || more
      }
    }
  }
}

async function documentsOf(stream: StreamRow): Promise<RecordDocument[]> {
  const found = await client.db().collection<RecordDocument>(stream.name).find().toArray()
  return found.sort((a, b) => a.offset - b.offset)
}

/** Each record is one document. */
async function assertOnce(stream: StreamRow) {
  const { records, offsets } = await inventory(db, stream)
  const documents = await documentsOf(stream)
  assert.deepEqual(
    documents.map(({ offset }) => offset),
    offsets,
  )
  assert.deepEqual(
    documents.map(({ record, json }) => (record ? roundLongs(record) : JSON.parse(json!))),
    records.map(text => JSON.parse(text)),
  )
}

/** As JavaScript would have read them. */
function roundLongs(record: Record<string, unknown>) {
  return Object.fromEntries(
    Object.entries(record).map(([name, value]) => [name, value instanceof Long ? value.toNumber() : value]),
  )
}

const numbered = (from: number, count: number) => Array.from({ length: count }, (_, n) => `{"id":${from + n}}`)

test('each record becomes one document, by the part whose route it took', { skip }, async () => {
  const stream = await declare({ schema: { type: 'object' } })
  await add(stream, { route: 'a', texts: numbered(0, 2500) })
  await add(stream, { route: 'b', texts: numbered(2500, 30) })
  await add(stream, { route: 'a', texts: numbered(2530, 1) })
  const mongo = makeCopies()
  await copyAll(mongo, ['a'])
  assert.equal((await documentsOf(stream)).length, 2501)
  await copyAll(mongo)
  await assertOnce(stream)
  const [first] = await documentsOf(stream)
  assert.deepEqual(
    { ...first, at: first!.at instanceof Date },
    {
      _id: { stream: stream.id, offset: 1 },
      offset: 1,
      route: 'a',
      at: true,
      record: { id: 0 },
    },
  )
})

test('whatever a record holds is kept as it is', { skip }, async () => {
  const stream = await declare({ schema: { type: 'object' } })
  const texts = [
    '{"$set":{"a":1}}',
    '{"a.b":1,"c":{"$d":2}}',
    '{"_id":7,"offset":1,"route":"x"}',
    '{"_bsontype":"ObjectId","id":"x"}',
    '{"a":{"\\u005fbsontype":"Long"}}',
    '{"__proto__":{"a":1}}',
    '{"":{"":1}}',
    '{"a":"\\u0000"}',
    '{"a":[[1,[2]],[]]}',
    '{"a":9007199254740993,"b":-9223372036854775808,"c":0.1,"d":"2024-01-01T00:00:00Z","e":null}',
    '{"a":18446744073709551616,"b":12345678.1234567890123}',
    `{"a":${'9'.repeat(60)}}`,
    '{"a":1e400}',
    `{"a":${'{"a":'.repeat(30)}1${'}'.repeat(30)}}`,
    `{"text":"${'x'.repeat(900_000)}"}`,
  ]
  await add(stream, { route: 'b', texts: [...numbered(0, 3), ...texts, ...numbered(3, 3)] })
  refused = 0
  await copyAll(makeCopies())
  await assertOnce(stream)
  assert.equal(refused, 0)
  for (const { offset, json } of await documentsOf(stream))
    if (json !== undefined) assert.ok(texts.includes(json), `${offset}`)
})

test('a document holds numbers and names exactly, or the text does', () => {
  const given = { streamId: 1, offset: 2, route: 'a' as const, at: new Date(0) }
  const expected: [string, 'record' | 'json', string][] = [
    ['{"a":9007199254740993}', 'record', '9007199254740993'],
    ['{"a":-9223372036854775808}', 'record', '-9223372036854775808'],
    ['{"a":9223372036854775808}', 'json', ''],
    ['{"a":12345678.1234567890123}', 'json', ''],
    ['{"a":1e-400}', 'json', ''],
    ['{"a":1e400}', 'json', ''],
    ['{"a":1.50}', 'record', '1.5'],
    ['{"a":1e21}', 'record', '1e+21'],
    ['{"a":"1.5 $ x"}', 'record', '1.5 $ x'],
    ['{"a":{"_id":1}}', 'record', '[object Object]'],
    [`{"a":1${'0'.repeat(40)}1}`, 'json', ''],
    ['{"$a":1}', 'json', ''],
    ['{"a":[{"b.c":1}]}', 'json', ''],
    ['{"a":{"_bsontype":1}}', 'json', ''],
    ['{"\\u005fbsontype":1}', 'json', ''],
    ['{"__proto__":1}', 'json', ''],
    ['{"a":"\\u0000"}', 'json', ''],
  ]
  for (const [text, kind, shown] of expected) {
    const document = toDocument({ ...given, text })
    assert.deepEqual(Object.keys(document), ['_id', 'offset', 'route', 'at', kind], text)
    if (kind === 'json') assert.equal(document.json, text)
    else assert.equal(String(document.record!.a), shown, text)
    // The driver takes it, and gives back what went in.
    const back = BSON.deserialize(BSON.serialize(document), { promoteValues: false })
    assert.equal(String(back.offset), '2')
  }
  assert.ok(toDocument({ ...given, text: '{"a":9007199254740993}' }).record!.a instanceof Long)
})

test('a copier that dies anywhere is followed by one that copies each record once', { skip }, async () => {
  const stream = await declare({ schema: { type: 'object' } })
  await add(stream, { route: 'a', texts: numbered(0, 1500) })
  const collection = client.db().collection<RecordDocument>(stream.name)
  for (const cut of ['before', 'half', 'after'] as const) {
    await add(stream, { route: 'a', texts: numbered(0, 50) })
    const cutting: Insertable = {
      async insertMany(documents, options) {
        if (cut === 'half') await collection.insertMany(documents.slice(0, documents.length / 2), options)
        if (cut === 'after') await collection.insertMany(documents, options).catch(() => {})
        throw new Error('cut')
      },
    }
    const deps = { db, log: silentLog, holder: 'one', onRefused: () => {} }
    const copier = makeCopier({ ...deps, collectionOf: () => cutting, route: 'a' })
    await assert.rejects(copier.step({ streamId: stream.id, name: stream.name, position: 0, newest: 0 }), /cut/)
    await copyAll(makeCopies(), ['a'])
    await assertOnce(stream)
  }
})

test('two copiers of a stream at once copy each record once', { skip }, async () => {
  const stream = await declare({ schema: { type: 'object' } })
  for (let round = 0; round < 4; round++) {
    await add(stream, { route: 'b', texts: numbered(round * 300, 300) })
    const steps = ['one', 'two', 'three'].map(async holder => {
      // All think that they hold it.
      await db.query(`update ingest.cursors set held_until = null where name = 'mongo:b'`)
      return makeCopies(holder).readerOf('b').step({ streamId: stream.id, name: stream.name, position: 0, newest: 0 })
    })
    await Promise.all(steps)
    await db.query(`update ingest.cursors set held_until = null where name = 'mongo:b'`)
  }
  await copyAll(makeCopies())
  await assertOnce(stream)
})

test('a MongoDB that is killed and comes back has each record once', { skip, timeout: 60_000 }, async () => {
  const stream = await declare({ schema: { type: 'object' } })
  for (let n = 0; n < 40; n++) await add(stream, { route: 'b', texts: numbered(n * 250, 250) })
  // FerretDB that is killed while it makes a collection cannot make it any more.
  await client.db().createCollection(stream.name)
  const mongo = makeCopies()
  const reader = mongo.readerOf('b')
  const step = () => reader.step({ streamId: stream.id, name: stream.name, position: 0, newest: 0 })
  for (let kill = 0; kill < 2; kill++) {
    const stepping = step().then(
      () => 'done',
      () => 'failed',
    )
    // In the middle of it, as near as can be had from outside.
    await new Promise(resolve => setTimeout(resolve, 30 + 60 * kill))
    await server!.kill()
    await stepping
    await server!.start()
  }
  await copyAll(mongo)
  await assertOnce(stream)
})

test('what a server never takes stops nothing, and what passes is tried again', async () => {
  const stream = await declare({ schema: { type: 'object' } })
  await add(stream, { route: 'b', texts: numbered(0, 10) })
  const taken = new Map<number, RecordDocument>()
  let failure: Error | undefined
  const collection: Insertable = {
    async insertMany(documents: readonly RecordDocument[]) {
      if (failure) throw failure
      const numbers = documents.map(({ offset }) => offset)
      // The whole request is refused, without a word on why.
      if (numbers.includes(3)) throw new MongoServerError({ message: 'too large', code: 10_334 })
      const odd = documents.flatMap(({ offset, json }, index) =>
        offset === 5 && !json ? [{ index, code: 9, errmsg: 'no' }] : [],
      )
      for (const document of documents) if (document.offset !== 5 || document.json) taken.set(document.offset, document)
      if (odd.length === 0) return { acknowledged: true, insertedCount: 0, insertedIds: {} }
      throw new MongoBulkWriteError(
        { message: 'no', code: 9, writeErrors: odd } as never,
        { getWriteConcernError: () => undefined } as never,
      )
    },
  } as Insertable
  let never = 0
  const onRefused = (_: string, records: number) => {
    never += records
  }
  const copier = makeCopier({
    db,
    log: silentLog,
    holder: 'one',
    onRefused,
    collectionOf: () => collection,
    route: 'b',
  })
  const step = () => copier.step({ streamId: stream.id, name: stream.name, position: 0, newest: 0 })
  for (const code of [11_600, 10_107, 13]) {
    failure = new MongoServerError({ message: 'passes', code })
    await assert.rejects(step(), /passes/)
  }
  assert.equal(taken.size, 0)
  failure = undefined
  assert.equal(await step(), true)
  assert.deepEqual(
    [...taken.keys()].sort((a, b) => a - b),
    [1, 2, 4, 5, 6, 7, 8, 9, 10],
  )
  assert.equal(taken.get(5)!.json, '{"id":4}')
  assert.equal(never, 1)
  assert.equal(await step(), false)
})

test('the copies of a stream that was deleted do not hide those of its namesake', { skip }, async () => {
  const stream = await declare({ name: 'namesake', schema: { type: 'object' } })
  await add(stream, { route: 'a', texts: numbered(0, 5) })
  await copyAll(makeCopies())
  await streams.remove(stream.name)
  const fresh = await declare({ name: 'namesake', schema: { type: 'object' } })
  await add(fresh, { route: 'a', texts: numbered(100, 5) })
  await copyAll(makeCopies())
  const ids = (await documentsOf(fresh)).filter(each => each._id.stream === fresh.id).map(({ record }) => record!.id)
  assert.deepEqual(ids, [100, 101, 102, 103, 104])
})

test('half of a surrogate pair, which BSON cannot hold, is kept in the text', () => {
  for (const text of ['{"a":"\\ud800"}', '{"\\udc00":1}']) {
    const { record, json } = toDocument({ streamId: 1, offset: 1, route: 'a', at: new Date(0), text })
    assert.deepEqual([record, json], [undefined, text])
  }
})

test('a deleted stream’s documents are removed, and none of its namesake’s', { skip }, async () => {
  const schema = { type: 'object' }
  const old = await declare({ name: 'renewed', schema })
  const mongo = makeCopies()
  await add(old, { route: 'a', texts: numbered(0, 1100) })
  await copyAll(mongo)
  await streams.remove(old.name)
  const fresh = await declare({ name: 'renewed', schema })
  const other = await declare({ name: 'renewed2', schema })
  await add(fresh, { route: 'b', texts: numbered(0, 30) })
  await copyAll(mongo)
  assert.equal((await documentsOf(fresh)).length, 1130)
  let pieces = 1
  while (!(await mongo.remove(old))) pieces++
  assert.equal(pieces, 2)
  assert.deepEqual(new Set((await documentsOf(fresh)).map(({ _id }) => _id.stream)), new Set([fresh.id]))
  await assertOnce(fresh)
  // Where there is nothing, there is nothing to do.
  assert.ok(await mongo.remove(old))
  assert.ok(await mongo.remove(other))
  await assertOnce(fresh)
})
