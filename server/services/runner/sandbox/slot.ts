import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { chmodSync, chownSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Group } from './cgroups.ts'
import { withoutInherited } from './descriptors.ts'
import { errors } from './errors.ts'
import { quote } from './script.ts'

// A slot is where boxes are made, one after another: a shell outside the boxes, its cgroup, and four named pipes. The
// shell stands in the cgroup for as long as the slot lasts, so that a box is born in it. To move a process into a cgroup
// instead takes some ten milliseconds, in which no process of the host can fork or exit.
// The shell holds none of our environment and none of our descriptors, and as root we give it another user, so that
// programs are nobody on the host too. When we die it is killed, and --die-with-parent takes its box along.

/** Named pipes, since Node can make no others, and a program that opens /dev/stdin would fail on a socket. */
export interface Pipes {
  orders: string
  reports: string
  stdout: string
  stderr: string
}

export interface SlotOptions {
  name: string
  folder: string
  shell: string
  /** Set when we are root: who the shell and the boxes shall be. */
  drop: { uid: number; gid: number } | null
  /** A process whose mount namespace holds what boxes shall see. */
  mountsOf: number | null
  group: Group | null
}

export interface Launch {
  bwrap: string
  argsFile: string
  seccompFile: string | null
  shell: string
}

export interface Slot {
  readonly pipes: Pipes
  readonly group: Group | null
  readonly alive: boolean
  readonly exited: Promise<void>
  /** What the shell said last; the reason, where it died. */
  complaint(): string
  /** Called when the shell could not do what it was told, as with a pipe that it may not open. */
  onRefusal: ((reason: string) => void) | null
  /** Makes a box, once the last one is reaped. */
  launch(launch: Launch): void
  /** Lets a program that is our own user undo nothing for the next. */
  tidy(): void
  /** Ends the shell and removes its group. */
  retire(): Promise<void>
}

export async function makeSlot(options: SlotOptions): Promise<Slot> {
  const { folder, name, drop, group } = options
  const pipes = await makePipes(join(folder, name), drop?.gid ?? null)
  const child = startShell(options)
  let alive = true
  let complaint = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    complaint = (complaint + text).slice(-2000)
    // Its own complaints begin with its name and a line; of a killed bwrap it says but a word.
    if (/^.*: (line )?\d+: /m.test(text)) slot.onRefusal?.(text.trim())
  })
  const exited = ended(child).then(reason => {
    alive = false
    complaint ||= reason
  })
  // Orders to a shell that just died are lost with it; its exit tells the rest.
  child.stdin?.on('error', () => {})
  const slot: Slot = {
    onRefusal: null,
    pipes,
    group,
    get alive() {
      return alive
    },
    exited,
    complaint: () => complaint.trim(),
    launch: launch => void child.stdin?.write(`${launchLine(launch, pipes)}\n`),
    tidy() {
      if (drop === null) protect(pipes, null)
    },
    async retire() {
      child.kill('SIGKILL')
      await exited
      await group?.remove()
    },
  }
  try {
    if (child.pid !== undefined) await group?.admit(child.pid)
  } catch (error) {
    await slot.retire()
    // A shell that could not become what it should be is gone before it can be moved.
    throw errors.setupFailed(complaint.trim() || (error as Error).message)
  }
  return slot
}

function startShell({ shell, drop, mountsOf }: SlotOptions): ChildProcess {
  const enter = mountsOf === null ? [] : ['nsenter', '--target', String(mountsOf), '--mount', '--']
  const [command = shell, ...args] = [
    ...enter,
    'setpriv',
    ...(drop ? dropTo(drop) : []),
    '--pdeathsig=KILL',
    '--',
    shell,
    '-s',
  ]
  const env = { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' }
  return withoutInherited(others =>
    spawn(command, args, { env, cwd: '/', stdio: ['pipe', 'ignore', 'pipe', ...others] }),
  )
}

function dropTo({ uid, gid }: { uid: number; gid: number }): string[] {
  return [`--reuid=${uid}`, `--regid=${gid}`, '--clear-groups', '--inh-caps=-all', '--bounding-set=-all']
}

async function ended(child: ChildProcess): Promise<string> {
  return new Promise(resolve => {
    child.once('error', error => resolve(error.message))
    child.once('close', (code, signal) => resolve(`its shell ended with ${signal ?? code}`))
  })
}

/** With a group given, the pipes stay root's, and programs may use but not change them. */
async function makePipes(prefix: string, group: number | null): Promise<Pipes> {
  const path = (end: string) => `${prefix}.${end}`
  const pipes = { orders: path('orders'), reports: path('reports'), stdout: path('stdout'), stderr: path('stderr') }
  await promisify(execFile)('mkfifo', ['-m', '600', ...Object.values(pipes)])
  protect(pipes, group)
  return pipes
}

function protect(pipes: Pipes, group: number | null): void {
  for (const path of Object.values<string>({ ...pipes })) {
    if (group !== null) chownSync(path, 0, group)
    chmodSync(path, group === null ? 0o600 : 0o660)
  }
}

/**
 * The pipes are opened first, so that every later fault is heard on them; and each both ways for a moment, which never
 * blocks: were our end closed meanwhile, the shell would wait for it for ever.
 */
function launchLine({ bwrap, argsFile, seccompFile, shell }: Launch, pipes: Pipes): string {
  const { orders, reports, stdout, stderr } = pipes
  const files = [
    ...[`7<>${quote(orders)} <${quote(orders)}`, `7<>${quote(reports)} 3>${quote(reports)} 4>&3`],
    ...[`7<>${quote(stdout)} >${quote(stdout)}`, `7<>${quote(stderr)} 2>${quote(stderr)} 7>&-`],
    ...[`9<${quote(argsFile)}`, ...(seccompFile ? [`8<${quote(seccompFile)}`] : [])],
  ]
  return `${quote(bwrap)} --args 9 ${quote(shell)} -s ${files.join(' ')}`
}
