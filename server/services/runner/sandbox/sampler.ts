import { readdirSync, readFileSync, statfsSync } from 'node:fs'
import type { Meter } from './box.ts'
import type { Limits } from './types.ts'

// Without cgroups nothing counts a box as a whole. This looks at its processes every few milliseconds instead, which
// sees what lasts; the rlimits of each process bound what happens in between.

const INTERVAL_MS = 20
/** sysconf(_SC_CLK_TCK), which Linux has fixed at 100 for what /proc shows. */
const TICK_MS = 10
/** The shell. */
const OWN_PROCESSES = 1
const INODES_MAX = 200_000

interface Sample {
  cpuMs: number
  memoryBytes: number
  processes: number
  inodes: number
}

export function makeSampler(findInit: () => number | null): Meter {
  let limits: Limits | null = null
  let cpuBefore = 0
  let last: Sample = { cpuMs: 0, memoryBytes: 0, processes: 0, inodes: 0 }
  let peakBytes: number | null = null
  let exceeded: 'memory' | 'processes' | null = null

  function look(): void {
    const init = findInit()
    const sample = init === null ? null : takeSample(init)
    // A dead box has no processes, but its last figures remain true.
    if (!sample || sample.cpuMs < last.cpuMs) return
    last = sample
    peakBytes = Math.max(peakBytes ?? 0, sample.memoryBytes)
    if (!limits) return
    if (sample.memoryBytes > limits.memoryBytes || sample.inodes > INODES_MAX) exceeded ??= 'memory'
    // The subshell that becomes the program may be seen beside it.
    if (sample.processes > limits.processes + OWN_PROCESSES + 1) exceeded ??= 'processes'
  }

  return {
    intervalMs: INTERVAL_MS,
    setLimits(next) {
      limits = next
    },
    restart() {
      look()
      cpuBefore = last.cpuMs
      peakBytes = null
      exceeded = null
    },
    cpuMs() {
      look()
      return last.cpuMs - cpuBefore
    },
    memoryPeakBytes: () => peakBytes,
    exceeded: () => exceeded,
  }
}

function takeSample(init: number): Sample | null {
  const pids = descendants(init)
  const sample: Sample = { cpuMs: 0, memoryBytes: 0, processes: 0, inodes: 0 }
  for (const pid of pids) addProcess(sample, pid)
  if (sample.processes === 0) return null
  addDisk(sample, pids)
  return sample
}

/** Every orphan in a pid namespace becomes a child of its pid 1, so from there all are found. */
function descendants(init: number): number[] {
  const found = [init]
  for (let index = 0; index < found.length && found.length < 5000; index++) {
    const pid = found[index]
    for (const task of readFolder(`/proc/${pid}/task`)) {
      const children = readText(`/proc/${pid}/task/${task}/children`).trim()
      if (children) found.push(...children.split(' ').map(Number))
    }
  }
  return found
}

/** A living process's own time and that of the dead children it has waited for: together, everybody's once. */
function addProcess(sample: Sample, pid: number): void {
  const stat = readText(`/proc/${pid}/stat`)
  if (!stat) return
  const fields = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number)
  const [utime = 0, stime = 0, cutime = 0, cstime = 0] = fields.slice(11, 15)
  sample.cpuMs += (utime + stime + cutime + cstime) * TICK_MS
  sample.processes += fields[17] ?? 1
  const status = readText(`/proc/${pid}/status`)
  for (const name of ['RssAnon', 'RssShmem']) {
    sample.memoryBytes += Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? 0) * 1024
  }
}

function addDisk(sample: Sample, pids: number[]): void {
  for (const pid of pids) {
    try {
      const disk = statfsSync(`/proc/${pid}/root/box`)
      sample.memoryBytes += (disk.blocks - disk.bfree) * disk.bsize
      sample.inodes = disk.files - disk.ffree
      return
    } catch {
      // It is gone, or it does not let itself be looked at: the next one will do.
    }
  }
}

function readFolder(path: string): string[] {
  try {
    return readdirSync(path)
  } catch {
    return []
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return ''
  }
}
