/** A Redis for tests, where the machine has one. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { atEnd } from './at-end.ts'
import { freePort } from './servers.ts'

/** Why tests that need one are skipped; false where there is one. */
export const redisIsMissing: string | false = findRedis() ? false : 'there is no redis-server on PATH'

export interface TestRedis {
  url: string
  /** Ends it as a crash would. */
  kill(): Promise<void>
  start(): Promise<void>
}

/** Gone at the end of the file's tests. */
export async function makeTestRedis(): Promise<TestRedis> {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-redis-'))
  const port = await freePort()
  let redis = await startRedis(port, folder)
  atEnd(async () => {
    redis.kill('SIGKILL')
    await rm(folder, { recursive: true, force: true })
  })
  return {
    url: `redis://127.0.0.1:${port}`,
    async kill() {
      redis.kill('SIGKILL')
      await once(redis, 'exit')
    },
    async start() {
      redis = await startRedis(port, folder)
    },
  }
}

function findRedis(): string | undefined {
  try {
    return execFileSync('which', ['redis-server'], { encoding: 'utf8' }).trim()
  } catch {
    return undefined
  }
}

async function startRedis(port: number, folder: string): Promise<ChildProcess> {
  const given = ['--port', String(port), '--bind', '127.0.0.1', '--dir', folder, '--save', '']
  const redis = spawn('redis-server', given, { stdio: ['ignore', 'pipe', 'ignore'] })
  let said = ''
  for await (const piece of redis.stdout!) {
    said += piece
    if (/[Rr]eady to accept connections/.test(said)) break
  }
  return redis
}
