import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { detectLanguages, type Language } from './languages.ts'
import { DEFAULT_LIMITS } from './sandbox.ts'
import type { Execution, ExecutionResult, Limits, Sandbox, SourceFile } from './types.ts'

// What the tests in this folder share.

export const MIB = 1024 * 1024

export interface Program {
  language: string
  source: string | Buffer
  args?: string[]
  stdin?: string | Buffer
  limits?: Partial<Limits>
  files?: SourceFile[]
  /** A shell command to run first, as a compile step. */
  compile?: string
  signal?: AbortSignal
  onOutput?: Execution['onOutput']
}

export type Runner = (program: Program) => Promise<ExecutionResult>

export async function makeRunner(sandbox: Sandbox, languages: Language[]): Promise<Runner> {
  return async ({ language, source, args = [], stdin, limits, files = [], compile, signal, onOutput }) => {
    const found = languages.find(({ id }) => id === language)
    if (!found) throw new Error(`no ${language} here`)
    const all = { ...DEFAULT_LIMITS, ...limits }
    return sandbox.execute({
      runtime: found.runtime,
      files: [{ name: found.sourceFile, content: Buffer.from(source) }, ...files],
      run: { argv: found.argv(args), limits: all, ...(stdin !== undefined && { stdin: Buffer.from(stdin) }) },
      ...(compile !== undefined && { compile: { argv: ['/bin/sh', '-c', compile], limits: all } }),
      ...(signal && { signal }),
      ...(onOutput && { onOutput }),
    })
  }
}

export async function findLanguages(): Promise<Language[]> {
  return detectLanguages()
}

/** Why a test that needs these cannot run, or false. */
export function missing(sandbox: Sandbox, languages: Language[], wanted: string[]): string | false {
  if (!sandbox.facts.available) return sandbox.facts.sentence
  const absent = wanted.filter(id => !languages.some(language => language.id === id))
  return absent.length > 0 && `not on this host: ${absent.join(', ')}`
}

/** Resolves when `holds` does; fails with what it last was about. */
export async function until(what: string, holds: () => boolean, withinMs = 5_000): Promise<void> {
  const deadline = performance.now() + withinMs
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`waited in vain until ${what}`)
    await delay(5)
  }
}

/** Pids of the host whose command line holds this text. */
export function processesWith(text: string): number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter(pid => pid > 0 && pid !== process.pid && commandLine(pid).includes(text))
}

export function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1').replaceAll('\0', ' ')
  } catch {
    return ''
  }
}

/** Pids of the host that this process or a child of its started, zombies not counted. */
export function descendantsOf(owner: number): number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter(pid => pid > 0 && commandLine(pid) !== '' && ancestors(pid).includes(owner))
}

/** Those of them that are boxes. */
export function boxesOf(owner: number): number[] {
  return descendantsOf(owner).filter(pid => commandLine(pid).includes('bwrap'))
}

function ancestors(pid: number): number[] {
  const found: number[] = []
  for (let parent = parentOf(pid); parent > 0; parent = parentOf(parent)) found.push(parent)
  return found
}

function parentOf(pid: number): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
  } catch {
    return 0
  }
}
