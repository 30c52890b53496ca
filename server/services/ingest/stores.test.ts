import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Admin } from '@platformatic/kafka'
import { Redis } from 'ioredis'
import { MongoClient } from 'mongodb'
import { makeTestApp } from '../../../test/support/app.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { kafkaIsMissing, makeTestKafka } from '../../../test/support/kafka.ts'
import { makeTestMongo, mongoIsMissing } from '../../../test/support/mongo.ts'
import { makeTestRedis, redisIsMissing } from '../../../test/support/redis.ts'
import { until } from '../../../test/support/until.ts'
import { generateCourses } from './courses.ts'
import { inventory } from './stores-test-support.ts'
import { findStream } from './stream-store.ts'
import { makeAdmin, makeSender } from './test-support.ts'

const skip = kafkaIsMissing || mongoIsMissing || redisIsMissing

test('with Kafka, MongoDB and Redis each record is in each store once, and the counts are equal', {
  skip,
}, async () => {
  const [kafka, mongo, redisServer] = await Promise.all([makeTestKafka(), makeTestMongo(), makeTestRedis()])
  const server = await makeTestApp({
    env: { KAFKA_BROKERS: kafka.brokers, MONGODB_URL: mongo.url, REDIS_URL: redisServer.url },
  })
  const sender = await makeSender(server, 'ann')
  const texts = [...generateCourses({ count: 3000, seed: 6 })].map((record, id) => JSON.stringify({ ...record, id }))
  const [single, ...rest] = texts
  const first = await sender.post('/v1/streams/courses/records', single!)
  assert.equal(first.status, 201, JSON.stringify(first.body))
  const lines = await sender.lines('courses', rest.join('\n'))
  const byA = [{ route: first.body.route, count: 1 }, ...lines].filter(({ route }) => route === 'a')
  assert.equal(
    byA.reduce((sum, { count }) => sum + count, 0),
    1500,
  )

  const stream = (await findStream(server.db, 'courses'))!
  const client = new MongoClient(mongo.url)
  atEnd(() => client.close())
  const documents = client.db().collection('courses')
  const redis = new Redis(redisServer.url)
  atEnd(() => redis.disconnect())
  await until(async () => (await documents.countDocuments()) === texts.length, 30_000)
  await until(async () => (await redis.hget('capstan:streams:courses', 'total')) === String(texts.length), 30_000)

  const { records } = await inventory(server.db, stream)
  assert.deepEqual(records.toSorted(), texts.toSorted())
  const copied = (await documents.find().toArray()).map(({ record }) => JSON.stringify(record))
  assert.deepEqual(copied.toSorted(), texts.toSorted())
  const regions: Record<string, string> = {}
  for (const text of texts) {
    const { region } = JSON.parse(text)
    regions[region] = String(Number(regions[region] ?? 0) + 1)
  }
  assert.deepEqual(await redis.hgetall('capstan:streams:courses:region'), regions)
  assert.deepEqual(await redis.hgetall('capstan:streams:courses:route'), { a: '1500', b: '1500' })
  const { body } = await sender.get('/v1/streams/courses/counts?by=route')
  assert.deepEqual(
    body.rows.map((row: { count: number }) => row.count),
    [1500, 1500],
  )

  // What was answered as a place in Kafka is a place to read from.
  const fromKafka = byA.at(-1)!
  const page = await sender.get(`/v1/streams/courses/records?after=${fromKafka.offset}&limit=1`)
  assert.equal(page.status, 200, JSON.stringify(page.body))
  assert.match(fromKafka.offset, /^k\d+\.\d+$/)

  // What is deleted is deleted everywhere, a moment later.
  const admin = new Admin({ clientId: 'test', bootstrapBrokers: [kafka.brokers] })
  atEnd(() => admin.close())
  const topics = async () => (await admin.listTopics()).filter(name => name.endsWith('-courses'))
  assert.equal((await topics()).length, 1)
  const { status } = await (await makeAdmin(server)).delete('/v1/streams/courses')
  assert.equal(status, 204)
  await server.db.query('update ingest.leftovers set due_at = now()')
  await until(async () => (await documents.countDocuments()) === 0, 30_000)
  await until(async () => (await redis.keys('capstan:streams:courses*')).length === 0, 30_000)
  await until(async () => (await topics()).length === 0, 30_000)
  assert.deepEqual(server.complaints, [])
})
