import { mkdir, readdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { isAlive } from '#platform/processes.ts'

/** A folder for what is being made, this process's own. Those of processes that died are removed. */
export async function makeWorkFolder(parent: string): Promise<string> {
  await mkdir(parent, { recursive: true, mode: 0o700 })
  for (const name of await readdir(parent)) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid || isAlive(Number(name))) continue
    await rm(path.join(parent, name), { recursive: true, force: true })
  }
  const own = path.join(parent, String(process.pid))
  await rm(own, { recursive: true, force: true })
  await mkdir(own, { mode: 0o700 })
  return own
}
