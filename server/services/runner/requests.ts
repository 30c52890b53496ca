/** From what a caller sent to what will be run: every check that needs no database. */
import { errors } from './errors.ts'
import { checkFiles } from './sandbox/check.ts'
import { InvalidExecution, type Language } from './sandbox/index.ts'
import type { RunnerSettings } from './settings.ts'
import type { RunFile, RunLimits, RunRequest } from './types.ts'

/** A run as the API takes it. */
export interface RunInput {
  language: string
  source?: string
  files?: RunFile[]
  stdin?: string
  args?: string[]
  limits?: { cpu_ms?: number; wall_ms?: number; memory_bytes?: number; processes?: number; output_bytes?: number }
}

export type Languages = ReadonlyMap<string, Language>

/** By id and by every alias. */
export function indexLanguages(languages: readonly Language[]): Languages {
  return new Map(
    languages.flatMap(language => [language.id, ...language.aliases].map(name => [name, language] as const)),
  )
}

/** @throws unknown_language, source_or_files, empty_source, source_too_large, stdin_too_large, invalid_text, invalid_file, limit_too_high */
export function checkRun(input: RunInput, languages: Languages, settings: RunnerSettings): RunRequest {
  const language = languages.get(input.language.toLowerCase())
  if (!language)
    throw errors.unknownLanguage(input.language, [...new Set([...languages.values()].map(known => known.id))])
  const files = filesOf(input, language)
  const bytes = files.reduce((sum, file) => sum + Buffer.byteLength(file.content), 0)
  if (bytes > settings.RUN_SOURCE_BYTES) throw errors.sourceTooLarge(bytes, settings.RUN_SOURCE_BYTES)
  const stdin = input.stdin ?? ''
  const stdinBytes = Buffer.byteLength(stdin)
  if (stdinBytes > settings.RUN_STDIN_BYTES) throw errors.stdinTooLarge(stdinBytes, settings.RUN_STDIN_BYTES)
  for (const file of files) assertText(file.content, input.files ? `files.${file.name}` : 'source')
  assertText(stdin, 'stdin')
  const args = input.args ?? []
  for (const argument of args) assertText(argument, 'args')
  return { language: language.id, files, stdin, args, limits: limitsOf(input.limits ?? {}, settings) }
}

function filesOf(input: RunInput, language: Language): RunFile[] {
  if ((input.source === undefined) === (input.files === undefined)) throw errors.sourceOrFiles()
  if (input.source !== undefined) {
    if (input.source === '') throw errors.emptySource()
    return [{ name: language.sourceFile, content: input.source }]
  }
  const files = input.files!
  if (files.length === 0 || files[0]!.content === '') throw errors.emptySource()
  try {
    checkFiles(files.map(file => ({ name: file.name, content: Buffer.alloc(0) })))
  } catch (error) {
    if (error instanceof InvalidExecution) throw errors.invalidFile(error.message, error.details)
    throw error
  }
  return files
}

function assertText(text: string, field: string) {
  if (text.includes('\0') || !text.isWellFormed()) throw errors.invalidText(field)
}

function limitsOf(asked: NonNullable<RunInput['limits']>, settings: RunnerSettings): RunLimits {
  const pick = (name: keyof typeof asked, usual: number, max: number) => {
    const value = asked[name] ?? Math.min(usual, max)
    if (value > max) throw errors.limitTooHigh(name, value, max)
    return value
  }
  return {
    cpuMs: pick('cpu_ms', settings.RUN_CPU_MS, settings.RUN_CPU_MS_MAX),
    wallMs: pick('wall_ms', settings.RUN_WALL_MS, settings.RUN_WALL_MS_MAX),
    memoryBytes: pick('memory_bytes', settings.RUN_MEMORY_BYTES, settings.RUN_MEMORY_BYTES_MAX),
    processes: pick('processes', settings.RUN_PROCESSES, settings.RUN_PROCESSES_MAX),
    outputBytes: pick('output_bytes', settings.RUN_OUTPUT_BYTES, settings.RUN_OUTPUT_BYTES_MAX),
  }
}
