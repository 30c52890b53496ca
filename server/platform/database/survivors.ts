import { readdir, readFile, readlink, realpath } from 'node:fs/promises'
import type { Log } from '../log.ts'

/**
 * Ends the processes of a PostgreSQL whose postmaster is gone. They end by themselves when they next wait for something,
 * but for one that waits for what another held that was killed: it waits for ever, and while it has the server's memory
 * no new server starts. What it did and had not committed is undone by the next start, as after any crash.
 *
 * Does nothing where there is no /proc.
 *
 * @param pgData the server's data folder, in which no postmaster may run
 */
export async function endSurvivors(pgData: string, log: Log) {
  const folder = await realpath(pgData)
  const pids = (await readdir('/proc').catch(() => [])).map(Number).filter(pid => pid > 0)
  for (const pid of pids) {
    if (!(await isOfFolder(pid, folder))) continue
    log.warn({ pid }, 'a process of the PostgreSQL that was killed held on to its memory; it is ended')
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // It has gone by itself.
    }
  }
}

/** PostgreSQL works in its data folder. Others may stand there too, such as somebody's shell. */
async function isOfFolder(pid: number, folder: string): Promise<boolean> {
  try {
    if ((await readlink(`/proc/${pid}/cwd`)) !== folder) return false
    return (await readFile(`/proc/${pid}/comm`, 'utf8')).startsWith('postgres')
  } catch {
    return false
  }
}
