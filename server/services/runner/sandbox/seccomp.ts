import assert from 'node:assert'
import { endianness } from 'node:os'

// A filter in classic BPF, as the kernel's seccomp takes it. It allows by default: the namespaces, the missing
// capabilities and no_new_privs already refuse what matters, and this takes away kernel surface that programs in a box
// have no use for. What it denies has been a door out of containers before.

const EPERM = 1
const ENOSYS = 38
const EAFNOSUPPORT = 97

const ALLOW = 0x7fff0000
const KILL_PROCESS = 0x80000000
const errno = (code: number) => 0x00050000 | code

const LOAD = 0x20
const JUMP_EQUAL = 0x15
const JUMP_AT_LEAST = 0x35
const JUMP_ANY_BIT = 0x45
const RETURN = 0x06

// Offsets into struct seccomp_data; arguments are 64 bits, and the kernel looks at the low half of those checked here.
const NUMBER = 0
const ARCH = 4
const argument = (index: number) => 16 + 8 * index

const NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x80

// Numbers from 424 on are the same on every architecture.
// biome-ignore format: a table reads better dense
const COMMON = {
  io_uring_setup: 425, io_uring_enter: 426, io_uring_register: 427, open_tree: 428, move_mount: 429, fsopen: 430,
  fsconfig: 431, fsmount: 432, fspick: 433, clone3: 435, pidfd_getfd: 438, process_madvise: 440, mount_setattr: 442,
  quotactl_fd: 443, memfd_secret: 447, process_mrelease: 448, set_mempolicy_home_node: 450, cachestat: 451,
  statmount: 457, listmount: 458, open_tree_attr: 467,
} as const

// biome-ignore format: a table reads better dense
const TABLES = {
  x64: {
    audit: 0xc000003e,
    numbers: {
      ...COMMON,
      ioctl: 16, shmget: 29, socket: 41, socketpair: 53, clone: 56, ptrace: 101, syslog: 103, uselib: 134,
      personality: 135, ustat: 136, sysfs: 139, vhangup: 153, modify_ldt: 154, pivot_root: 155, _sysctl: 156,
      adjtimex: 159, chroot: 161, acct: 163, settimeofday: 164, mount: 165, umount2: 166, swapon: 167, swapoff: 168,
      reboot: 169, sethostname: 170, setdomainname: 171, iopl: 172, ioperm: 173, create_module: 174, init_module: 175,
      delete_module: 176, get_kernel_syms: 177, query_module: 178, quotactl: 179, nfsservctl: 180,
      lookup_dcookie: 212, clock_settime: 227, mbind: 237, set_mempolicy: 238, kexec_load: 246, add_key: 248,
      request_key: 249, keyctl: 250, migrate_pages: 256, unshare: 272, move_pages: 279, perf_event_open: 298,
      fanotify_init: 300, fanotify_mark: 301, name_to_handle_at: 303, open_by_handle_at: 304, clock_adjtime: 305,
      setns: 308, process_vm_readv: 310, process_vm_writev: 311, kcmp: 312, finit_module: 313, memfd_create: 319,
      kexec_file_load: 320, bpf: 321, userfaultfd: 323,
    },
  },
  arm64: {
    audit: 0xc00000b7,
    numbers: {
      ...COMMON,
      lookup_dcookie: 18, ioctl: 29, umount2: 39, mount: 40, pivot_root: 41, nfsservctl: 42, chroot: 51, vhangup: 58,
      quotactl: 60, acct: 89, personality: 92, unshare: 97, kexec_load: 104, init_module: 105, delete_module: 106,
      clock_settime: 112, syslog: 116, ptrace: 117, reboot: 142, sethostname: 161, setdomainname: 162,
      settimeofday: 170, adjtimex: 171, shmget: 194, socket: 198, socketpair: 199, add_key: 217, request_key: 218,
      keyctl: 219, clone: 220, swapon: 224, swapoff: 225, mbind: 235, set_mempolicy: 237, migrate_pages: 238,
      move_pages: 239, perf_event_open: 241, fanotify_init: 262, fanotify_mark: 263, name_to_handle_at: 264,
      open_by_handle_at: 265, clock_adjtime: 266, setns: 268, process_vm_readv: 270, process_vm_writev: 271, kcmp: 272,
      finit_module: 273, memfd_create: 279, bpf: 280, userfaultfd: 282, kexec_file_load: 294,
    },
  },
} as const

// These pretend not to exist, so that libraries take their older way: clone3 hides its flags from a filter.
const ABSENT = new Set([
  'clone3',
  'io_uring_setup',
  'io_uring_enter',
  'io_uring_register',
  'memfd_create',
  'memfd_secret',
  'cachestat',
])
const CHECKED = new Set(['socket', 'socketpair', 'clone', 'personality', 'ioctl'])
const ONLY_WITHOUT_CGROUPS = new Set(['memfd_create', 'shmget'])

export interface SeccompOptions {
  arch: string
  /** Also deny memory that only a cgroup would count: memfd and System V segments. */
  denyUncountedMemory: boolean
}

/** The filter's bytes for `bwrap --seccomp`, or null where the architecture has no table here. */
export function makeSeccompFilter({ arch, denyUncountedMemory }: SeccompOptions): Buffer | null {
  const table = arch === 'x64' ? TABLES.x64 : arch === 'arm64' ? TABLES.arm64 : null
  if (!table || endianness() !== 'LE') return null
  const numbers: Record<string, number> = table.numbers
  const denied = Object.keys(numbers).filter(
    name => !CHECKED.has(name) && (denyUncountedMemory || !ONLY_WITHOUT_CGROUPS.has(name)),
  )
  return assemble([
    ...load(ARCH),
    ...unless(JUMP_EQUAL, table.audit, [[RETURN, 0, 0, KILL_PROCESS]]),
    ...load(NUMBER),
    // The x32 calls of x86_64 number from here; nothing on the other side reaches so high.
    ...when(JUMP_AT_LEAST, 0x40000000, [[RETURN, 0, 0, errno(ENOSYS)]]),
    ...denied.flatMap(name => whenCall(numbers, name, deny(ABSENT.has(name) ? ENOSYS : EPERM))),
    ...['socket', 'socketpair'].flatMap(name => whenCall(numbers, name, allowOnly(0, [1, 2, 10], EAFNOSUPPORT))),
    ...whenCall(numbers, 'personality', allowOnly(0, [0, 0xffffffff], EPERM)),
    ...whenCall(numbers, 'clone', [...load(argument(0)), ...when(JUMP_ANY_BIT, NEW_NAMESPACES, deny(EPERM)), ...allow]),
    // TIOCSTI and TIOCLINUX type into a terminal.
    ...whenCall(numbers, 'ioctl', [
      ...load(argument(1)),
      ...when(JUMP_EQUAL, 0x5412, deny(EPERM)),
      ...when(JUMP_EQUAL, 0x541c, deny(EPERM)),
      ...allow,
    ]),
    ...allow,
  ])
}

/** Code, jump if true, jump if false, constant. */
type Instruction = [code: number, ifTrue: number, ifFalse: number, constant: number]

const allow: Instruction[] = [[RETURN, 0, 0, ALLOW]]

function load(offset: number): Instruction[] {
  return [[LOAD, 0, 0, offset]]
}

function deny(code: number): Instruction[] {
  return [[RETURN, 0, 0, errno(code)]]
}

function when(jump: number, constant: number, body: Instruction[]): Instruction[] {
  return [[jump, 0, body.length, constant], ...body]
}

function unless(jump: number, constant: number, body: Instruction[]): Instruction[] {
  return [[jump, body.length, 0, constant], ...body]
}

function whenCall(numbers: Record<string, number>, name: string, body: Instruction[]): Instruction[] {
  const number = numbers[name]
  assert(number !== undefined)
  return when(JUMP_EQUAL, number, body)
}

function allowOnly(index: number, values: number[], code: number): Instruction[] {
  const allowed = values.flatMap(value => when(JUMP_EQUAL, value, allow))
  return [...load(argument(index)), ...allowed, ...deny(code)]
}

function assemble(instructions: Instruction[]): Buffer {
  const bytes = Buffer.alloc(instructions.length * 8)
  instructions.forEach(([code, ifTrue, ifFalse, constant], index) => {
    assert(ifTrue < 256 && ifFalse < 256)
    bytes.writeUInt16LE(code, index * 8)
    bytes.writeUInt8(ifTrue, index * 8 + 2)
    bytes.writeUInt8(ifFalse, index * 8 + 3)
    bytes.writeUInt32LE(constant >>> 0, index * 8 + 4)
  })
  return bytes
}
