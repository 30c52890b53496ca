import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { migrationSets } from '../../app.ts'
import { silentLog } from '../log.ts'
import { migrate, pendingMigrations } from './migrate.ts'

const { db, url } = await makeTestDatabase()
const log = silentLog

async function tableCount() {
  const { rows } = await db.query<{ n: number }>(
    `select count(*)::integer as n from pg_tables where schemaname = any($1) and tablename <> 'migrations'`,
    [migrationSets.map(set => set.name)],
  )
  return rows[0]!.n
}

test('every set goes down to nothing and up again, and starting twice does nothing', async () => {
  const before = await tableCount()
  assert.deepEqual(await migrate({ url, sets: migrationSets, direction: 'up', log }), [])
  const down = await migrate({ url, sets: migrationSets, direction: 'down', count: 1000, log })
  assert.equal(await tableCount(), 0)
  assert.deepEqual(
    (await pendingMigrations({ url, sets: migrationSets })).map(step => step.name).sort(),
    down.map(step => step.name).sort(),
  )
  await migrate({ url, sets: migrationSets, direction: 'up', log })
  assert.equal(await tableCount(), before)
  assert.deepEqual(await pendingMigrations({ url, sets: migrationSets }), [])
})

test('one set is taken back alone', async () => {
  const runner = migrationSets.filter(set => set.name === 'runner')
  const steps = await migrate({ url, sets: runner, direction: 'down', log })
  assert.deepEqual(
    steps.map(step => step.set),
    ['runner'],
  )
  assert.deepEqual(
    (await pendingMigrations({ url, sets: migrationSets })).map(step => step.set),
    ['runner'],
  )
  await migrate({ url, sets: runner, direction: 'up', log })
})

test('processes that start together wait for one another', async () => {
  await migrate({ url, sets: migrationSets, direction: 'down', count: 1000, log })
  const runs = await Promise.all(
    Array.from({ length: 5 }, () => migrate({ url, sets: migrationSets, direction: 'up', log })),
  )
  assert.equal(runs.filter(steps => steps.length > 0).length, 1)
})
