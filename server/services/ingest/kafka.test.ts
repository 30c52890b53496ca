import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Admin, NetworkError, Producer } from '@platformatic/kafka'
import type { Database, Tx } from '#platform/database/pool.ts'
import { silentLog } from '#platform/log.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { kafkaIsMissing, makeTestKafka } from '../../../test/support/kafka.ts'
import { until } from '../../../test/support/until.ts'
import { generateCourses } from './courses.ts'
import { clientOptions, removeTopic, topicOf } from './kafka-client.ts'
import { type KafkaConsumer, makeKafkaConsumer } from './kafka-consuming.ts'
import { makeTaking, type Piece } from './kafka-taking.ts'
import { type KafkaLogDeps, makeKafkaLog } from './log-kafka.ts'
import { inCountedOrder } from './merging.ts'
import { keyOf } from './record.ts'
import { findOffsetOfKafka, listSegments } from './segment-store.ts'
import { inventory, makeTestStreams } from './stores-test-support.ts'
import type { Bunch, Placed, StreamRow } from './types.ts'

const skip = kafkaIsMissing
const kafka = skip ? undefined : await makeTestKafka()
const { db } = await makeTestDatabase()
const { streams, declare } = makeTestStreams(db)
const place = { brokers: [kafka?.brokers ?? ''], prefix: 'capstan.test' }
const clock = Date.now

function makeLog(given: Partial<Pick<KafkaLogDeps, 'onStored' | 'partitions' | 'producer'>> = {}) {
  const log = makeKafkaLog({
    ...place,
    partitions: 4,
    replicas: 1,
    waitingMax: 10_000,
    log: silentLog,
    onStored: () => {},
    onTopic() {
      for (const consumer of consumers) consumer.wake()
    },
    clock,
    ...given,
  })
  atEnd(() => log.stop())
  return log
}

const consumers = new Set<KafkaConsumer>()

function makeConsumer(given: { on?: Database; onAppended?: (name: string) => void } = {}) {
  const on = given.on ?? db
  const taking = makeTaking({ db: on, log: silentLog, onAppended: given.onAppended ?? (() => {}), clock })
  const holder = `consumer ${consumers.size}`
  const consumer = makeKafkaConsumer({ ...place, db: on, streams, taking, log: silentLog, holder })
  atEnd(() => consumer.stop())
  consumers.add(consumer)
  consumer.start()
  return consumer
}

let seed = 0

function makeBunch(records: number): Bunch {
  const texts = [...generateCourses({ count: records, seed: ++seed })].map((record, n) =>
    JSON.stringify({ ...record, id: `${seed}-${n}` }),
  )
  return { texts, keys: texts.map(() => '[]') }
}

/** Appends bunches and remembers what was acknowledged. */
async function appendAll(
  log: { append: (stream: StreamRow, bunch: Bunch) => Promise<Placed> },
  stream: StreamRow,
  bunches: readonly Bunch[],
) {
  const placed = await Promise.all(bunches.map(async bunch => ({ bunch, at: await log.append(stream, bunch) })))
  return placed
}

async function untilTaken(stream: StreamRow, records: number, timeoutMs = 30_000) {
  await until(async () => (await inventory(db, stream)).records.length >= records, timeoutMs)
}

async function assertOnce(stream: StreamRow, bunches: readonly Bunch[]) {
  const { records, byDimensions, offsets } = await inventory(db, stream)
  const texts = bunches.flatMap(bunch => bunch.texts)
  assert.deepEqual(records.toSorted(), texts.toSorted())
  assert.deepEqual(
    offsets,
    records.map((_, index) => index + 1),
  )
  const counted = new Map<string, number>()
  for (const text of texts) {
    const key = keyOf(inCountedOrder(stream.dimensions), JSON.parse(text))
    counted.set(key, (counted.get(key) ?? 0) + 1)
  }
  assert.deepEqual(byDimensions, counted)
}

test('records go through Kafka into the store once, and are found by the place they were given', { skip }, async () => {
  const stream = await declare()
  const stored: [string, number][] = []
  const log = makeLog({ onStored: (...what) => stored.push(what) })
  const appended: string[] = []
  const consumer = makeConsumer({ onAppended: name => appended.push(name) })
  const bunches = [...Array.from({ length: 60 }, () => makeBunch(1)), makeBunch(700), makeBunch(3), makeBunch(1000)]
  const placed = await appendAll(log, stream, bunches)
  await untilTaken(stream, 1763)
  await assertOnce(stream, bunches)
  await consumer.stop()
  assert.ok(appended.includes(stream.name))
  assert.equal(
    stored.reduce((sum, [, records]) => sum + records, 0),
    1763,
  )
  for (const { bunch, at } of placed) {
    for (const [index, text] of bunch.texts.entries()) {
      if (index % 97 !== 0) continue
      const found = await findOffsetOfKafka(db, {
        streamId: stream.id,
        partition: at.partition!,
        place: at.first + index,
      })
      const [segment] = await listSegments(db, { streamId: stream.id, after: found! - 1, records: 1, bytes: 1 })
      assert.equal(segment!.lines.split('\n')[found! - segment!.first_offset], text)
    }
  }
})

/** A database whose transactions fail at their nth statement, before or after it, or after the commit. */
function makeFailing(fail: (at: number, when: 'before' | 'after' | 'committed') => boolean): Database {
  const wrap = (tx: Tx): Tx => {
    let statements = 0
    return {
      ...tx,
      async query(...given: Parameters<Tx['query']>) {
        const at = ++statements
        if (fail(at, 'before')) throw new Error('cut before')
        const answer = await tx.query(...given)
        if (fail(at, 'after')) throw new Error('cut after')
        return answer
      },
    } as Tx
  }
  return {
    ...db,
    async tx(run, how) {
      const answer = await db.tx(tx => run(wrap(tx)), how)
      if (fail(0, 'committed')) throw new Error('cut after the commit')
      return answer
    },
  }
}

for (const [at, when] of [
  [1, 'before'],
  [1, 'after'],
  [2, 'before'],
  [2, 'after'],
  [0, 'committed'],
] as const) {
  test(`a transaction that is cut ${when} statement ${at} loses nothing and doubles nothing`, { skip }, async () => {
    const stream = await declare()
    let cuts = 0
    const failing = makeFailing((n, then) => n === at && then === when && cuts < 3 && ++cuts > 0)
    const log = makeLog()
    const consumer = makeConsumer({ on: failing })
    const bunches = Array.from({ length: 12 }, () => makeBunch(50))
    for (const bunch of bunches) await log.append(stream, bunch)
    await untilTaken(stream, 600)
    await until(() => cuts === 3 || when === 'committed')
    assert.ok(cuts > 0)
    await consumer.stop()
    await assertOnce(stream, bunches)
  })
}

test('of two that write the same records one is overtaken', { skip }, async () => {
  const stream = await declare()
  const taking = makeTaking({ db, log: silentLog, onAppended: () => {}, clock })
  await db.query(
    `insert into ingest.kafka_offsets (stream_id, partition, topic_id) values ($1, 0, 'x'), ($1, 1, 'x')`,
    [stream.id],
  )
  const piece = (partition: number, from: number, ids: number[]): Piece => ({
    partition,
    topicId: 'x',
    from,
    to: from + ids.length,
    messages: ids.map((id, n) => ({ offset: from + n, value: Buffer.from(`{"id":${id}}`) })),
  })
  assert.equal(await taking.takeOver(stream, [piece(0, 0, [1, 2])]), 2)
  await assert.rejects(taking.takeOver(stream, [piece(0, 0, [1, 2])]), /Others read/)
  // What else the zombie has read is not written without the rest.
  await assert.rejects(taking.takeOver(stream, [piece(1, 0, [3]), piece(0, 1, [2])]), /Others read/)
  const outcomes = await Promise.allSettled(
    [1, 2, 3].map(() => taking.takeOver(stream, [piece(1, 0, [3]), piece(0, 2, [4])])),
  )
  assert.equal(outcomes.filter(({ status }) => status === 'fulfilled').length, 1)
  const { records } = await inventory(db, stream)
  assert.deepEqual(records.toSorted(), ['{"id":1}', '{"id":2}', '{"id":3}', '{"id":4}'])
})

test('what is no record is passed over, and the records beside it keep their places', { skip }, async () => {
  const stream = await declare()
  const taking = makeTaking({ db, log: silentLog, onAppended: () => {}, clock })
  await db.query(`insert into ingest.kafka_offsets (stream_id, partition, topic_id) values ($1, 0, 'x')`, [stream.id])
  const values = ['{"id":10}', 'no json', '{"id":12}', '[1]', null, '{\n"id":15,"n":1e999}', '{"id":17}']
  const offsets = [10, 11, 12, 13, 14, 15, 17]
  await db.query('update ingest.kafka_offsets set next_offset = 10 where stream_id = $1', [stream.id])
  const messages = values.map((value, n) => ({
    offset: offsets[n]!,
    value: value === null ? null : Buffer.from(value),
  }))
  await taking.takeOver(stream, [{ partition: 0, topicId: 'x', from: 10, to: 18, messages }])
  const { records } = await inventory(db, stream)
  assert.deepEqual(records, ['{"id":10}', '{"id":12}', '{ "id":15,"n":1e999}', '{"id":17}'])
  const found = await Promise.all(
    offsets.map(place => findOffsetOfKafka(db, { streamId: stream.id, partition: 0, place })),
  )
  assert.deepEqual(found, [1, undefined, 2, undefined, undefined, 3, 4])
})

test('two consumers share the partitions, and one that is gone is replaced', { skip, timeout: 90_000 }, async () => {
  const stream = await declare()
  const log = makeLog()
  const first = makeConsumer()
  const bunches = Array.from({ length: 20 }, () => makeBunch(20))
  for (const bunch of bunches.slice(0, 8)) await log.append(stream, bunch)
  await untilTaken(stream, 160)
  const second = makeConsumer()
  const holders = async () => {
    const { rows } = await db.query<{ holder: string; count: number }>(
      `select holder, count(*)::integer as count from ingest.cursors where stream_id = $1 and holder is not null group by 1`,
      [stream.id],
    )
    return rows.map(row => row.count)
  }
  await until(async () => JSON.stringify(await holders()) === '[2,2]', 20_000)
  for (const bunch of bunches.slice(8, 14)) await log.append(stream, bunch)
  await untilTaken(stream, 280)
  await first.stop()
  for (const bunch of bunches.slice(14)) await log.append(stream, bunch)
  await untilTaken(stream, 400)
  await assertOnce(stream, bunches)
  await second.stop()
})

test('records that Kafka dropped before they were taken over are passed by, and the rest goes in', {
  skip,
}, async () => {
  const stream = await declare()
  const log = makeLog({ partitions: 1 })
  const bunches = [makeBunch(5), makeBunch(5)]
  for (const bunch of bunches) await log.append(stream, bunch)
  const admin = new Admin(clientOptions(place))
  await admin.deleteRecords({ topics: [{ name: topicOf(place, stream), partitions: [{ partition: 0, offset: 3n }] }] })
  await admin.close()
  const consumer = makeConsumer()
  await untilTaken(stream, 7)
  const [first, second] = bunches as [Bunch, Bunch]
  await assertOnce(stream, [{ ...first, texts: first.texts.slice(3) }, second])
  await consumer.stop()
})

test('a topic that was made anew is read from its beginning', { skip }, async () => {
  const stream = await declare()
  const log = makeLog({ partitions: 1 })
  const consumer = makeConsumer()
  const bunches = [makeBunch(50), makeBunch(70)]
  await log.append(stream, bunches[0]!)
  await untilTaken(stream, 50)
  const admin = new Admin(clientOptions(place))
  await admin.deleteTopics({ topics: [topicOf(place, stream)] })
  await admin.close()
  await until(() =>
    log.append(stream, bunches[1]!).then(
      () => true,
      () => false,
    ),
  )
  await untilTaken(stream, 120)
  await assertOnce(stream, bunches)
  await consumer.stop()
})

test('Kafka that is killed and comes back loses nothing that was acknowledged', {
  skip,
  timeout: 120_000,
}, async () => {
  const stream = await declare()
  const log = makeLog()
  const consumer = makeConsumer()
  const acknowledged: Bunch[] = []
  const uncertain: Bunch[] = []
  let running = true
  const send = async () => {
    while (running) {
      const bunch = makeBunch(10)
      await log.append(stream, bunch).then(
        () => acknowledged.push(bunch),
        error => {
          assert.equal(error.code, 'route_unavailable')
          uncertain.push(bunch)
        },
      )
    }
  }
  const sending = [send(), send(), send(), send()]
  for (let kill = 0; kill < 2; kill++) {
    const before = acknowledged.length
    await until(() => acknowledged.length > before + 50, 30_000)
    await kafka!.kill()
    await until(() => uncertain.length > 0, 30_000)
    await kafka!.start()
  }
  const before = acknowledged.length
  await until(() => acknowledged.length > before + 20, 30_000)
  running = false
  await Promise.all(sending)
  await until(async () => {
    const { records } = await inventory(db, stream)
    const there = new Set(records)
    return acknowledged.every(({ texts }) => texts.every(text => there.has(text)))
  }, 30_000)
  await consumer.stop()
  const { records } = await inventory(db, stream)
  assert.equal(new Set(records).size, records.length)
  const known = new Set([...acknowledged, ...uncertain].flatMap(({ texts }) => texts))
  assert.ok(records.every(text => known.has(text)))
  const taken = new Set(records)
  await assertOnce(stream, [...acknowledged, ...uncertain.filter(({ texts }) => taken.has(texts[0]!))])
})

test('a request whose answer was lost is not made again', { skip }, async () => {
  const stream = await declare()
  const real = new Producer(clientOptions(place))
  const bunches = [makeBunch(5), makeBunch(5)]
  const [first, second] = bunches as [Bunch, Bunch]
  await makeLog().append(stream, first)
  const log = makeLog({
    producer: {
      async send(...given: Parameters<typeof real.send>) {
        await real.send(given[0])
        throw new NetworkError('Connection closed')
      },
      close: () => real.close(),
    } as unknown as NonNullable<KafkaLogDeps['producer']>,
  })
  await assert.rejects(log.append(stream, second), { code: 'route_unavailable' })
  const consumer = makeConsumer()
  await untilTaken(stream, 10)
  await consumer.stop()
  await assertOnce(stream, bunches)
})

test('a message of another producer does not stop the stream', { skip }, async () => {
  const stream = await declare()
  const log = makeLog({ partitions: 1 })
  const bunches = [makeBunch(3), makeBunch(3)]
  await log.append(stream, bunches[0]!)
  const producer = new Producer(clientOptions(place))
  await producer.send({ messages: [{ topic: topicOf(place, stream), value: Buffer.from('\xff\x00') }] })
  await producer.close()
  await log.append(stream, bunches[1]!)
  const consumer = makeConsumer()
  await untilTaken(stream, 6)
  await assertOnce(stream, bunches)
  await consumer.stop()
})

test('a deleted stream’s topic is removed, and not its namesake’s', { skip }, async () => {
  const old = await declare({ name: 'renewed' })
  const log = makeLog()
  const consumer = makeConsumer()
  await log.append(old, makeBunch(5))
  await untilTaken(old, 5)
  await streams.remove(old.name)
  const fresh = await declare({ name: 'renewed' })
  const bunches = [makeBunch(5), makeBunch(5)]
  await log.append(fresh, bunches[0]!)
  await removeTopic(place, old)
  const admin = new Admin(clientOptions(place))
  atEnd(() => admin.close())
  await until(async () => !(await admin.listTopics()).includes(topicOf(place, old)))
  // One that is gone is as it is to be.
  await removeTopic(place, old)
  await log.append(fresh, bunches[1]!)
  await untilTaken(fresh, 10)
  await assertOnce(fresh, bunches)
  await consumer.stop()
})
