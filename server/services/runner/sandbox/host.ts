import { execFile, spawn } from 'node:child_process'
import {
  accessSync,
  chmodSync,
  chownSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { arch, release, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Box, type BoxOptions } from './box.ts'
import { type Groups, openGroups } from './cgroups.ts'
import { withoutInherited } from './descriptors.ts'
import { errors } from './errors.ts'
import { isOrphan, makeOwnerName } from './owner.ts'
import { bwrapArguments, makeEtc } from './rootfs.ts'
import type { ShellTraits, StepScript } from './script.ts'
import { makeSeccompFilter } from './seccomp.ts'
import { makeSlot, type Slot } from './slot.ts'
import type { Bind, Limits, SandboxFacts, SandboxOptions } from './types.ts'

const run = promisify(execFile)
const SHELL = '/bin/sh'
const NOBODY = 65534
const MIB = 1024 * 1024
/** Node maps some 600 MiB before it runs a line and touches few of them; sampling bounds what is touched. */
const DATA_HEADROOM_BYTES = 768 * MIB

/** All that boxes on this machine have in common. */
export interface Host {
  readonly facts: SandboxFacts
  makeBox(kind: { readOnly: Bind[]; diskBytes: number }, limits: Limits | null): Promise<Box>
  scriptTraits(limits: Limits): Pick<StepScript, 'traits' | 'rlimits' | 'reportTimes'>
  close(): Promise<void>
}

/** One way to run boxes; the next is tried where one does not work. */
interface Mode {
  groups: boolean
  proc: boolean
  mountNamespace: boolean
}

interface Ground {
  options: SandboxOptions
  mode: Mode
  folder: string
  bwrap: string
  bwrapHelp: string
  drop: { uid: number; gid: number } | null
  groups: Groups | null
  groupsMissing: string
  traits: ShellTraits
  seccompFile: string | null
}

/** The first way in which `probe` succeeds, or why none did. */
export async function openHost(
  options: SandboxOptions,
  probe: (host: Host) => Promise<void>,
): Promise<Host | { reason: string }> {
  const bwrap = options.bwrap ?? findBwrap()
  if (!bwrap) return { reason: 'bubblewrap (bwrap) is not installed' }
  let reason = ''
  for (const mode of modes(options)) {
    // What was made is undone in the reverse order, when the host closes or turns out not to work.
    const undo: Undo[] = []
    try {
      const host = await makeHost(await prepare(options, mode, bwrap, undo), undo)
      await probe(host)
      return host
    } catch (error) {
      // The first way is the one that should have worked.
      reason ||= (error as Error).message
      await undoAll(undo)
    }
  }
  return { reason }
}

type Undo = () => unknown

async function undoAll(undo: Undo[]): Promise<void> {
  for (const step of undo.splice(0).reverse()) await step()
}

function modes({ cgroups }: SandboxOptions): Mode[] {
  const all = [true, false].flatMap(proc =>
    [true, false].flatMap(mountNamespace => [true, false].map(groups => ({ groups, proc, mountNamespace }))),
  )
  return all.filter(mode => (cgroups !== 'none' || !mode.groups) && (isRoot() || !mode.mountNamespace))
}

async function prepare(options: SandboxOptions, mode: Mode, bwrap: string, undo: Undo[]): Promise<Ground> {
  const drop = isRoot() ? { uid: options.hostUid ?? NOBODY, gid: options.hostUid ?? NOBODY } : null
  const folder = makeFolder(options.directory ?? tmpdir(), drop?.gid ?? null)
  undo.push(() => rmSync(folder, { recursive: true, force: true }))
  const opened = mode.groups ? openGroups({ parent: options.cgroupParent }) : { reason: 'cgroups are switched off' }
  const groups = 'reason' in opened ? null : opened
  undo.push(() => groups?.close())
  const filter = makeSeccompFilter({ arch: arch(), denyUncountedMemory: groups === null })
  const seccompFile = filter ? join(folder, 'seccomp') : null
  if (filter && seccompFile) writeFileSync(seccompFile, filter, { mode: 0o644 })
  makeEtc(join(folder, 'etc'))
  const bwrapHelp = (await run(bwrap, ['--help'])).stdout
  const groupsMissing = 'reason' in opened ? opened.reason : ''
  return {
    options,
    mode,
    folder,
    bwrap,
    bwrapHelp,
    drop,
    groups,
    groupsMissing,
    traits: await shellTraits(),
    seccompFile,
  }
}

async function makeHost(ground: Ground, undo: Undo[]): Promise<Host> {
  const { options, folder, drop, groups, mode } = ground
  const mounts = mode.mountNamespace ? await startMountHolder() : null
  undo.push(() => mounts?.close())
  const layout = makeLayout(ground, mounts?.pid ?? null)
  const idle: Slot[] = []
  const busy = new Set<Promise<void>>()
  let count = 0
  undo.push(async () => {
    await Promise.all(busy)
    await Promise.all(idle.splice(0).map(slot => slot.retire()))
  })

  async function takeSlot(): Promise<Slot> {
    for (let slot = idle.pop(); slot; slot = idle.pop()) {
      if (slot.alive) return slot
      await slot.retire()
    }
    const name = `slot-${count++}`
    const group = groups?.make(name) ?? null
    const slot = await makeSlot({ name, folder, shell: SHELL, drop, mountsOf: mounts?.pid ?? null, group })
    if (slot.alive) return slot
    await slot.retire()
    throw errors.setupFailed(slot.complaint())
  }

  /** Frees a slot for the next box, while others run. */
  async function giveBack(box: Box, slot: Slot): Promise<void> {
    await box.released
    if (box.abandoned || !slot.alive || !(await becomesClean(slot))) return slot.retire()
    slot.tidy()
    idle.push(slot)
  }

  return {
    facts: describe(ground),
    async makeBox(kind, limits) {
      const argsFile = await layout.argsFile(kind)
      const slot = await takeSlot()
      const launch = { bwrap: ground.bwrap, argsFile, seccompFile: ground.seccompFile, shell: SHELL }
      const box = await openBox({ slot, launch, limits, clock: options.clock ?? (() => performance.now()) })
      const freed = giveBack(box, slot).finally(() => busy.delete(freed))
      busy.add(freed)
      await box.ready
      return box
    },
    scriptTraits: limits => scriptTraits(ground, limits),
    close: () => undoAll(undo),
  }
}

/** A slot whose pipes do not open is of no more use. */
async function openBox(options: BoxOptions): Promise<Box> {
  try {
    return new Box(options)
  } catch (error) {
    await options.slot.retire()
    throw errors.setupFailed((error as Error).message)
  }
}

/** The last process is dead but perhaps not reaped, and its memory not yet returned. */
async function becomesClean({ group }: Slot): Promise<boolean> {
  for (let attempt = 0; group && attempt < 6; attempt++) {
    if (group.isClean()) return true
    await delay(2 ** attempt)
  }
  return group === null
}

/** A process that does nothing but hold a mount namespace, into which we mount what only root could reach. */
async function startMountHolder(): Promise<{ pid: number; close(): Promise<void> }> {
  const args = ['--mount', '--propagation', 'private', '--', SHELL, '-c', 'echo up; read -r line']
  const child = withoutInherited(others =>
    spawn('unshare', args, { env: {}, stdio: ['pipe', 'pipe', 'pipe', ...others] }),
  )
  const said: Buffer[] = []
  child.stderr?.on('data', (chunk: Buffer) => said.push(chunk))
  const exited = new Promise<'exited'>(resolve => {
    child.once('error', () => resolve('exited'))
    child.once('close', () => resolve('exited'))
  })
  const up = new Promise<'up'>(resolve => child.stdout?.once('data', () => resolve('up')))
  if ((await Promise.race([up, exited])) === 'exited') throw errors.setupFailed(Buffer.concat(said).toString().trim())
  return {
    pid: child.pid ?? 0,
    async close() {
      child.kill('SIGKILL')
      await exited
    },
  }
}

interface Layout {
  argsFile(kind: { readOnly: Bind[]; diskBytes: number }): Promise<string>
}

/** Keeps one file of bwrap's arguments for each kind of box. Given on the command line, they would be seen in a box. */
function makeLayout(ground: Ground, mountsOf: number | null): Layout {
  const { folder, bwrapHelp, mode } = ground
  const files = new Map<string, Promise<string>>()
  let count = 0

  async function write(kind: { readOnly: Bind[]; diskBytes: number }): Promise<string> {
    const readOnly: Bind[] = []
    for (const bind of kind.readOnly) readOnly.push({ to: bind.to, from: await reach(folder, mountsOf, bind.from) })
    const path = join(folder, `args-${count++}`)
    const seccomp = ground.seccompFile !== null
    const bytes = bwrapArguments({ ...kind, readOnly, etc: join(folder, 'etc'), proc: mode.proc, bwrapHelp, seccomp })
    writeFileSync(path, bytes, { mode: 0o644 })
    return path
  }

  return {
    argsFile(kind) {
      const key = JSON.stringify(kind)
      const file = files.get(key) ?? write(kind)
      files.set(key, file)
      file.catch(() => files.delete(key))
      return file
    },
  }
}

/** Where a slot's shell finds a source. What only root can reach is mounted where the shell can, in its own namespace. */
async function reach(folder: string, mountsOf: number | null, from: string): Promise<string> {
  if (!existsSync(from)) throw errors.setupFailed(`${from} does not exist`)
  if (mountsOf === null || readableByAll(from)) return from
  const place = join(mkdtempSync(join(folder, 'stage-')), 'source')
  chmodSync(dirname(place), 0o755)
  if (statSync(from).isDirectory()) mkdirSync(place)
  else writeFileSync(place, '')
  await run('nsenter', ['--target', String(mountsOf), '--mount', '--', 'mount', '--bind', realpathSync(from), place])
  return place
}

function readableByAll(path: string): boolean {
  const real = realpathSync(path)
  for (let folder = dirname(real); ; folder = dirname(folder)) {
    if ((statSync(folder).mode & 0o001) === 0) return false
    if (folder === '/') break
  }
  return (statSync(real).mode & (statSync(real).isDirectory() ? 0o001 : 0o004)) !== 0
}

function scriptTraits({ groups, traits }: Ground, limits: Limits): ReturnType<Host['scriptTraits']> {
  const dataBytes = groups ? null : limits.memoryBytes + DATA_HEADROOM_BYTES
  // The shell counts among a box's own. Older kernels count all of a user's processes on the host instead.
  const processes = countsProcessesByNamespace() ? limits.processes + 1 : null
  return { traits, rlimits: { dataBytes, processes }, reportTimes: !groups?.countsCpu }
}

function countsProcessesByNamespace(): boolean {
  const [major = 0, minor = 0] = release()
    .split('.')
    .map(part => Number.parseInt(part, 10))
  return major > 5 || (major === 5 && minor >= 14)
}

async function shellTraits(): Promise<ShellTraits> {
  const letter = await run(SHELL, ['-c', '(ulimit -u 1000) 2>/dev/null && echo u || echo p'])
  return { processesLetter: letter.stdout.trim() === 'u' ? 'u' : 'p' }
}

/** A folder of our own, and the end of those whose owners died without removing theirs. */
function makeFolder(parent: string, group: number | null): string {
  mkdirSync(parent, { recursive: true })
  for (const name of readdirSync(parent)) {
    if (isOrphan(name)) rmSync(join(parent, name), { recursive: true, force: true })
  }
  const folder = join(parent, makeOwnerName())
  mkdirSync(folder, { mode: 0o700 })
  if (group === null) return folder
  chownSync(folder, 0, group)
  chmodSync(folder, 0o710)
  if (!readableByAll(parent)) {
    rmSync(folder, { recursive: true, force: true })
    throw errors.setupFailed(`programs are another user of the host, who cannot reach ${parent}`)
  }
  return folder
}

function findBwrap(): string | null {
  const folders = ['/usr/bin', '/usr/local/bin', '/bin', ...(process.env.PATH ?? '').split(':')]
  return folders.map(folder => join(folder, 'bwrap')).find(isExecutable) ?? null
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

function isRoot(): boolean {
  return process.getuid?.() === 0
}

function describe({ groups, groupsMissing, seccompFile, mode, drop }: Ground): SandboxFacts {
  const memoryLimitBy = groups?.kind ?? 'rlimit'
  const processLimitBy = groups?.limitsProcesses ? groups.kind : 'rlimit'
  const cpuLimitBy = groups?.countsCpu ? groups.kind : 'rlimit'
  const limits = groups
    ? `memory by ${memoryLimitBy}, processes by ${processLimitBy}, CPU time by ${cpuLimitBy}`
    : `memory, processes and CPU time by rlimits and by looking every 20 ms, because ${groupsMissing}`
  const notes = [
    seccompFile ? 'system calls are filtered' : 'system calls are not filtered on this architecture',
    drop ? `programs are user ${drop.uid} of the host` : "programs are the server's user on the host",
    ...(mode.proc ? [] : ['there is no /proc in the boxes, because none could be mounted']),
  ]
  const sentence = `Programs run in bubblewrap with limits on ${limits}; ${notes.join('; ')}.`
  return {
    available: true,
    reason: null,
    memoryLimitBy,
    processLimitBy,
    cpuLimitBy,
    seccomp: seccompFile !== null,
    sentence,
  }
}
