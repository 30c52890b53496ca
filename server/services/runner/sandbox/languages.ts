import { execFile } from 'node:child_process'
import { existsSync, realpathSync } from 'node:fs'
import { promisify } from 'node:util'
import type { Bind, Runtime } from './types.ts'

const run = promisify(execFile)

/** What is known of a language before anybody looked whether this host has it. */
export interface LanguageSpec {
  id: string
  name: string
  aliases: string[]
  /** The name the program's source gets. */
  sourceFile: string
  /** For a language that compiles: the compile step's argv. None of today's does. */
  compile: string[] | null
  /** Finds the interpreter on this host, and says how a box runs it. */
  find(options: DetectOptions): Promise<Found | null>
}

/** A language this host can run. */
export interface Language extends Omit<LanguageSpec, 'find'> {
  version: string
  runtime: Runtime
  /** The run step's argv for a program with these arguments. */
  argv(args?: string[]): string[]
}

export interface DetectOptions {
  /** The Node binary programs get; our own by default. */
  node?: string
}

interface Found {
  version: string
  argv: string[]
}

const BOX_NODE = '/opt/node/bin/node'

export const LANGUAGES: LanguageSpec[] = [
  {
    id: 'python',
    name: 'Python',
    aliases: ['py', 'python3'],
    sourceFile: 'main.py',
    compile: null,
    find: () => findAt(['/usr/bin/python3', '/usr/local/bin/python3'], []),
  },
  {
    id: 'javascript',
    name: 'JavaScript',
    aliases: ['js', 'node', 'nodejs', 'node-javascript'],
    // Without a package.json beside it Node takes a .js file for a module where it has import or export, and else for
    // CommonJS: both require and import work.
    sourceFile: 'main.js',
    compile: null,
    find: findNode,
  },
  {
    id: 'typescript',
    name: 'TypeScript',
    aliases: ['ts', 'node-typescript'],
    sourceFile: 'main.ts',
    compile: null,
    find: findNodeWithTypes,
  },
  {
    id: 'bash',
    name: 'Bash',
    aliases: ['sh', 'shell'],
    sourceFile: 'main.sh',
    compile: null,
    find: () => findAt(['/usr/bin/bash', '/bin/bash'], []),
  },
]

/** The languages of the catalogue that this host can run, all with the same binds, so that they share warm boxes. */
export async function detectLanguages(options: DetectOptions = {}): Promise<Language[]> {
  const found = await Promise.all(
    LANGUAGES.map(async spec => ({ spec, found: await spec.find(options).catch(() => null) })),
  )
  const readOnly = [...systemBinds(), ...nodeBinds(options)]
  return found.flatMap(({ spec: { find: _, ...spec }, found }) => {
    if (!found) return []
    const runtime: Runtime = { argv: found.argv, readOnly, env: environment() }
    return [{ ...spec, version: found.version, runtime, argv: (args: string[] = []) => [spec.sourceFile, ...args] }]
  })
}

/** /usr, and the root's links into it, or the folders that an older host has in their place. */
export function systemBinds(): Bind[] {
  return ['/usr', '/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32']
    .filter(existsSync)
    .map(path => ({ from: path, to: path }))
}

function environment(): Record<string, string> {
  return {
    PATH: '/usr/local/bin:/usr/bin:/bin:/opt/node/bin',
    HOME: '/box/work',
    TMPDIR: '/tmp',
    LANG: 'C.UTF-8',
    PYTHONDONTWRITEBYTECODE: '1',
    NODE_DISABLE_COLORS: '1',
  }
}

/** Real system paths only: what lies in somebody's home is not in a box. */
async function findAt(paths: string[], args: string[]): Promise<Found | null> {
  const path = paths.find(candidate => existsSync(candidate) && realpathSync(candidate).startsWith('/usr/'))
  if (!path) return null
  return { version: await versionOf(path), argv: [path, ...args] }
}

async function versionOf(path: string): Promise<string> {
  const { stdout, stderr } = await run(path, ['--version'], { env: {} })
  return /\d+(\.\d+)+/.exec(stdout || stderr)?.[0] ?? 'unknown'
}

function realNode({ node }: DetectOptions): string {
  return realpathSync(node ?? process.execPath)
}

function nodeBinds(options: DetectOptions): Bind[] {
  const real = realNode(options)
  return real.startsWith('/usr/') ? [] : [{ from: real, to: BOX_NODE }]
}

async function findNode(options: DetectOptions): Promise<Found | null> {
  const real = realNode(options)
  return { version: await versionOf(real), argv: [real.startsWith('/usr/') ? real : BOX_NODE] }
}

/** Enums and namespaces need more than stripping; where Node can transform them, it does. */
async function findNodeWithTypes(options: DetectOptions): Promise<Found | null> {
  const found = await findNode(options)
  if (!found || Number.parseInt(found.version, 10) < 24) return null
  const flags = ['--experimental-transform-types', '--disable-warning=ExperimentalWarning']
  const transforms = await run(realNode(options), [...flags, '-e', ''], { env: {} }).then(
    () => true,
    () => false,
  )
  return { ...found, argv: [...found.argv, ...(transforms ? flags : [])] }
}
