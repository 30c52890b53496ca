import { readdir } from 'node:fs/promises'
import { runner } from 'node-pg-migrate'
import pg from 'pg'
import type { Log } from '../log.ts'

/** A part's schema and the folder of its SQL files, each with an up and a down half. */
export interface MigrationSet {
  /** Also the PostgreSQL schema the part owns. */
  name: string
  /** Absolute path. */
  folder: string
}

export interface MigrationStep {
  set: string
  name: string
}

/** One number for all Capstan processes on a database: whoever migrates holds it, the others wait. */
const advisoryLock = 0x63617073

/**
 * Brings the sets to their newest state (`up`), or takes back each set's newest `count` files (`down`).
 * Processes that start together wait for one another. A set's files run in one transaction.
 */
export async function migrate(given: {
  url: string
  sets: readonly MigrationSet[]
  direction: 'up' | 'down'
  /** `up` defaults to all, `down` to one. */
  count?: number
  log: Log
}): Promise<MigrationStep[]> {
  const client = new pg.Client({ connectionString: given.url, application_name: `capstan:${process.pid}` })
  await client.connect()
  const steps: MigrationStep[] = []
  try {
    await client.query('select pg_advisory_lock($1)', [advisoryLock])
    const sets = given.direction === 'up' ? given.sets : given.sets.toReversed()
    for (const set of sets) {
      const done = await runner({
        dbClient: client,
        dir: set.folder,
        direction: given.direction,
        count: given.count ?? (given.direction === 'up' ? Number.POSITIVE_INFINITY : 1),
        migrationsTable: 'migrations',
        migrationsSchema: set.name,
        createMigrationsSchema: true,
        schema: set.name,
        createSchema: true,
        noLock: true,
        log: () => {},
      })
      for (const { name } of done) {
        steps.push({ set: set.name, name })
        given.log.info({ schema: set.name, migration: name, direction: given.direction }, 'migrated')
      }
    }
  } finally {
    await client.end()
  }
  return steps
}

/** The files of a set that the database has not seen yet. */
export async function pendingMigrations(given: {
  url: string
  sets: readonly MigrationSet[]
}): Promise<MigrationStep[]> {
  const client = new pg.Client({ connectionString: given.url, application_name: `capstan:${process.pid}` })
  await client.connect()
  try {
    const pending: MigrationStep[] = []
    for (const set of given.sets) {
      const applied = await appliedNames(client, set.name)
      const files = (await readdir(set.folder)).filter(file => file.endsWith('.sql')).sort()
      for (const file of files) {
        const name = file.replace(/\.sql$/, '')
        if (!applied.has(name)) pending.push({ set: set.name, name })
      }
    }
    return pending
  } finally {
    await client.end()
  }
}

async function appliedNames(client: pg.Client, schema: string): Promise<Set<string>> {
  const { rows } = await client.query<{ found: boolean }>('select to_regclass($1) is not null as found', [
    `${schema}.migrations`,
  ])
  if (!rows[0]?.found) return new Set()
  const applied = await client.query<{ name: string }>(`select name from ${schema}.migrations`)
  return new Set(applied.rows.map(row => row.name))
}
