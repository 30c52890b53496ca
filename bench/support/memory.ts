/** How much memory a process and those it started have, what they share counted once. */
import { readdirSync, readFileSync } from 'node:fs'

const sampleMs = 100

/** Bytes of a process and its descendants; those whose command line has a word of `but` are left out with theirs. */
export function treeBytes(pid: number, but: string[] = []): number {
  const children = new Map<number, number[]>()
  for (const each of readdirSync('/proc').map(Number).filter(Boolean)) {
    const parent = parentOf(each)
    if (parent !== undefined) children.set(parent, [...(children.get(parent) ?? []), each])
  }
  const sum = (each: number): number => {
    const command = read(`/proc/${each}/cmdline`)
    if (but.some(word => command.includes(word))) return 0
    return proportionalBytes(each) + (children.get(each) ?? []).reduce((total, child) => total + sum(child), 0)
  }
  return sum(pid)
}

/** Answers the most that was seen while `action` ran. */
export async function peakWhile<T>(look: () => number, action: () => Promise<T>): Promise<{ result: T; peak: number }> {
  let peak = look()
  const timer = setInterval(() => {
    peak = Math.max(peak, look())
  }, sampleMs)
  try {
    return { result: await action(), peak: Math.max(peak, look()) }
  } finally {
    clearInterval(timer)
  }
}

function proportionalBytes(pid: number): number {
  return Number(/^Pss:\s+(\d+) kB/m.exec(read(`/proc/${pid}/smaps_rollup`))?.[1] ?? 0) * 1024
}

function parentOf(pid: number): number | undefined {
  const stat = read(`/proc/${pid}/stat`)
  return stat === '' ? undefined : Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
}

function read(file: string): string {
  try {
    return readFileSync(file, 'latin1')
  } catch {
    return ''
  }
}
