/** Sees to it that a process takes no more memory than its work weighs. */
import { readFileSync } from 'node:fs'

const everyMs = 50
/** Beside what was weighed: what the work before left behind, and what the process itself moves. */
const slackBytes = 64 * 1024 * 1024
const pageBytes = 4096

/** @param tooMuch called once, when it has grown by more than that since now, and the slack */
export function watchMemory(pid: number | undefined, bytes: number, tooMuch: () => void): { stop(): void } {
  let first: number | undefined
  const timer = setInterval(() => {
    const resident = residentBytes(pid)
    if (resident === undefined) return
    first ??= resident
    if (resident - first <= bytes + slackBytes) return
    clearInterval(timer)
    tooMuch()
  }, everyMs)
  return { stop: () => clearInterval(timer) }
}

/** Without files that are mapped: the kernel takes those back. Undefined where there is no /proc, or no such process. */
function residentBytes(pid: number | undefined): number | undefined {
  try {
    // The kernel answers at once: in a thread of the pool it would take ten times as long.
    const [, resident, shared] = readFileSync(`/proc/${pid}/statm`, 'latin1').split(' ').map(Number)
    return (resident! - shared!) * pageBytes
  } catch {
    return undefined
  }
}
