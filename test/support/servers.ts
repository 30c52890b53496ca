/** Servers for tests that `test/services/*.sh` installed: where they are, and their processes. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { createServer } from 'node:net'
import path from 'node:path'
import { until } from './until.ts'

const cache = path.resolve(import.meta.dirname, '../../node_modules/.cache/capstan')
const startTimeoutMs = 60_000
const keptCharsMax = 6000

export interface TestServer {
  /** Resolves when it answers. Fails with what it wrote when it ends instead. */
  start(): Promise<void>
  /** Ends it as a crash would. */
  kill(): Promise<void>
  /** Lets it end in its own time. */
  stop(): Promise<void>
}

/** Where the script of this name put its server. */
export function installedFolder(name: string): string {
  return path.join(cache, name)
}

/** Why a test is skipped; false where the script has run. */
export function whyMissing(name: string): string | false {
  // The scripts write the stamp last.
  const isThere = existsSync(path.join(installedFolder(name), 'stamp'))
  return !isThere && `${name} is not installed here: \`sh test/services/${name}.sh\` does that`
}

/** A port that nobody had a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  server.close()
  await once(server, 'close')
  return port
}

/** Not started yet. Whoever makes one sees to its end. */
export function makeServer(options: {
  name: string
  command: string
  args: string[]
  /** Asks it; an error means no. */
  isReady: () => Promise<boolean>
}): TestServer {
  let child: ChildProcess | undefined
  async function end(signal: NodeJS.Signals) {
    if (child === undefined || !isRunning(child)) return
    const exited = once(child, 'exit')
    child.kill(signal)
    await exited
  }
  return {
    async start() {
      if (child !== undefined && isRunning(child)) throw new Error(`${options.name} is running already.`)
      child = spawn(options.command, options.args, { stdio: ['ignore', 'pipe', 'pipe'] })
      await untilReady(child, options)
    },
    kill: () => end('SIGKILL'),
    stop: () => end('SIGTERM'),
  }
}

async function untilReady(child: ChildProcess, { name, isReady }: { name: string; isReady: () => Promise<boolean> }) {
  const written = keepLast(child)
  const failed = new Promise<never>((_, reject) => {
    child.once('error', reject)
    child.once('exit', () => reject(new Error(`${name} ended.`)))
  })
  const ready = until(() => !isRunning(child) || isReady().catch(() => false), startTimeoutMs)
  await Promise.race([ready, failed]).catch(error => {
    child.kill('SIGKILL')
    throw new Error(`${name} did not start: ${error.message}\n${written()}`)
  })
  // Its end after this is no failure of its start.
  failed.catch(() => {})
}

function keepLast(child: ChildProcess): () => string {
  let written = ''
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.setEncoding('utf8').on('data', text => {
      written = (written + text).slice(-keptCharsMax)
    })
  }
  return () => written
}

function isRunning(child: ChildProcess): boolean {
  return child.pid !== undefined && child.exitCode === null && child.signalCode === null
}
