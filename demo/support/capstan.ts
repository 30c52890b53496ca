/**
 * A real Capstan, started as a user starts it, in a folder of its own.
 *
 * States: stopped → start() → running → stop() or crash() → stopped. `remove` ends whatever is left in any state.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { chmod, mkdtemp, open, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { TourError } from '../stop.ts'
import { pause } from './api.ts'

export interface Capstan {
  /** Where it listens; the same after each start. */
  readonly url: string
  /** Resolves when it is ready. */
  start(signal: AbortSignal): Promise<void>
  /** A command beside the running server, such as `user create`. Answers what it printed. */
  run(args: string[], input?: string): Promise<string>
  /** SIGTERM; answers whether it ended in good order. */
  stop(): Promise<boolean>
  /** SIGKILL: no last words, no chance to write anything. */
  crash(): Promise<void>
  /** The end of what it wrote. */
  readLog(): Promise<string>
  /** Ends every process and removes the folder. */
  remove(): Promise<void>
}

const root = path.resolve(import.meta.dirname, '../..')
const readyTimeoutMs = 60_000
const stopTimeoutMs = 30_000
const logLinesShown = 15

export async function makeCapstan(): Promise<Capstan> {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-demo-'))
  // Where root may make no user namespace, PostgreSQL runs as another user, who has to pass through here.
  await chmod(folder, 0o711)
  const dataDir = path.join(folder, 'data')
  const logFile = path.join(folder, 'capstan.log')
  const port = await findFreePort()
  const url = `http://127.0.0.1:${port}`
  let child: ChildProcess | undefined
  let crashed = false

  async function start(signal: AbortSignal) {
    const log = await open(logFile, 'a', 0o600)
    child = spawn(process.execPath, ['server/main.ts', 'start'], {
      cwd: root,
      env: environment({ PORT: String(port), GRPC_PORT: 'off', DATA_DIR: dataDir }),
      // A group of its own, so that Ctrl-C reaches the tour alone, which then stops Capstan.
      detached: true,
      stdio: ['ignore', log.fd, log.fd],
    })
    await log.close()
    await becomesReady(child, url, signal)
    crashed = false
  }

  async function end(signal: NodeJS.Signals): Promise<number | null> {
    const ending = child
    child = undefined
    if (!ending || hasEnded(ending)) return ending?.exitCode ?? null
    const exited = new Promise<number | null>(resolve => ending.once('exit', resolve))
    ending.kill(signal)
    const inTime = await Promise.race([exited, sleep(stopTimeoutMs, 'late' as const, { ref: false })])
    if (inTime !== 'late') return inTime
    ending.kill('SIGKILL')
    return exited
  }

  return {
    url,
    start,
    run: (args, input = '') => runCommand(args, { input, env: environment({ DATA_DIR: dataDir }) }),
    stop: async () => (await end('SIGTERM')) === 0,
    async crash() {
      crashed = true
      await end('SIGKILL')
    },
    async readLog() {
      const text = await readFile(logFile, 'utf8').catch(() => '')
      return text.trimEnd().split('\n').slice(-logLinesShown).join('\n')
    },
    async remove() {
      await end('SIGTERM')
      // The next start clears away the sandboxes of the one that was killed.
      if (crashed) await start(AbortSignal.timeout(readyTimeoutMs)).catch(() => {})
      await end('SIGTERM')
      await stopPostgres(dataDir)
      await rm(folder, { recursive: true, force: true, maxRetries: 5 })
    },
  }
}

function runCommand(args: string[], given: { input: string; env: NodeJS.ProcessEnv }): Promise<string> {
  return new Promise((resolve, reject) => {
    const options = { cwd: root, env: given.env }
    const command = execFile(process.execPath, ['server/main.ts', ...args], options, (error, stdout, stderr) => {
      if (error) reject(new TourError(`\`capstan ${args.join(' ')}\` failed: ${stderr || error.message}`))
      else resolve(stdout.trim())
    })
    command.stdin!.end(given.input)
  })
}

/** None of the caller's settings: the tour must not touch their database or depend on their limits. */
function environment(settings: Record<string, string>): NodeJS.ProcessEnv {
  const { PATH, HOME, TMPDIR, LANG } = process.env
  return { PATH, HOME, TMPDIR, LANG, HOST: '127.0.0.1', SHUTDOWN_GRACE_MS: '3000', ...settings }
}

async function becomesReady(child: ChildProcess, url: string, signal: AbortSignal) {
  const deadline = Date.now() + readyTimeoutMs
  while (!(await isReady(url))) {
    if (hasEnded(child)) throw new TourError('Capstan ended while it started.')
    if (Date.now() > deadline) throw new TourError(`Capstan was not ready within ${readyTimeoutMs / 1000} s.`)
    await pause(25, signal)
  }
}

function isReady(url: string): Promise<boolean> {
  const asked = fetch(`${url}/readyz`).then(async response => {
    await response.arrayBuffer()
    return response.ok
  })
  return asked.catch(() => false)
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null
}

/** After a crash PostgreSQL runs on by itself, waiting for the next Capstan. */
async function stopPostgres(dataDir: string) {
  const file = path.join(dataDir, 'postgres/postmaster.pid')
  const deadline = Date.now() + stopTimeoutMs
  for (let asked = false; Date.now() < deadline; await sleep(25)) {
    const pid = Number((await readFile(file, 'utf8').catch(() => '')).split('\n')[0])
    if (!pid || !isAlive(pid)) return
    if (!asked) process.kill(pid, 'SIGINT')
    asked = true
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

function findFreePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })
}
