/**
 * Ingest while its parts are killed: front, ingest server and consumer are processes of their own, and where they are
 * to be had, Kafka is the log, MongoDB and Redis hold copies. Each part gets SIGKILL twice while writers add records by
 * themselves, in arrays and in lines. At the end every store holds each acknowledged record once, and all counts agree.
 */
import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { Redis } from 'ioredis'
import { MongoClient } from 'mongodb'
import { readAll, type Sender, senderOf } from '../server/services/ingest/test-support.ts'
import { type Capstan, makeDataDir, queryIn, runCapstan, startCapstan, stopAll } from './support/capstan.ts'
import { makeUser, send } from './support/http.ts'
import { kafkaIsMissing, makeTestKafka } from './support/kafka.ts'
import { makeTestMongo, mongoIsMissing } from './support/mongo.ts'
import { makeTestRedis, redisIsMissing } from './support/redis.ts'
import { freePort } from './support/servers.ts'
import { until } from './support/until.ts'

const writers = 6
const killsEach = 2
const services = 'ingest'
const streamName = 'crashed'
const kinds = ['x', 'y', 'z']

interface Part {
  name: string
  kill(): Promise<void>
  start(): Promise<void>
}

interface Scene {
  front: Capstan
  headers: Record<string, string>
  /** Ids that were answered, and how many had no answer. */
  acknowledged: Set<number>
  unknown: number
  next: number
  isOver: boolean
}

/** A Capstan of one role that comes back where it was. */
function makeRole(given: {
  dataDir: string
  roles: string
  env: Record<string, string>
  onStart: (capstan: Capstan) => void
  first: Capstan
}): Part {
  let capstan = given.first
  const { port } = new URL(capstan.url)
  const { dataDir, roles, env } = given
  return {
    name: roles,
    async kill() {
      capstan.kill('SIGKILL')
      await capstan.exited
    },
    async start() {
      capstan = await startCapstan({ dataDir, roles, services, env: { ...env, PORT: port } })
      given.onStart(capstan)
    },
  }
}

async function write(scene: Scene, writer: number) {
  while (!scene.isOver) {
    const ids = Array.from({ length: writer % 3 === 0 ? 1 : 20 }, () => scene.next++)
    const taken = await (writer % 3 === 2 ? sendLines(scene, ids) : sendJson(scene, ids)).catch(() => [])
    for (const id of taken) scene.acknowledged.add(id)
    scene.unknown += ids.length - taken.length
    // The front may be down.
    if (taken.length === 0) await new Promise(resolve => setTimeout(resolve, 50))
  }
}

const recordOf = (id: number) => ({ id, kind: kinds[id % kinds.length] })

/** Answers the ids that were accepted. */
async function sendJson({ front, headers }: Scene, ids: number[]): Promise<number[]> {
  const records = ids.map(recordOf)
  const path = `/v1/streams/${streamName}/records`
  const { status, body } = await send(front, 'POST', path, headers, records.length === 1 ? records[0] : records)
  if (status === 201) return ids
  if (status === 200) return ids.filter((_, index) => 'offset' in body.records[index])
  assert.ok(status >= 500, JSON.stringify(body))
  return []
}

async function sendLines({ front, headers }: Scene, ids: number[]): Promise<number[]> {
  const text = ids.map(id => JSON.stringify(recordOf(id))).join('\n')
  const answers = await senderOf(front, headers).lines(streamName, text)
  return answers.flatMap(({ line, count, error }) => (error ? [] : ids.slice(line - 1, line - 1 + count)))
}

async function runScene(t: TestContext, given: { env: Record<string, string>; stores: Part[]; seed: number }) {
  const dataDir = await makeDataDir()
  const { env } = given
  const api = await startCapstan({ dataDir, roles: 'api', services, env: { ...env, GRPC_PORT: 'off' } })
  const admin = await makeAdmin(api)
  const declared = await admin.put(`/v1/streams/${streamName}`, { schema: {}, dimensions: ['kind'], readers: 'users' })
  assert.equal(declared.status, 201, JSON.stringify(declared.body))
  const rpcEnv = { ...env, GRPC_PORT: String(await freePort()) }
  const frontEnv = { ...env, GRPC_PORT: 'off', INGEST_RPC_URL: `http://127.0.0.1:${rpcEnv.GRPC_PORT}` }
  const rpc = await startCapstan({ dataDir, roles: 'ingest-rpc', services, env: rpcEnv })
  const front = await startCapstan({ dataDir, roles: 'ingest-front', services, env: frontEnv })
  const consumer = await startCapstan({
    dataDir,
    roles: 'ingest-consumer',
    services,
    env: { ...env, GRPC_PORT: 'off' },
  })
  const scene: Scene = { front, headers: admin.headers, acknowledged: new Set(), unknown: 0, next: 1, isOver: false }
  // Whoever went on after a failure would keep this process from ending.
  t.after(() => {
    scene.isOver = true
  })
  const nothing = () => {}
  const parts: Part[] = [
    makeRole({ dataDir, roles: 'ingest-front', env: frontEnv, first: front, onStart: each => (scene.front = each) }),
    makeRole({ dataDir, roles: 'ingest-rpc', env: rpcEnv, first: rpc, onStart: nothing }),
    makeRole({
      dataDir,
      roles: 'ingest-consumer',
      env: { ...env, GRPC_PORT: 'off' },
      first: consumer,
      onStart: nothing,
    }),
    ...given.stores,
  ]
  const writing = Promise.all(Array.from({ length: writers }, (_, writer) => write(scene, writer)))
  for (let round = 0; round < parts.length * killsEach; round++) {
    const part = parts[(round + given.seed) % parts.length]!
    const before = scene.acknowledged.size
    await until(() => scene.acknowledged.size > before + 200, 60_000)
    await part.kill()
    await new Promise(resolve => setTimeout(resolve, (given.seed * (round + 1) * 37) % 200))
    await part.start()
  }
  scene.isOver = true
  await writing
  return { dataDir, api, admin, scene }
}

async function makeAdmin(capstan: Capstan): Promise<Sender> {
  const { name, password } = await makeUser(capstan, 'root')
  const made = await runCapstan(capstan.dataDir, 'user', 'role', name, 'admin')
  assert.equal(made.code, 0, made.output)
  const { body } = await send(capstan, 'POST', '/v1/auth/login', {}, { username: name, password })
  return senderOf(capstan, { authorization: `Bearer ${body.access_token}` })
}

/** The store holds each acknowledged record once, and none twice. Answers how many of each kind. */
async function checkStore(admin: Sender, { acknowledged }: Scene): Promise<Map<string, number>> {
  const ids = (await readAll(admin, streamName)).map(each => each.record.id as number)
  const unique = new Set(ids)
  assert.equal(unique.size, ids.length, 'a record is there twice')
  for (const id of acknowledged) assert.ok(unique.has(id), `the record ${id} was acknowledged and is lost`)
  return tally(ids)
}

function tally(ids: readonly number[]): Map<string, number> {
  return new Map(kinds.map(kind => [kind, ids.filter(id => kinds[id % kinds.length] === kind).length]))
}

/** Waits until those that follow have caught up with what the store has. */
async function untilStill(admin: Sender, scene: Scene) {
  let last = -1
  await until(async () => {
    const { body } = await admin.get(`/v1/streams/${streamName}/counts`)
    const stored = (await readAll(admin, streamName)).length
    const isStill = body.total === stored && stored === last && stored >= scene.acknowledged.size
    last = stored
    return isStill
  }, 60_000)
}

async function countsOf(admin: Sender): Promise<Map<string, number>> {
  const { rows } = (await admin.get(`/v1/streams/${streamName}/counts?by=kind`)).body
  return new Map(rows.map((row: { values: string[]; count: number }) => [row.values[0], row.count]))
}

const seedOf = () => Number(process.env.MODEL_SEED ?? Date.now() % 1000)

test('on PostgreSQL alone nothing acknowledged is lost or doubled, whichever part is killed', async t => {
  const seed = seedOf()
  t.diagnostic(`MODEL_SEED=${seed}`)
  const { api, admin, scene } = await runScene(t, { env: {}, stores: [], seed })
  await untilStill(admin, scene)
  const stored = await checkStore(admin, scene)
  assert.deepEqual(await countsOf(admin), stored)
  t.diagnostic(`${scene.acknowledged.size} acknowledged, ${scene.unknown} without an answer`)
  assert.ok(scene.unknown > 0, 'nothing was under way when a part was killed')
  await stopAll(api)
})

const missing = kafkaIsMissing || mongoIsMissing || redisIsMissing

test('with Kafka, MongoDB and Redis every store has the same, whichever is killed', { skip: missing }, async t => {
  const seed = seedOf()
  t.diagnostic(`MODEL_SEED=${seed}`)
  const [kafka, mongo, redis] = await Promise.all([makeTestKafka(), makeTestMongo(), makeTestRedis()])
  const env = { KAFKA_BROKERS: kafka.brokers, MONGODB_URL: mongo.url, REDIS_URL: redis.url }
  const stores = Object.entries({ kafka, mongo, redis }).map(([name, { kill, start }]) => ({ name, kill, start }))
  await makeCollection(mongo.url)
  const { dataDir, api, admin, scene } = await runScene(t, { env, stores, seed })
  await untilStill(admin, scene)
  const stored = await checkStore(admin, scene)
  assert.deepEqual(await countsOf(admin), stored)
  const [{ head }] = (await queryIn<{ head: number }>(
    dataDir,
    `select last_offset::int as head from ingest.heads h join ingest.streams s on s.id = h.stream_id where s.name = $1`,
    [streamName],
  )) as [{ head: number }]
  await checkMongo(mongo.url, head, stored)
  await checkRedis(redis.url, stored)
  t.diagnostic(`${scene.acknowledged.size} acknowledged, ${scene.unknown} without an answer`)
  await stopAll(api)
})

/** FerretDB that is killed while it makes a collection cannot make it any more. */
async function makeCollection(url: string) {
  const client = new MongoClient(url)
  await client.db().createCollection(streamName)
  await client.close()
}

async function checkMongo(url: string, total: number, stored: Map<string, number>) {
  const client = new MongoClient(url)
  try {
    const documents = client.db().collection(streamName)
    await until(async () => (await documents.countDocuments()) === total, 60_000)
    const ids = (await documents.find().toArray()).map(each => (each.record as { id: number }).id)
    assert.deepEqual(tally(ids), stored)
    assert.equal(new Set(ids).size, total)
  } finally {
    await client.close()
  }
}

async function checkRedis(url: string, stored: Map<string, number>) {
  const redis = new Redis(url)
  try {
    const read = async () => await redis.hgetall(`capstan:streams:${streamName}:kind`)
    const wanted = Object.fromEntries([...stored].map(([kind, count]) => [kind, String(count)]))
    await until(
      async () => JSON.stringify(Object.entries(await read()).sort()) === JSON.stringify(Object.entries(wanted).sort()),
      30_000,
    )
  } finally {
    redis.disconnect()
  }
}
