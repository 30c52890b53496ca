import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import type { Bind } from './types.ts'

// What a program sees as its root: the runtime's binds, a synthetic /etc, five devices, its own /proc, and one tmpfs.
// The tmpfs holds the work folder, /tmp and /dev/shm, so that one size bounds all three. All else is read-only.

const DEVICES = ['null', 'zero', 'full', 'random', 'urandom']
const MIB = 1024 * 1024

const BOX_UID = 1000

export interface RootOptions {
  readOnly: Bind[]
  etc: string
  diskBytes: number
  /** A container that masks its /proc does not let a new one be mounted. */
  proc: boolean
  /** What this bwrap knows, by its --help. */
  bwrapHelp: string
  seccomp: boolean
}

/** Arguments for `bwrap --args`, ended by NULs. */
export function bwrapArguments({ readOnly, etc, diskBytes, proc, bwrapHelp, seccomp }: RootOptions): Buffer {
  // biome-ignore format: options and their values on one line
  const args = [
    '--unshare-user', '--unshare-pid', '--unshare-net', '--unshare-ipc', '--unshare-uts', '--unshare-cgroup-try',
    ...(bwrapHelp.includes('--disable-userns') ? ['--disable-userns'] : []),
    '--uid', String(BOX_UID), '--gid', String(BOX_UID), '--hostname', 'box',
    '--die-with-parent', '--as-pid-1', '--new-session', '--clearenv', '--cap-drop', 'ALL',
    '--json-status-fd', '3',
    ...(seccomp ? ['--seccomp', '8'] : []),
    ...readOnly.flatMap(bindArguments),
    '--ro-bind', etc, '/etc',
    ...(proc ? ['--proc', '/proc'] : ['--dir', '/proc']),
    '--dir', '/dev',
    ...DEVICES.flatMap((name) => ['--dev-bind', `/dev/${name}`, `/dev/${name}`]),
    '--symlink', '/proc/self/fd', '/dev/fd',
    ...['stdin', 'stdout', 'stderr'].flatMap((name, fd) => ['--symlink', `/proc/self/fd/${fd}`, `/dev/${name}`]),
    ...(bwrapHelp.includes('--size') ? ['--size', String(diskBytes)] : []),
    '--tmpfs', '/box', '--dir', '/box/work', '--dir', '/box/tmp', '--dir', '/box/shm',
    '--symlink', '/box/tmp', '/tmp', '--symlink', '/box/shm', '/dev/shm',
    '--remount-ro', '/', '--chdir', '/box/work',
  ]
  return Buffer.from(args.map(argument => `${argument}\0`).join(''))
}

/** A symbolic link of the host's that keeps its place is made anew, which is cheaper than a mount and means the same. */
function bindArguments({ from, to }: Bind): string[] {
  if (from === to && lstatSync(from).isSymbolicLink()) return ['--symlink', readlinkSync(from), to]
  return ['--ro-bind', from, to]
}

/** Sizes are kept to whole MiB, so that nearly equal ones share boxes. */
export function roundDisk(bytes: number): number {
  return Math.ceil(bytes / MIB) * MIB
}

/** The few files of /etc that programs miss, none of them the host's but the linker's cache and its alternatives. */
export function makeEtc(folder: string): void {
  mkdirSync(join(folder, 'alternatives'), { recursive: true, mode: 0o755 })
  const files = {
    passwd: `root:x:0:0:root:/:/bin/false\nbox:x:${BOX_UID}:${BOX_UID}:box:/box/work:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n`,
    group: `root:x:0:\nbox:x:${BOX_UID}:\nnogroup:x:65534:\n`,
    hosts: '127.0.0.1 localhost box\n::1 localhost\n',
    'nsswitch.conf': 'passwd: files\ngroup: files\nhosts: files\n',
    hostname: 'box\n',
  }
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text, { mode: 0o644 })
  if (existsSync('/etc/ld.so.cache')) copyFileSync('/etc/ld.so.cache', join(folder, 'ld.so.cache'))
  for (const name of existsSync('/etc/alternatives') ? readdirSync('/etc/alternatives') : []) {
    const link = join('/etc/alternatives', name)
    if (name.endsWith('.gz') || !lstatSync(link).isSymbolicLink()) continue
    symlinkSync(readlinkSync(link), join(folder, 'alternatives', name))
  }
}
