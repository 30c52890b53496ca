import type { Limits } from './sandbox/index.ts'

export const runStatuses = [
  'queued',
  'running',
  'succeeded',
  'failed',
  'timed_out',
  'out_of_memory',
  'output_limit',
  'cancelled',
  'error',
] as const

export type RunStatus = (typeof runStatuses)[number]

/** The limits a caller may set; the others follow from the settings. */
export type RunLimits = Pick<Limits, 'cpuMs' | 'wallMs' | 'memoryBytes' | 'processes' | 'outputBytes'>

export interface RunFile {
  name: string
  content: string
}

/** A run as it is asked for, checked. */
export interface RunRequest {
  language: string
  /** The first one is run. */
  files: RunFile[]
  stdin: string
  args: string[]
  limits: RunLimits
}

/** How a run ended. */
export interface RunOutcome {
  status: RunStatus
  languageVersion: string | null
  stdout: Buffer
  stderr: Buffer
  stdoutTruncated: boolean
  stderrTruncated: boolean
  exitCode: number | null
  signal: string | null
  cpuMs: number | null
  wallMs: number | null
  memoryBytes: number | null
  error: string | null
  compile: unknown
}

export interface RunEventInput {
  type: 'status' | 'output'
  data: Record<string, unknown> | null
  stream: 'stdout' | 'stderr' | null
  chunk: Buffer | null
}
