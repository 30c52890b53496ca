import { createHash, randomBytes } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import pg from 'pg'
import { migrationSets } from '../../server/app.ts'
import { type EmbeddedServer, makeEmbeddedServer } from '../../server/platform/database/embedded.ts'
import { migrate } from '../../server/platform/database/migrate.ts'
import { type Database, makeDatabase } from '../../server/platform/database/pool.ts'
import { silentLog } from '../../server/platform/log.ts'
import { atEnd } from './at-end.ts'

/** One PostgreSQL for all test files of a checkout; whoever leaves last stops it. */
export function testServer(): EmbeddedServer {
  const checkout = createHash('sha256')
    .update(import.meta.dirname)
    .digest('hex')
    .slice(0, 12)
  return makeEmbeddedServer({
    dataDir: path.join(tmpdir(), `capstan-test-${process.getuid?.() ?? 0}-${checkout}`),
    log: silentLog,
    settings: { shared_buffers: '128MB', autovacuum_naptime: '1s' },
  })
}

export interface TestDatabase {
  db: Database
  url: string
}

/** A database of this file's own with all migrations applied, dropped when the file's tests are done. */
export async function makeTestDatabase(options: { poolMax?: number } = {}): Promise<TestDatabase> {
  const server = testServer()
  await server.ensureRunning()
  const template = await ensureTemplate(server.url)
  const name = `test_${randomBytes(6).toString('hex')}`
  await asAdmin(server.url, client => client.query(`create database ${name} template ${template}`))
  const url = server.url.replace('/capstan?', `/${name}?`)
  const db = makeDatabase({
    url,
    poolMax: options.poolMax ?? 10,
    log: silentLog,
    applicationName: `capstan:${process.pid}`,
  })
  atEnd(async () => {
    await db.close()
    await asAdmin(server.url, client => client.query(`drop database if exists ${name} with (force)`))
  })
  return { db, url }
}

/** The template's name carries a digest of the migrations, so that a changed one makes a new template. */
async function ensureTemplate(url: string): Promise<string> {
  const digest = createHash('sha256')
  for (const set of migrationSets) {
    for (const file of (await readdir(set.folder)).sort()) digest.update(await readFile(path.join(set.folder, file)))
  }
  const name = `template_${digest.digest('hex').slice(0, 16)}`
  await asAdmin(url, async client => {
    await client.query('select pg_advisory_lock(7)')
    const { rows } = await client.query('select from pg_database where datname = $1', [name])
    if (rows.length > 0) return
    await client.query(`drop database if exists ${name}_new with (force)`)
    await client.query(`create database ${name}_new`)
    await migrate({
      url: url.replace('/capstan?', `/${name}_new?`),
      sets: migrationSets,
      direction: 'up',
      log: silentLog,
    })
    await client.query(`alter database ${name}_new rename to ${name}`)
  })
  return name
}

async function asAdmin(url: string, use: (client: pg.Client) => Promise<unknown>) {
  const client = new pg.Client({ connectionString: url, application_name: `capstan:${process.pid}` })
  await client.connect()
  try {
    await use(client)
  } finally {
    await client.end()
  }
}
