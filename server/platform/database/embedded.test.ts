import assert from 'node:assert/strict'
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { atEnd } from '../../../test/support/at-end.ts'
import { until } from '../../../test/support/until.ts'
import { silentLog } from '../log.ts'
import { isAlive } from '../processes.ts'
import { makeEmbeddedServer } from './embedded.ts'
import { applicationPrefix, makeDatabase } from './pool.ts'

async function makeFolder() {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-embedded-'))
  atEnd(() => rm(folder, { recursive: true, force: true }))
  return folder
}

function makeServer(dataDir: string) {
  const server = makeEmbeddedServer({ dataDir, log: silentLog, settings: { shared_buffers: '16MB' } })
  atEnd(() => server.stop())
  return server
}

function connect(url: string, onTrouble?: () => void) {
  return makeDatabase({
    url,
    poolMax: 2,
    log: silentLog,
    applicationName: `${applicationPrefix}:${process.pid}`,
    ...(onTrouble ? { onTrouble } : {}),
  })
}

async function postmaster(dataDir: string): Promise<number> {
  return Number((await readFile(path.join(dataDir, 'postgres/postmaster.pid'), 'utf8')).split('\n')[0])
}

test('it starts under a folder that only its owner may enter, keeps its data and stops', async () => {
  const folder = await makeFolder()
  await chmod(folder, 0o700)
  const dataDir = path.join(folder, 'data')
  const first = makeServer(dataDir)
  await first.ensureRunning()
  const db = connect(first.url)
  await db.query('create table kept as select 42 as answer')
  await db.close()
  const pid = await postmaster(dataDir)
  await first.stop()
  assert.equal(isAlive(pid), false)

  const second = makeServer(dataDir)
  await second.ensureRunning()
  const again = connect(second.url)
  assert.deepEqual((await again.query('select answer from kept')).rows, [{ answer: 42 }])
  await again.close()
})

test('a killed server is brought back, with what was committed', async () => {
  const dataDir = path.join(await makeFolder(), 'data')
  const server = makeServer(dataDir)
  await server.ensureRunning()
  const db = connect(server.url, () => void server.ensureRunning().catch(() => {}))
  await db.query('create table kept as select 1 as n')
  process.kill(await postmaster(dataDir), 'SIGKILL')
  await until(async () => (await db.query('select n from kept').catch(() => undefined))?.rows.length === 1, 30_000)
  await db.close()
})

test('a backend of a killed server that does not go is ended', async () => {
  const dataDir = path.join(await makeFolder(), 'data')
  const server = makeServer(dataDir)
  await server.ensureRunning()
  const db = connect(server.url)
  const { rows } = await db.query<{ pid: number }>('select pg_backend_pid() as pid')
  const { pid } = rows[0]!
  const killed = await postmaster(dataDir)
  // As one that waits for what another held.
  process.kill(pid, 'SIGSTOP')
  atEnd(() => isAlive(pid) && process.kill(pid, 'SIGKILL'))
  process.kill(killed, 'SIGKILL')
  await server.ensureRunning()
  await until(() => !isAlive(pid))
  assert.notEqual(await postmaster(dataDir), killed)
  await db.close()
})

test('lock files that name a living stranger do not keep it from starting', async () => {
  const dataDir = path.join(await makeFolder(), 'data')
  const first = makeServer(dataDir)
  await first.ensureRunning()
  await first.stop()
  // This test's own process: alive, and no PostgreSQL.
  await writeFile(path.join(dataDir, 'postgres/postmaster.pid'), `${process.pid}\n${dataDir}/postgres\n`)
  await writeFile(path.join(dataDir, 'socket/.s.PGSQL.5432.lock'), `${process.pid}\n`)
  await writeFile(path.join(dataDir, 'postgres.start.lock'), '999999999')
  const second = makeServer(dataDir)
  await second.ensureRunning()
  await second.stop()
})

test('two that start at once share one server, and the last to leave stops it', async () => {
  const dataDir = path.join(await makeFolder(), 'data')
  const [one, two] = [makeServer(dataDir), makeServer(dataDir)]
  await Promise.all([one.ensureRunning(), two.ensureRunning()])
  // Another process would have another number.
  const other = makeDatabase({
    url: two.url,
    poolMax: 1,
    log: silentLog,
    applicationName: `${applicationPrefix}:other`,
  })
  assert.ok(await other.ping())
  const pid = await postmaster(dataDir)
  await one.stop()
  assert.ok(isAlive(pid), 'it was stopped under the other')
  await other.close()
  await two.stop()
  assert.equal(isAlive(pid), false)
})

test('a folder too deep for a socket gets its socket elsewhere', async () => {
  const deep = path.join(await makeFolder(), 'a'.repeat(60), 'b'.repeat(60))
  await mkdir(deep, { recursive: true })
  const server = makeServer(deep)
  await server.ensureRunning()
  const db = connect(server.url)
  assert.ok(await db.ping())
  await db.close()
})

test('a folder half made by a killed start is made anew', async () => {
  const dataDir = path.join(await makeFolder(), 'data')
  await mkdir(path.join(dataDir, 'postgres.new-1/base'), { recursive: true })
  const server = makeServer(dataDir)
  await server.ensureRunning()
})

test('a folder of another major version is refused with what to do', async () => {
  const dataDir = path.join(await makeFolder(), 'data')
  await mkdir(path.join(dataDir, 'postgres'), { recursive: true })
  await writeFile(path.join(dataDir, 'postgres/PG_VERSION'), '15\n')
  await assert.rejects(makeServer(dataDir).ensureRunning(), /written by PostgreSQL 15, this Capstan brings 18/)
})

test('as root it also runs under another uid, where user namespaces are shut', async t => {
  if (process.getuid?.() !== 0) return t.skip('only root has to change its uid')
  const folder = await makeFolder()
  await chmod(folder, 0o755)
  const server = makeEmbeddedServer({ dataDir: path.join(folder, 'data'), log: silentLog, identity: 'uid' })
  atEnd(() => server.stop())
  try {
    await server.ensureRunning()
  } catch (error) {
    if (/cannot (pass through|run)/.test(String(error))) return t.skip(`the other user cannot come here: ${error}`)
    throw error
  }
  const db = connect(server.url)
  assert.ok(await db.ping())
  await db.close()
})

test('as root in a folder that others cannot reach, another uid says what to do', async t => {
  if (process.getuid?.() !== 0) return t.skip('only root has to change its uid')
  const folder = await makeFolder()
  await chmod(folder, 0o700)
  const server = makeEmbeddedServer({ dataDir: path.join(folder, 'data'), log: silentLog, identity: 'uid' })
  await assert.rejects(server.ensureRunning(), /Set DATA_DIR to a folder that others may reach/)
})
