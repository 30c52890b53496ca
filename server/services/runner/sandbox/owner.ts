import { readFileSync } from 'node:fs'

// What outlives a killed process (cgroups, folders) carries its owner's name, so that the next one can tell whose it is.

const PATTERN = /^capstan-(\d+)-(\d+)-\d+$/
let made = 0

/** A name no other living process gives: pid, start time of that pid, a counter. */
export function makeOwnerName(): string {
  made += 1
  return `capstan-${process.pid}-${startTime(process.pid) ?? 0}-${made}`
}

/** True for a name of ours whose process is gone. */
export function isOrphan(name: string): boolean {
  const match = PATTERN.exec(name)
  if (!match) return false
  const started = startTime(Number(match[1]))
  return started === null || String(started) !== match[2]
}

/** In clock ticks since boot, which tells a reused pid from the first; null where no such process lives. */
function startTime(pid: number): number | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    // The name in brackets may hold spaces, so count the fields from behind it.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    // A zombie is dead; it only waits to be asked how it died.
    return fields[0] === 'Z' || fields[0] === 'X' ? null : Number(fields[19])
  } catch {
    return null
  }
}
