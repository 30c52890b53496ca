/** The servers that other tests stand on: each starts, answers, and comes back from SIGKILL with all it had taken. */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { Admin, Consumer, Producer, stringDeserializers, stringSerializers } from '@platformatic/kafka'
import { type Collection, MongoBulkWriteError, MongoClient } from 'mongodb'
import { atEnd } from './support/at-end.ts'
import { kafkaIsMissing, makeTestKafka, type TestKafka } from './support/kafka.ts'
import { locustIsMissing, runLocust } from './support/locust.ts'
import { makeTestMongo, mongoIsMissing, type TestMongo } from './support/mongo.ts'
import type { TestServer } from './support/servers.ts'
import { until } from './support/until.ts'

const topic = 'numbers'
const enough = 200
const batch = 10
const patienceMs = 15_000

/**
 * Writes numbers in batches while the server is killed and started again. An unanswered batch is given up, and the
 * next one waits until the server is back.
 * @param write resolves when the server has acknowledged.
 * @returns the acknowledged ones, and how often there was no answer.
 */
async function writeThroughKill(server: TestServer, write: (numbers: number[]) => Promise<unknown>) {
  const acknowledged: number[] = []
  let unanswered = 0
  let isOver = false
  const back = Promise.withResolvers<void>()
  const writing = (async () => {
    for (let next = 0; !isOver; next += batch) {
      const numbers = Array.from({ length: batch }, (_, index) => next + index)
      await write(numbers).then(
        () => acknowledged.push(...numbers),
        () => {
          unanswered++
          return back.promise
        },
      )
    }
  })()
  await until(() => acknowledged.length >= enough)
  await server.kill()
  await until(() => unanswered > 0, 30_000)
  await server.start()
  back.resolve()
  const before = acknowledged.length
  await until(() => acknowledged.length >= before + enough, 30_000)
  isOver = true
  await writing
  return { acknowledged, unanswered }
}

test('Kafka keeps through SIGKILL what it acknowledged', { skip: kafkaIsMissing }, async t => {
  const kafka = await makeTestKafka()
  await makeTopic(kafka)
  const producer = new Producer({ ...clientOf(kafka), serializers: stringSerializers, acks: -1, retries: 0 })
  atEnd(() => producer.close())
  const { acknowledged, unanswered } = await writeThroughKill(kafka, numbers =>
    producer.send({ messages: numbers.map(number => ({ topic, key: String(number), value: String(number) })) }),
  )
  t.diagnostic(`${acknowledged.length} acknowledged, ${unanswered} batches unanswered`)
  const read = new Set(await readTopic(kafka, acknowledged))
  assert.deepEqual(
    acknowledged.filter(number => !read.has(number)),
    [],
  )
  await assert.rejects(producer.send({ messages: [{ topic: 'unknown', key: '1', value: '1' }] }))
  await kafka.stop()
  await kafka.start()
  assert.ok((await readTopic(kafka, acknowledged)).length >= acknowledged.length)
})

const clientOf = (kafka: TestKafka) => ({
  clientId: 'capstan-test',
  bootstrapBrokers: [kafka.brokers],
  timeout: 3000,
  requestTimeout: 3000,
})

async function makeTopic(kafka: TestKafka) {
  const admin = new Admin(clientOf(kafka))
  await admin.createTopics({ topics: [topic], partitions: 2, replicas: 1 })
  await admin.close()
}

/** From the beginning until all that are wanted have come. */
async function readTopic(kafka: TestKafka, wanted: number[]): Promise<number[]> {
  const groupId = `readers-${randomUUID()}`
  const consumer = new Consumer({ ...clientOf(kafka), groupId, deserializers: stringDeserializers })
  atEnd(() => consumer.close(true))
  const stream = await consumer.consume({ topics: [topic], mode: 'earliest', autocommit: false, maxWaitTime: 500 })
  const missing = new Set(wanted)
  const read: number[] = []
  // A message that never comes is what the test is about: then this ends all the same.
  const patience = setTimeout(() => void stream.close(), patienceMs)
  for await (const message of stream) {
    read.push(Number(message.value))
    missing.delete(read.at(-1)!)
    if (missing.size === 0) break
  }
  clearTimeout(patience)
  return read
}

test('the MongoDB server keeps through SIGKILL what it acknowledged', { skip: mongoIsMissing }, async t => {
  const mongo = await makeTestMongo()
  const numbers = await connect(mongo)
  const { acknowledged, unanswered } = await writeThroughKill(mongo, batch =>
    numbers.insertMany(
      batch.map(number => ({ _id: `n${number}`, number })),
      { ordered: false },
    ),
  )
  t.diagnostic(`${acknowledged.length} acknowledged, ${unanswered} batches unanswered`)
  await assertKept(numbers, acknowledged)
  await mongo.stop()
  await mongo.start()
  await assertKept(numbers, acknowledged)
})

interface NumberDocument {
  _id: string
  number: number
}

async function connect(mongo: TestMongo): Promise<Collection<NumberDocument>> {
  const client = new MongoClient(mongo.url, { serverSelectionTimeoutMS: 1000 })
  atEnd(() => client.close())
  return client.db().collection('numbers')
}

async function assertKept(numbers: Collection<NumberDocument>, acknowledged: number[]) {
  const documents = await numbers.find().toArray()
  const kept = new Set(documents.map(({ number }) => number))
  assert.equal(documents.length, kept.size)
  assert.deepEqual(
    acknowledged.filter(number => !kept.has(number)),
    [],
  )
}

test('the MongoDB server takes an _id once and the others of its batch', { skip: mongoIsMissing }, async () => {
  const numbers = await connect(await makeTestMongo())
  await numbers.createIndexes([{ key: { number: 1 } }])
  await numbers.insertMany([1, 2].map(number => ({ _id: String(number), number })))
  const again = [2, 3, 1, 4].map(number => ({ _id: String(number), number }))
  const error = await numbers.insertMany(again, { ordered: false }).catch((thrown: unknown) => thrown)
  assert.ok(error instanceof MongoBulkWriteError)
  assert.deepEqual(
    [error.writeErrors].flat().map(({ index, code }) => [index, code]),
    [
      [0, 11000],
      [2, 11000],
    ],
  )
  assert.equal(error.insertedCount, 2)
  assert.equal(await numbers.countDocuments({ number: { $gte: 2 } }), 3)
  const last = await numbers.find().sort({ number: -1 }).limit(2).toArray()
  assert.deepEqual(
    last.map(({ number }) => number),
    [4, 3],
  )
})

test('Locust sends what its file says, and what failed is told', { skip: locustIsMissing }, async () => {
  const seen = { '/good': 0, '/bad': 0 }
  const server = createServer((request, response) => {
    const url = request.url as keyof typeof seen
    seen[url]++
    response.writeHead(url === '/bad' ? 500 : 200).end()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-locustfile-'))
  atEnd(() => rm(folder, { recursive: true, force: true }))
  atEnd(() => server.close())
  const file = path.join(folder, 'locustfile.py')
  await writeFile(file, locustfile)
  const { port } = server.address() as { port: number }
  const host = `http://127.0.0.1:${port}`
  const run = await runLocust({ file, host, users: 2, seconds: 2, env: { BAD_PATH: '/bad' } })
  assert.ok(run.failures > 0)
  assert.deepEqual([run.requests, run.failures], [seen['/good'] + seen['/bad'], seen['/bad']])
  const good = run.entries.find(entry => entry.name === '/good')
  assert.deepEqual([good?.method, good?.requests, good?.failures], ['GET', seen['/good'], 0])
  assert.match(run.output, /500 Server Error/)
  // Without its variable each visit ends with an exception.
  await assert.rejects(runLocust({ file, host, users: 1, seconds: 1 }), /KeyError: 'BAD_PATH'/)
})

const locustfile = `
import os
from locust import HttpUser, constant, task

class Visitor(HttpUser):
    wait_time = constant(0.05)

    @task
    def visit(self):
        self.client.get("/good")
        self.client.get(os.environ["BAD_PATH"])
`
