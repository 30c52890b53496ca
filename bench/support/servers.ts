import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { makeEmbeddedServer } from '../../server/platform/database/embedded.ts'
import { silentLog } from '../../server/platform/log.ts'

/** Gives the action a folder that is gone afterwards. */
export async function withFolder<T>(action: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-bench-'))
  try {
    return await action(folder)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** The PostgreSQL that Capstan brings, with the settings it brings. */
export async function withPostgres<T>(action: (url: string) => Promise<T>): Promise<T> {
  return withFolder(async folder => {
    const server = makeEmbeddedServer({ dataDir: folder, log: silentLog })
    await server.ensureRunning()
    try {
      return await action(server.url)
    } finally {
      await server.stop()
    }
  })
}

/**
 * A Redis as Debian ships it. `memory` writes nothing to disk, so it is faster than any that must not lose what it
 * accepted; `disk` syncs each write before it answers, which is what Capstan does.
 */
export async function withRedis<T>(keep: 'memory' | 'disk', action: (port: number) => Promise<T>): Promise<T> {
  return withFolder(async folder => {
    const port = await freePort()
    const server = spawn(
      'redis-server',
      [
        '--port',
        String(port),
        '--save',
        '',
        '--dir',
        folder,
        '--loglevel',
        'warning',
        ...(keep === 'disk' ? ['--appendonly', 'yes', '--appendfsync', 'always'] : []),
      ],
      {
        stdio: 'ignore',
      },
    )
    const failed = new Promise<never>((_, reject) => {
      server.once('error', () =>
        reject(new Error('This benchmark needs a `redis-server` on the PATH (Debian: apt-get install redis-server).')),
      )
    })
    try {
      await Promise.race([answersPing(port), failed])
      return await action(port)
    } finally {
      await end(server)
    }
  })
}

async function answersPing(port: number) {
  const client = new Redis(port, '127.0.0.1', { retryStrategy: () => 50, maxRetriesPerRequest: 100 })
  client.on('error', () => {})
  await client.ping()
  client.disconnect()
}

/** Capstan as a process of its own, with an empty database. */
export async function withCapstan<T>(
  environment: Record<string, string>,
  action: (given: { url: string; token: string; pid: number }) => Promise<T>,
  args: readonly string[] = [],
): Promise<T> {
  return withFolder(async folder => {
    const port = await freePort()
    const main = path.join(import.meta.dirname, '../../server/main.ts')
    const server = spawn(process.execPath, [main, 'start', ...args], {
      env: {
        PATH: process.env.PATH,
        PORT: String(port),
        DATA_DIR: folder,
        LOG_LEVEL: 'error',
        RATE_LIMIT_PER_MINUTE: '0',
        ...environment,
      },
      stdio: ['ignore', 'ignore', 'ignore'],
    })
    const url = `http://127.0.0.1:${port}`
    try {
      await isReady(url, server)
      return await action({ url, token: await register(url), pid: server.pid! })
    } finally {
      await end(server)
    }
  })
}

async function isReady(url: string, server: ChildProcess) {
  const deadline = Date.now() + 60_000
  while (Date.now() < deadline) {
    if (server.exitCode !== null) throw new Error(`Capstan ended with ${server.exitCode} instead of starting.`)
    const answer = await fetch(`${url}/readyz`).catch(() => undefined)
    if (answer?.ok) return
    await sleep(50)
  }
  throw new Error('Capstan was not ready within a minute.')
}

async function register(url: string): Promise<string> {
  const answer = await fetch(`${url}/v1/auth/register`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ username: 'bench', password: 'a-long-password' }),
  })
  const body = (await answer.json()) as { access_token: string }
  return body.access_token
}

async function end(server: ChildProcess) {
  if (server.exitCode !== null || server.signalCode !== null) return
  const ended = new Promise(resolve => server.once('exit', resolve))
  server.kill('SIGTERM')
  await ended
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise(resolve => server.close(resolve))
  return port
}
