/** Locust, where `test/services/locust.sh` has installed it. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { text } from 'node:stream/consumers'
import { installedFolder, whyMissing } from './servers.ts'

/** Why tests that need it are skipped; false where it is there. */
export const locustIsMissing: string | false = whyMissing('locust')

export interface LocustRun {
  /** All that were sent and ended, the failed ones among them. */
  requests: number
  failures: number
  /** By method and name. */
  entries: LocustEntry[]
  /** What it wrote beside: the failures by kind are in it. */
  output: string
}

export interface LocustEntry {
  method: string
  name: string
  requests: number
  failures: number
  /** Milliseconds, averaged. */
  meanMs: number
}

interface Stats {
  method: string
  name: string
  num_requests: number
  num_failures: number
  total_response_time: number
}

/** Users that are at work at the end of the time may end what they do. */
const lastTasksSeconds = 5

/**
 * Runs a locustfile to its end, all users at once from the beginning. Failed requests are the caller's to judge; an
 * exception in the file, which must not print, is a failure of this.
 * @param options.env added to PATH, which alone is passed on.
 */
export async function runLocust(options: {
  file: string
  host: string
  users: number
  seconds: number
  env?: Record<string, string>
}): Promise<LocustRun> {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-locust-'))
  try {
    const env = { PATH: process.env.PATH, HOME: folder, ...options.env }
    const { code, stats, output } = await run(argumentsOf(options), env)
    if (code !== 0 || /^Traceback/m.test(output)) throw new Error(`Locust ended with ${code}:\n${output}`)
    return { ...summarize(JSON.parse(stats)), output }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

function argumentsOf(given: { file: string; host: string; users: number; seconds: number }): string[] {
  const { file, host, users, seconds } = given
  return [
    ...['--headless', '--only-summary', '--json', '--exit-code-on-error', '0'],
    ...['--locustfile', file, '--host', host],
    ...['--users', String(users), '--spawn-rate', String(users)],
    ...['--run-time', `${seconds}s`, '--stop-timeout', String(lastTasksSeconds)],
  ]
}

async function run(args: string[], env: NodeJS.ProcessEnv) {
  const locust = spawn(path.join(installedFolder('locust'), 'bin/locust'), args, {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const [stats, output] = await Promise.all([text(locust.stdout), text(locust.stderr), once(locust, 'exit')])
  return { code: locust.exitCode, stats, output }
}

function summarize(stats: Stats[]): Omit<LocustRun, 'output'> {
  const entries = stats.map(each => ({
    method: each.method,
    name: each.name,
    requests: each.num_requests,
    failures: each.num_failures,
    meanMs: each.total_response_time / Math.max(1, each.num_requests),
  }))
  const total = (key: 'requests' | 'failures') => entries.reduce((sum, entry) => sum + entry[key], 0)
  return { requests: total('requests'), failures: total('failures'), entries }
}
