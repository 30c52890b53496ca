import { errors } from './errors.ts'
import type { Execution, Limits, SourceFile, Step } from './types.ts'

// What can be said of a request before anything starts.

const FILES_MAX = 1000
const DEPTH_MAX = 16
const NAME_BYTES_MAX = 255
const PATH_BYTES_MAX = 1024
/** The kernel's own bound on one argument, less its ending NUL. */
const ARGUMENT_BYTES_MAX = 128 * 1024 - 1
const ARGUMENTS_BYTES_MAX = 512 * 1024
const MIB = 1024 * 1024

const LEAST: Required<Limits> = {
  cpuMs: 1,
  wallMs: 1,
  memoryBytes: 4 * MIB,
  processes: 1,
  outputBytes: 0,
  fileBytes: 0,
  diskBytes: MIB,
  openFiles: 8,
  stackBytes: 64 * 1024,
}

export function checkExecution({ runtime, files, compile, run }: Execution): void {
  checkFiles(files)
  for (const [name, value] of Object.entries(runtime.env)) {
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name) || value.includes('\0')) throw errors.environment(name)
  }
  for (const step of compile ? [compile, run] : [run]) checkStep(step)
  checkArguments([...runtime.argv, ...run.argv])
  const bytes = [...files.map(file => file.content), compile?.stdin, run.stdin].reduce(
    (sum, data) => sum + onDisk(data),
    0,
  )
  if (bytes > run.limits.diskBytes) throw errors.filesTooLarge(bytes, run.limits.diskBytes)
}

function checkStep({ argv, limits }: Step): void {
  checkArguments(argv)
  for (const [name, least] of Object.entries(LEAST)) {
    const value = limits[name as keyof Limits]
    if (value === undefined && name === 'stackBytes') continue
    if (!Number.isSafeInteger(value)) throw errors.limit(name, 'is not a whole number')
    if ((value as number) < least) throw errors.limit(name, `is below ${least}`)
  }
}

function checkArguments(argv: string[]): void {
  const sizes = argv.map(argument => Buffer.byteLength(argument))
  if (argv.some(argument => argument.includes('\0'))) throw errors.argument('holds a NUL')
  if (sizes.some(size => size > ARGUMENT_BYTES_MAX)) throw errors.argument(`is longer than ${ARGUMENT_BYTES_MAX} bytes`)
  if (sizes.reduce((sum, size) => sum + size + 9, 0) > ARGUMENTS_BYTES_MAX) throw errors.argument('is one too many')
}

/** Relative paths below the work folder, each once, none of them a folder of another. */
export function checkFiles(files: SourceFile[]): void {
  if (files.length > FILES_MAX) throw errors.fileName(files[FILES_MAX]?.name ?? '', `is one of more than ${FILES_MAX}`)
  const names = new Set<string>()
  for (const { name } of files) {
    checkName(name)
    if (names.has(name)) throw errors.fileName(name, 'comes twice')
    names.add(name)
  }
  for (const name of names) {
    for (const folder of foldersAbove(name)) {
      if (names.has(folder)) throw errors.fileName(folder, 'is a file and a folder')
    }
  }
}

function checkName(name: string): void {
  const fail = (why: string) => errors.fileName(name, why)
  if (typeof name !== 'string' || name === '') throw fail('is empty')
  if (name.includes('\0')) throw fail('holds a NUL')
  if (!name.isWellFormed()) throw fail('is not Unicode')
  if (name.startsWith('/')) throw fail('is absolute')
  if (Buffer.byteLength(name) > PATH_BYTES_MAX) throw fail(`is longer than ${PATH_BYTES_MAX} bytes`)
  const parts = name.split('/')
  if (parts.length > DEPTH_MAX) throw fail(`lies deeper than ${DEPTH_MAX} folders`)
  for (const part of parts) {
    if (part === '' || part === '.' || part === '..') throw fail('has an empty part or one of dots')
    if (Buffer.byteLength(part) > NAME_BYTES_MAX) throw fail(`has a part longer than ${NAME_BYTES_MAX} bytes`)
  }
}

export function foldersAbove(name: string): string[] {
  const parts = name.split('/')
  return parts.slice(1).map((_, index) => parts.slice(0, index + 1).join('/'))
}

/** A tmpfs keeps whole pages. */
function onDisk(data: Buffer | undefined): number {
  return data ? Math.ceil(data.length / 4096) * 4096 : 0
}
