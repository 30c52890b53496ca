import { mkdir, readdir, rm } from 'node:fs/promises'
import { hostname } from 'node:os'
import path from 'node:path'
import { isAlive } from '#platform/processes.ts'

/**
 * A folder for what is being made, this process's own. Those of processes that died are removed, as far as this machine
 * can tell: containers that share a folder have equal process numbers, but not equal host names.
 */
export async function makeWorkFolder(parent: string, host = hostname()): Promise<string> {
  const mark = `@${encodeURIComponent(host)}`
  await mkdir(parent, { recursive: true, mode: 0o700 })
  for (const name of await readdir(parent)) {
    const pid = Number(name.slice(0, -mark.length))
    if (!name.endsWith(mark) || !(pid > 0) || pid === process.pid || isAlive(pid)) continue
    await rm(path.join(parent, name), { recursive: true, force: true })
  }
  const own = path.join(parent, `${process.pid}${mark}`)
  await rm(own, { recursive: true, force: true })
  await mkdir(own, { mode: 0o700 })
  return own
}
