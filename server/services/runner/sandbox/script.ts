import { foldersAbove } from './check.ts'
import type { Limits, SourceFile } from './types.ts'

// A box's shell reads its orders from a pipe. This is the text of those orders. The shell's own descriptors are:
// 0 the orders, 1 the program's stdout, 4 the reports, 5 the program's stderr, and 2 the reports too, because that is
// where the shell says by which signal a program ended.

const WORK = '/box/work'
const INLINE_BYTES_MAX = 64 * 1024

/** The first order to every box; it is answered before anybody needs the box. */
export const GREETING = `exec 5>&2 2>&4; cd ${WORK}; echo ready >&4\n`

export interface ShellTraits {
  /** ulimit's letter for processes: p in dash and busybox, u in bash. */
  processesLetter: 'p' | 'u'
}

/** A file the shell writes, named from the root of the box. */
export interface BoxFile {
  path: string
  content: Buffer
}

/** Orders that write files. Those in `raw` follow the orders as bare bytes, once the shell has answered `send`. */
export function filesScript(files: BoxFile[]): { orders: Buffer; raw: Buffer[] } {
  const folders = [...new Set(files.flatMap(({ path }) => foldersAbove(path.slice(1)).map(folder => `/${folder}`)))]
  const missing = folders.filter(folder => folder.startsWith(`${WORK}/`))
  const inline = files.filter(({ content }) => content.length <= INLINE_BYTES_MAX && !content.includes(0))
  const raw = files.filter(file => !inline.includes(file))
  const parts: Buffer[] = []
  // Short-lived helpers run only for nested names and for bytes that a shell cannot hold.
  if (missing.length > 0) parts.push(text(`mkdir -p -- ${missing.map(quote).join(' ')}\n`))
  for (const { path, content } of inline) {
    parts.push(text("printf %s '"), escapeQuotes(content), text(`' >${quote(path)} || echo unwritten >&4\n`))
  }
  if (raw.length > 0) {
    const copies = raw.map(({ path, content }) => `head -c ${content.length} >${quote(path)} || echo unwritten >&4`)
    parts.push(text(`{ echo send >&4; ${copies.join('; ')}; }\n`))
  }
  return { orders: Buffer.concat(parts), raw: raw.map(({ content }) => content) }
}

export interface StepScript {
  argv: string[]
  env: Record<string, string>
  stdinPath: string | null
  limits: Limits
  traits: ShellTraits
  /** Where nothing better limits them. */
  rlimits: { dataBytes: number | null; processes: number | null }
  reportTimes: boolean
  last: boolean
}

/** Orders that run one program under its limits and report how it ended: `exit 3`, and a word before it for a signal. */
export function stepScript(step: StepScript): Buffer {
  const exports = Object.entries(step.env).map(([name, value]) => `export ${name}=${quote(value)}`)
  const command = step.argv.map(quote).join(' ')
  const lines = [
    '(',
    // A hard limit of the host below one of these stays as it is: lower is not a fault.
    'exec 2>/dev/null',
    // The program, not the machinery around it, is what the kernel shall kill when memory runs out.
    'echo 1000 >/proc/self/oom_score_adj',
    ...ulimits(step),
    'unset OLDPWD',
    ...exports,
    `exec ${command} <${quote(step.stdinPath ?? '/dev/null')} 2>&5 4>&- 5>&-`,
    ')',
    `status=$?${step.reportTimes ? '; times >&4' : ''}`,
    // What the program left behind has no business in the next step. After the last, the box is killed from outside.
    `${step.last ? '' : 'kill -9 -1; '}echo "exit $status" >&4`,
    '',
  ]
  return text(lines.join('\n'))
}

function ulimits({ limits, traits, rlimits }: StepScript): string[] {
  const kib = (bytes: number) => Math.ceil(bytes / 1024)
  const cpuSeconds = Math.ceil(limits.cpuMs / 1000) + 1
  const commands = [
    'ulimit -c 0',
    // SIGXCPU first, and SIGKILL a second later for those who ignore it.
    `ulimit -H -t ${cpuSeconds + 1}`,
    `ulimit -S -t ${cpuSeconds}`,
    `ulimit -f ${Math.ceil(limits.fileBytes / 512)}`,
    `ulimit -n ${limits.openFiles}`,
    `ulimit -s ${kib(limits.stackBytes ?? 8 * 1024 * 1024)}`,
  ]
  if (rlimits.dataBytes !== null) commands.push(`ulimit -d ${kib(rlimits.dataBytes)}`)
  if (rlimits.processes !== null) commands.push(`ulimit -${traits.processesLetter} ${rlimits.processes}`)
  return commands
}

export function workFiles(files: SourceFile[]): BoxFile[] {
  return files.map(({ name, content }) => ({ path: `${WORK}/${name}`, content }))
}

export function quote(value: string): string {
  return `'${value.replaceAll("'", `'\\''`)}'`
}

/** The same on bytes, which need not be text. */
function escapeQuotes(content: Buffer): Buffer {
  if (!content.includes(0x27)) return content
  return Buffer.from(content.toString('latin1').replaceAll("'", `'\\''`), 'latin1')
}

function text(value: string): Buffer {
  return Buffer.from(value)
}
