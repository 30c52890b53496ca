import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { rmdir, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { isOrphan, makeOwnerName } from './owner.ts'
import type { LimitedBy } from './types.ts'

// One folder per owner, named after it, and in it a group for each slot. A slot's shell stands in its group, and the
// slot's boxes, one after another, are born there; the counters start over for each.

/** One slot's group in every hierarchy that is to be had. */
export interface Group {
  /** Moves a process in. It may take a while: the kernel waits for all processors. */
  admit(pid: number): Promise<void>
  setLimits(limits: { memoryBytes: number; processes: number }): void
  /** Begins a measurement; what the getters below answer counts from here. */
  restart(): void
  /** Null where no hierarchy counts it. */
  cpuMs(): number | null
  memoryPeakBytes(): number | null
  /** True once the kernel killed something in here for memory. */
  ranOutOfMemory(): boolean
  /** SIGKILL to all that is in here, where that can be done without naming a pid twice. */
  kill(): void
  /** True when nothing is left in it but the slot's shell. */
  isClean(): boolean
  /** Resolves when the group is gone; tries again while its last processes are being reaped. */
  remove(): Promise<void>
}

export interface Groups {
  readonly kind: Exclude<LimitedBy, 'rlimit'>
  readonly limitsProcesses: boolean
  readonly countsCpu: boolean
  make(name: string): Group
  /** Resolves when what dead owners left is gone. */
  readonly swept: Promise<unknown>
  close(): Promise<void>
}

export interface GroupsOptions {
  parent?: string | undefined
  /** For tests: a folder that stands for /. */
  root?: string
}

/** What the process memory of the box's own machinery (bwrap, two shells) is given on top of the program's. */
export const OWN_MEMORY_BYTES = 4 * 1024 * 1024
/** The slot's shell, bwrap, and the shell in the box. */
export const OWN_PROCESSES = 3

/** More than this left behind (pages of files that the last box was first to read) would count against the next. */
const RESIDUE_BYTES_MAX = 2 * 1024 * 1024

/** Where the processes go that were in our group before it got children. */
const SHELTER = 'capstan-host'

interface Mount {
  point: string
  /** The folder of the hierarchy that is mounted there. */
  root: string
  controllers: string[]
}

/** The groups this process may make, or the reason it may make none. */
export function openGroups(options: GroupsOptions): Groups | { reason: string } {
  const root = options.root ?? '/'
  const mounts = readMounts(root)
  const memory = mounts.find(mount => mount.controllers.includes('memory'))
  try {
    if (memory) return openVersion1(mounts, options)
    const unified = mounts.find(mount => mount.controllers.includes('cgroup2'))
    if (unified) return openVersion2(unified, options)
    return { reason: 'no cgroup hierarchy with a memory controller is mounted' }
  } catch (error) {
    return { reason: `cgroups are mounted but not writable (${(error as Error).message})` }
  }
}

function readMounts(root: string): Mount[] {
  return readText(join(root, 'proc/self/mountinfo'))
    .split('\n')
    .flatMap(line => {
      const [before, after] = line.split(' - ')
      const [, , , mountRoot, point] = before?.split(' ') ?? []
      const [type, , options] = after?.split(' ') ?? []
      if (!mountRoot || !point || !options || (type !== 'cgroup' && type !== 'cgroup2')) return []
      return [
        {
          point: join(root, point),
          root: mountRoot,
          controllers: type === 'cgroup2' ? ['cgroup2'] : options.split(','),
        },
      ]
    })
}

/** Where this process's own group lies under a mount; a container may have mounted only its part of the tree. */
function ownFolder(mount: Mount, root: string): string {
  const lines = readText(join(root, 'proc/self/cgroup'))
    .split('\n')
    .map(line => line.split(':'))
  const line = lines.find(([id, names]) =>
    mount.controllers.includes('cgroup2')
      ? id === '0'
      : names?.split(',').some(name => mount.controllers.includes(name)),
  )
  const path = line?.slice(2).join(':') ?? '/'
  const below = path === mount.root || path.startsWith(`${mount.root}/`) ? path.slice(mount.root.length) : path
  const folder = join(mount.point, below)
  if (!existsSync(folder)) return mount.point
  // Our parent may have been moved there by a sandbox of its own.
  return basename(folder) === SHELTER ? dirname(folder) : folder
}

function openVersion1(mounts: Mount[], options: GroupsOptions): Groups {
  const owner = makeOwnerName()
  const folders: Record<string, string> = {}
  const sweeping: Promise<void>[] = []
  for (const controller of ['memory', 'pids', 'cpuacct']) {
    const mount = mounts.find(candidate => candidate.controllers.includes(controller))
    if (!mount) continue
    const base = options.parent ? join(mount.point, options.parent) : ownFolder(mount, options.root ?? '/')
    sweeping.push(sweep(base))
    const folder = join(base, owner)
    try {
      mkdirSync(folder, { recursive: true })
      folders[controller] = folder
    } catch (error) {
      if (controller === 'memory') throw error
    }
  }
  return {
    kind: 'cgroup1',
    limitsProcesses: folders.pids !== undefined,
    countsCpu: folders.cpuacct !== undefined,
    make: name => makeGroup1(folders, name),
    swept: Promise.all(sweeping),
    close: async () => {
      await Promise.all([...new Set(Object.values(folders))].map(removeTree))
    },
  }
}

function makeGroup1(parents: Record<string, string>, name: string): Group {
  const folders = Object.fromEntries(
    Object.entries(parents).map(([controller, parent]) => [controller, join(parent, name)]),
  )
  const { memory = '', pids, cpuacct } = folders
  // With controllers mounted together, two of these are one folder.
  const distinct = [...new Set(Object.values(folders))]
  for (const folder of distinct) mkdirSync(folder)
  const cpuNow = () => (cpuacct ? readNumber(join(cpuacct, 'cpuacct.usage')) / 1e6 : 0)
  const killsNow = () => readField(join(memory, 'memory.oom_control'), 'oom_kill')
  let limited = ''
  let cpuBefore = 0
  let killsBefore = 0
  let memoryBefore = 0
  return {
    async admit(pid) {
      for (const folder of distinct) await writeFile(join(folder, 'cgroup.procs'), String(pid))
    },
    setLimits({ memoryBytes, processes }) {
      if (limited === `${memoryBytes} ${processes}`) return
      limited = `${memoryBytes} ${processes}`
      setMemory1(memory, memoryBytes + OWN_MEMORY_BYTES)
      if (pids) writeFileSync(join(pids, 'pids.max'), String(processes + OWN_PROCESSES))
    },
    restart() {
      writeFileSync(join(memory, 'memory.max_usage_in_bytes'), '0')
      memoryBefore = readNumber(join(memory, 'memory.usage_in_bytes'))
      cpuBefore = cpuNow()
      killsBefore = killsNow()
    },
    cpuMs: () => (cpuacct ? cpuNow() - cpuBefore : null),
    memoryPeakBytes: () => Math.max(0, readNumber(join(memory, 'memory.max_usage_in_bytes')) - memoryBefore),
    ranOutOfMemory: () => killsNow() > killsBefore,
    kill: () => killListed(join(memory, 'cgroup.procs')),
    isClean: () =>
      distinct.every(folder => listed(join(folder, 'cgroup.procs')).length === 1) &&
      (!pids || readNumber(join(pids, 'pids.current')) === 1) &&
      readNumber(join(memory, 'memory.usage_in_bytes')) < RESIDUE_BYTES_MAX,
    remove: async () => {
      await Promise.all(distinct.map(removeWhenEmpty))
    },
  }
}

/** With swap counted, its limit may never be below memory's, so the order depends on the direction. */
function setMemory1(folder: string, bytes: number): void {
  const limit = join(folder, 'memory.limit_in_bytes')
  const withSwap = join(folder, 'memory.memsw.limit_in_bytes')
  const raising = bytes > readNumber(limit)
  const files = raising ? [withSwap, limit] : [limit, withSwap]
  // Where swap is not counted, its limit does not exist.
  for (const file of files.filter(existsSync)) writeFileSync(file, String(bytes))
}

function openVersion2(mount: Mount, options: GroupsOptions): Groups | { reason: string } {
  const base = options.parent ? join(mount.point, options.parent) : ownFolder(mount, options.root ?? '/')
  const swept = sweep(base)
  const offered = readText(join(base, 'cgroup.controllers')).trim().split(/\s+/)
  if (!offered.includes('memory')) return { reason: `the cgroup ${base} offers no memory controller` }
  const wanted = ['memory', 'pids', 'cpu'].filter(name => offered.includes(name))
  const folder = join(base, makeOwnerName())
  mkdirSync(folder, { recursive: true })
  enable(base, wanted, () => vacate(base, folder))
  enable(folder, wanted, () => {})
  return {
    kind: 'cgroup2',
    limitsProcesses: wanted.includes('pids'),
    countsCpu: true,
    make: name => makeGroup2(join(folder, name), wanted),
    swept,
    close: () => removeTree(folder),
  }
}

/** Hands controllers down to a group's children. A group that has processes of its own refuses until they moved. */
function enable(folder: string, controllers: string[], vacateFirst: () => void): void {
  const file = join(folder, 'cgroup.subtree_control')
  const missing = controllers.filter(name => !readText(file).trim().split(/\s+/).includes(name))
  if (missing.length === 0) return
  const text = missing.map(name => `+${name}`).join(' ')
  try {
    writeFileSync(file, text)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EBUSY') throw error
    vacateFirst()
    writeFileSync(file, text)
  }
}

function vacate(base: string, folder: string): void {
  // Beside the owner's folder and not in it, so that it may outlive the owner with the processes that are not ours.
  const shelter = join(base, SHELTER)
  mkdirSync(shelter, { recursive: true })
  for (const pid of listed(join(base, 'cgroup.procs'))) {
    try {
      writeFileSync(join(shelter, 'cgroup.procs'), pid)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
  }
  mkdirSync(folder, { recursive: true })
}

function makeGroup2(folder: string, controllers: string[]): Group {
  const file = (name: string) => join(folder, name)
  mkdirSync(folder)
  for (const [name, value] of [
    ['memory.swap.max', '0'],
    ['memory.oom.group', '1'],
  ] as const) {
    if (existsSync(file(name))) writeFileSync(file(name), value)
  }
  const cpuNow = () => readField(file('cpu.stat'), 'usage_usec') / 1000
  const killsNow = () => readField(file('memory.events'), 'oom_kill')
  const peak = openPeak(file('memory.peak'))
  let limited = ''
  let cpuBefore = 0
  let killsBefore = 0
  let memoryBefore = 0
  return {
    admit: pid => writeFile(file('cgroup.procs'), String(pid)),
    setLimits({ memoryBytes, processes }) {
      if (limited === `${memoryBytes} ${processes}`) return
      limited = `${memoryBytes} ${processes}`
      writeFileSync(file('memory.max'), String(memoryBytes + OWN_MEMORY_BYTES))
      if (controllers.includes('pids')) writeFileSync(file('pids.max'), String(processes + OWN_PROCESSES))
    },
    restart() {
      peak.restart()
      memoryBefore = readNumber(file('memory.current'))
      cpuBefore = cpuNow()
      killsBefore = killsNow()
    },
    cpuMs: () => cpuNow() - cpuBefore,
    memoryPeakBytes() {
      const bytes = peak.read()
      return bytes === null ? null : Math.max(0, bytes - memoryBefore)
    },
    ranOutOfMemory: () => killsNow() > killsBefore,
    kill: () =>
      existsSync(file('cgroup.kill')) ? writeFileSync(file('cgroup.kill'), '1') : killListed(file('cgroup.procs')),
    isClean: () =>
      peak.restarts &&
      listed(file('cgroup.procs')).length === 1 &&
      readNumber(file('memory.current')) < RESIDUE_BYTES_MAX,
    remove: () => {
      peak.close()
      return removeWhenEmpty(folder)
    },
  }
}

interface Peak {
  /** Since 6.12 a write starts the peak over, for readers of that same descriptor. Before, a group has one peak for good. */
  readonly restarts: boolean
  restart(): void
  read(): number | null
  close(): void
}

function openPeak(file: string): Peak {
  const fd = openQuietly(file)
  const buffer = Buffer.alloc(32)
  let restarts = fd !== null
  const restart = () => {
    try {
      if (fd !== null) writeSync(fd, 'reset', 0)
    } catch {
      restarts = false
    }
  }
  restart()
  return {
    get restarts() {
      return restarts
    },
    restart,
    read: () =>
      fd === null ? null : Number.parseInt(buffer.toString('latin1', 0, readSync(fd, buffer, 0, 32, 0)), 10) || 0,
    close() {
      if (fd !== null) closeSync(fd)
    },
  }
}

function openQuietly(file: string): number | null {
  for (const flags of ['r+', 'r']) {
    try {
      return openSync(file, flags)
    } catch {
      // Older kernels let nobody write it, and the oldest do not have it.
    }
  }
  return null
}

/** Removes the folders of owners that died without doing so, and what still runs in them. */
async function sweep(base: string): Promise<void> {
  if (!existsSync(base)) return
  const orphans = readdirSync(base).filter(isOrphan)
  // Somebody else may be sweeping too, and the next start tries again.
  await Promise.allSettled(orphans.map(name => removeTree(join(base, name))))
}

async function removeTree(folder: string): Promise<void> {
  const children = readFolders(folder)
  for (const child of children) killListed(join(folder, child, 'cgroup.procs'))
  await Promise.all(children.map(child => removeWhenEmpty(join(folder, child))))
  await removeWhenEmpty(folder)
}

/** A group can be removed when its last process is reaped, which may be a moment after that process's death. */
async function removeWhenEmpty(folder: string): Promise<void> {
  for (let attempt = 0; attempt < 40; attempt++) {
    try {
      return await rmdir(folder)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'ENOENT') return
      if (code !== 'EBUSY') throw error
    }
    await delay(Math.min(5 * 2 ** attempt, 500))
  }
}

function killListed(procs: string): void {
  for (const pid of listed(procs)) {
    try {
      process.kill(Number(pid), 'SIGKILL')
    } catch {
      // It died first.
    }
  }
}

function listed(procs: string): string[] {
  return readText(procs)
    .split('\n')
    .filter(pid => pid !== '' && pid !== '0')
}

function readFolders(folder: string): string[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
      .filter(entry => entry.isDirectory())
      .map(entry => entry.name)
  } catch {
    return []
  }
}

function readText(file: string): string {
  try {
    return readFileSync(file, 'latin1')
  } catch {
    return ''
  }
}

function readNumber(file: string): number {
  return Number(readText(file).trim()) || 0
}

function readField(file: string, name: string): number {
  const line = readText(file)
    .split('\n')
    .find(candidate => candidate.startsWith(`${name} `))
  return Number(line?.slice(name.length + 1)) || 0
}
