/**
 * A server for tests that speaks MongoDB's protocol, where `test/services/mongo.sh` has installed it: FerretDB 1 over
 * the tests' PostgreSQL. It is not MongoDB. What a test must know:
 *   - an update is read, then written, with nothing between: of two at once one may be lost, $inc and conditions on
 *     the document included. Insertions are sound: an _id is taken once.
 *   - there are no transactions; `insertMany` becomes durable by hundreds.
 *   - it refuses a document with an array right within an array, or with a key that has `.` or begins with `$`, and
 *     the others of the batch go in; with U+0000 in a string the batch ends there; at NaN it closes the connection.
 *   - write concerns are taken and ignored; everything is durable when answered.
 *   - partial and expiring indexes, $dateTrunc, $merge and change streams are missing; of indexes only unique ones
 *     have an effect, and whatever is asked for reads the whole collection.
 */
import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { MongoClient } from 'mongodb'
import pg from 'pg'
import { atEnd } from './at-end.ts'
import { testServer } from './database.ts'
import { freePort, installedFolder, makeServer, type TestServer, whyMissing } from './servers.ts'

/** Why tests that need one are skipped; false where there is one. */
export const mongoIsMissing: string | false = whyMissing('mongo')

export interface TestMongo extends TestServer {
  /** What MONGODB_URL takes, with a database's name. */
  url: string
}

const askTimeoutMs = 2000
/** An update takes a second connection while it holds one: with all of them held it would wait for ever. */
const connectionsMax = 60
const clientConnectionsMax = 10

/** Empty and answering; gone at the end of the file's tests. Killing it leaves its PostgreSQL alone. */
export async function makeTestMongo(): Promise<TestMongo> {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-mongo-'))
  atEnd(() => rm(folder, { recursive: true, force: true }))
  const database = await makeOwnDatabase()
  const address = `127.0.0.1:${await freePort()}`
  const url = `mongodb://${address}/capstan?maxPoolSize=${clientConnectionsMax}`
  const server = makeServer({
    name: 'FerretDB',
    command: path.join(installedFolder('mongo'), 'ferretdb'),
    args: [
      '--handler=postgresql',
      `--postgresql-url=${database}&pool_max_conns=${connectionsMax}`,
      `--listen-addr=${address}`,
      `--state-dir=${folder}`,
      '--debug-addr=-',
      '--telemetry=disable',
      // It logs each duplicate as an error, with all of its batch.
      '--log-level=ERROR',
    ],
    isReady: () => isReady(url),
  })
  atEnd(() => server.kill())
  await server.start()
  return { url, ...server }
}

/** Apart from Capstan's, whose schemas could have the same names. Dropped at the end. */
async function makeOwnDatabase(): Promise<string> {
  const server = testServer()
  await server.ensureRunning()
  const name = `mongo_${randomBytes(6).toString('hex')}`
  const admin = new pg.Client({ connectionString: server.url, application_name: `capstan:${process.pid}` })
  await admin.connect()
  await admin.query(`create database ${name}`)
  atEnd(async () => {
    await admin.query(`drop database if exists ${name} with (force)`)
    await admin.end()
  })
  return server.url.replace('/capstan?', `/${name}?`)
}

async function isReady(url: string): Promise<boolean> {
  const client = new MongoClient(url, { serverSelectionTimeoutMS: askTimeoutMs })
  try {
    await client.db().command({ ping: 1 })
    return true
  } finally {
    await client.close()
  }
}
