/** The `capstan` command as somebody types it, in a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { text } from 'node:stream/consumers'

export interface Ended {
  code: number | null
  stdout: string
  stderr: string
}

const root = path.resolve(import.meta.dirname, '../..')

export function begin(...args: string[]): ChildProcess {
  return spawn(process.execPath, ['server/main.ts', ...args], {
    cwd: root,
    env: { PATH: process.env.PATH },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
}

export async function capstan(...args: string[]): Promise<Ended> {
  return ended(begin(...args))
}

export async function ended(child: ChildProcess): Promise<Ended> {
  const [stdout, stderr] = await Promise.all([text(child.stdout!), text(child.stderr!), once(child, 'exit')])
  return { code: child.exitCode, stdout, stderr }
}
