import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs'

const CLOSE_ON_EXEC = 0o2000000

type Others = (number | 'ignore')[]

/** Spawns with /dev/null in the place of every descriptor that would be inherited; `others` goes behind the first three. */
export function withoutInherited<T>(spawn: (others: Others) => T): T {
  const inherited = new Set(inheritedDescriptors())
  const nothing = openSync('/dev/null', 'r')
  const highest = Math.max(2, ...inherited)
  const others: Others = Array.from({ length: highest - 2 }, (_, index) =>
    inherited.has(index + 3) ? nothing : 'ignore',
  )
  try {
    return spawn(others)
  } finally {
    closeSync(nothing)
  }
}

/**
 * Descriptors that our own parent left open in us and that a child would inherit. Node closes those it opens itself and
 * the lowest of the others; a log, a socket or a lock higher up would be handed to strangers' programs.
 */
function inheritedDescriptors(): number[] {
  return readdirSync('/proc/self/fd')
    .map(Number)
    .filter(fd => fd > 2 && isInherited(fd))
}

function isInherited(fd: number): boolean {
  try {
    const flags = /^flags:\s*([0-7]+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))
    return (Number.parseInt(flags?.[1] ?? '0', 8) & CLOSE_ON_EXEC) === 0
  } catch {
    // It was the listing's own.
    return false
  }
}
