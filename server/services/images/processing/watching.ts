/** Sees to it that a process takes no more memory than its work weighs. */
import { readFile } from 'node:fs/promises'

const everyMs = 50
/** Beside what was weighed: what the work before left behind, and what the process itself moves. */
const slackBytes = 64 * 1024 * 1024
const pageBytes = 4096

/** @param tooMuch called once, when it has grown by more than that since now, and the slack */
export function watchMemory(pid: number | undefined, bytes: number, tooMuch: () => void): { stop(): void } {
  let first: number | undefined
  const timer = setInterval(async () => {
    const resident = await residentBytes(pid)
    if (resident === undefined) return
    first ??= resident
    if (resident - first <= bytes + slackBytes) return
    clearInterval(timer)
    tooMuch()
  }, everyMs)
  return { stop: () => clearInterval(timer) }
}

/** Without files that are mapped: the kernel takes those back. Undefined where there is no /proc, or no such process. */
async function residentBytes(pid: number | undefined): Promise<number | undefined> {
  try {
    const [, resident, shared] = (await readFile(`/proc/${pid}/statm`, 'latin1')).split(' ').map(Number)
    return (resident! - shared!) * pageBytes
  } catch {
    return undefined
  }
}
