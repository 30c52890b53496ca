/**
 * Real Capstan processes, for what only they show: crashes, shutdowns, several of them on one database. Each is
 * started as a user starts it, on a free port, and is ended by its pid when the file's tests are done.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach } from 'node:test'
import pg from 'pg'
import { atEnd } from './at-end.ts'
import { until } from './until.ts'

export interface Capstan {
  /** Where it listens, without a slash at the end. */
  url: string
  pid: number
  dataDir: string
  /** What it wrote to stdout and stderr so far. */
  log(): string
  kill(signal: NodeJS.Signals): void
  exited: Promise<Exit>
}

export interface Exit {
  code: number | null
  signal: NodeJS.Signals | null
}

export interface StartOptions {
  dataDir: string
  env?: Record<string, string>
  /** What `--roles` says; everything by default. */
  roles?: string
  /** What `--services` says; everything by default. */
  services?: string
}

interface Spawned {
  child: ChildProcess
  title: string
  log: () => string
  exited: Promise<Exit>
  /** How much of its log was printed for a failed test. */
  shown: number
}

const checkout = path.resolve(import.meta.dirname, '../..')
const startTimeoutMs = 40_000
const shownCharsMax = 6000
const processes = new Set<Spawned>()
const dataDirs = new Set<string>()

// Registered here, at the top of the file, so that it belongs to no single test.
atEnd(cleanUp)
afterEach(context => {
  if (!('passed' in context) || context.passed) return
  for (const each of processes) {
    const text = each.log()
    if (text.length > each.shown) console.error(`--- ${each.title} wrote:\n${text.slice(-shownCharsMax)}\n---`)
    each.shown = text.length
  }
})

/** Starts `capstan start` and resolves when it listens. Fails with what it wrote when it ends before. */
export async function startCapstan(options: StartOptions): Promise<Capstan> {
  const begun = spawnCapstan(options)
  const listening = /Capstan runs at (http:\S+)/
  let exit: Exit | undefined
  void begun.exited.then(value => {
    exit = value
  })
  await until(() => exit !== undefined || listening.test(begun.log()), startTimeoutMs).catch(error => {
    throw new Error(`Capstan did not start: ${error.message}\n${begun.log()}`)
  })
  const url = listening.exec(begun.log())?.[1]
  if (url === undefined) throw new Error(`Capstan ended with ${JSON.stringify(exit)}:\n${begun.log()}`)
  return { ...begun, url }
}

/** Runs another of its commands to the end. */
export async function runCapstan(dataDir: string, ...args: string[]): Promise<Exit & { output: string }> {
  const { child, log, exited } = launch({ dataDir, args, title: `capstan ${args.join(' ')}` })
  // What it wrote last may come after its end.
  const [exit] = await Promise.all([exited, once(child, 'close')])
  return { ...exit, output: log() }
}

function spawnCapstan({ dataDir, env, roles, services }: StartOptions): Omit<Capstan, 'url'> {
  const args = ['start', ...(roles ? ['--roles', roles] : []), ...(services ? ['--services', services] : [])]
  const { child, log, exited } = launch({ dataDir, args, env, title: `Capstan (${roles ?? 'all roles'})` })
  return { pid: child.pid!, dataDir, log, kill: signal => void child.kill(signal), exited }
}

function launch(given: {
  dataDir: string
  args: string[]
  env?: Record<string, string> | undefined
  title: string
}): Spawned {
  const { dataDir, args, env, title } = given
  const child = spawn(process.execPath, ['server/main.ts', ...args], {
    cwd: checkout,
    // None of the caller's variables: the tests must not depend on them.
    env: { PATH: process.env.PATH, DATA_DIR: dataDir, PORT: '0', GRPC_PORT: '0', RATE_LIMIT_PER_MINUTE: '0', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let written = ''
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.setEncoding('utf8').on('data', text => {
      written += text
    })
  }
  const exited = new Promise<Exit>(resolve => child.once('exit', (code, signal) => resolve({ code, signal })))
  const spawned = { child, log: () => written, title: `${title}, process ${child.pid},`, exited, shown: 0 }
  processes.add(spawned)
  return spawned
}

/** A folder for a Capstan's data, removed with its PostgreSQL when the file's tests are done. */
export async function makeDataDir(): Promise<string> {
  const dataDir = await mkdtemp(path.join(tmpdir(), 'capstan-e2e-'))
  dataDirs.add(dataDir)
  return dataDir
}

async function cleanUp() {
  for (const { child } of processes) if (isRunning(child)) child.kill('SIGKILL')
  await Promise.all([...processes].map(each => each.exited))
  for (const dataDir of dataDirs) {
    await killPostgres(dataDir)
    await rm(dataDir, { recursive: true, force: true })
  }
}

function isRunning(child: ChildProcess): boolean {
  return child.exitCode === null && child.signalCode === null
}

/** Ends every process of a test with SIGTERM, in the order given, and resolves when the last has gone. */
export async function stopAll(...capstans: Capstan[]) {
  for (const capstan of capstans) capstan.kill('SIGTERM')
  await Promise.all(capstans.map(capstan => capstan.exited))
}

// The embedded PostgreSQL

/** The postmaster's pid while it runs. */
export async function postmasterOf(dataDir: string): Promise<number | undefined> {
  const text = await readFile(path.join(dataDir, 'postgres/postmaster.pid'), 'utf8').catch(() => '')
  const pid = Number(text.split('\n')[0])
  return pid > 0 && commandOf(pid).includes(path.join(dataDir, 'postgres')) ? pid : undefined
}

/** SIGKILL to the postmaster and every backend at once. Does nothing when it does not run. */
export async function killPostgres(dataDir: string) {
  const postmaster = await postmasterOf(dataDir)
  if (postmaster === undefined) return
  const backends = pids().filter(pid => parentOf(pid) === postmaster)
  for (const pid of [postmaster, ...backends]) kill(pid)
  await until(() => ![postmaster, ...backends].some(isAlive))
}

/** SIGKILL to the postmaster alone. Its backends notice when they next wait for something, and end by themselves. */
export async function killPostmaster(dataDir: string) {
  const postmaster = await postmasterOf(dataDir)
  if (postmaster === undefined) return
  kill(postmaster)
  await until(() => !isAlive(postmaster))
}

/** A connection beside Capstan's, which does not count as a Capstan. It may be lost without a word. */
export async function connect(dataDir: string): Promise<pg.Client> {
  const client = new pg.Client({
    host: path.join(dataDir, 'socket'),
    user: 'capstan',
    database: 'capstan',
    application_name: 'e2e',
  })
  client.on('error', () => {})
  await client.connect()
  return client
}

/** Asks on a connection of its own. */
export async function queryIn<R extends object>(dataDir: string, text: string, values: unknown[] = []): Promise<R[]> {
  const client = await connect(dataDir)
  try {
    return (await client.query(text, values)).rows as R[]
  } finally {
    await client.end()
  }
}

// Processes

export function pids(): number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter(pid => pid > 0)
}

/** Pids whose command line holds the text, this process left out. */
export function processesWith(text: string): number[] {
  return pids().filter(pid => pid !== process.pid && commandOf(pid).includes(text))
}

function commandOf(pid: number): string {
  return readProc(pid, 'cmdline').replaceAll('\0', ' ')
}

function parentOf(pid: number): number {
  const stat = readProc(pid, 'stat')
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
}

/** A zombie that its parent has not looked at is gone all the same. */
function isAlive(pid: number): boolean {
  const stat = readProc(pid, 'stat')
  return stat !== '' && stat.slice(stat.lastIndexOf(')') + 2)[0] !== 'Z'
}

function readProc(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'latin1')
  } catch {
    return ''
  }
}

function kill(pid: number) {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has gone by itself.
  }
}
