/** What one step may use. Bytes and milliseconds throughout. */
export interface Limits {
  cpuMs: number
  wallMs: number
  memoryBytes: number
  /** Processes and threads together. */
  processes: number
  /** Each of stdout and stderr. */
  outputBytes: number
  /** The largest file the program may write. */
  fileBytes: number
  /** The size of the one tmpfs that holds the work folder, /tmp and /dev/shm; what lies there counts as memory too. */
  diskBytes: number
  openFiles: number
  /** 8 MiB where it is not given. */
  stackBytes?: number
}

/** A language's interpreter and what of the host it needs to see. Runtimes with the same binds share warm boxes. */
export interface Runtime {
  argv: string[]
  readOnly: Bind[]
  env: Record<string, string>
}

export interface Bind {
  from: string
  to: string
}

export interface Step {
  /** Appended to the runtime's argv: the source file's name, then the program's arguments. */
  argv: string[]
  stdin?: Buffer
  limits: Limits
}

/** A compile step names its whole command: the runtime's argv is not put before it. */
export interface Execution {
  runtime: Runtime
  files: SourceFile[]
  compile?: Step
  run: Step
  signal?: AbortSignal
  /** Called as output is written, only up to the limit, and for the run step alone. */
  onOutput?: (stream: Stream, chunk: Buffer) => void
}

export interface SourceFile {
  name: string
  content: Buffer
}

export type Stream = 'stdout' | 'stderr'

export type StepStatus = 'succeeded' | 'failed' | 'timed_out' | 'out_of_memory' | 'output_limit' | 'cancelled'

export interface StepResult {
  status: StepStatus
  /** Null where a signal ended the program or the sandbox did. */
  exitCode: number | null
  /** A name such as SIGSEGV. SIGINT and SIGPIPE come as exit codes 130 and 141, as in a shell. */
  signal: string | null
  stdout: Buffer
  stderr: Buffer
  stdoutTruncated: boolean
  stderrTruncated: boolean
  cpuMs: number
  wallMs: number
  /** Null where nothing measured it. */
  memoryPeakBytes: number | null
}

/** Where the compile step did not succeed, the run step never started: the status is the compile step's, the output empty. */
export interface ExecutionResult extends StepResult {
  compile?: StepResult
}

export type LimitedBy = 'cgroup2' | 'cgroup1' | 'rlimit'

export interface SandboxFacts {
  available: boolean
  reason: string | null
  memoryLimitBy: LimitedBy
  processLimitBy: LimitedBy
  cpuLimitBy: LimitedBy
  seccomp: boolean
  /** All of the above in one sentence, for a log line or a status page. */
  sentence: string
}

export interface SandboxOptions {
  /** Runtimes to hold warm boxes for from the start. */
  runtimes?: Runtime[]
  /** The disk size those first boxes get. */
  warmDiskBytes?: number
  /** Boxes made ahead of need. 0 makes every run wait for its box. */
  warm?: number
  /** Boxes there may be at once, warm ones included. Past it, execute() waits its turn. */
  boxesMax?: number
  /** Where the sandbox keeps its pipes; a folder of its own is made in it. */
  directory?: string
  /** 'none' uses rlimits and sampling although cgroups could be had. */
  cgroups?: 'auto' | 'none'
  /** The cgroup under which boxes get theirs, as a path below the hierarchy's root; the process's own by default. */
  cgroupParent?: string
  /** The host uid and gid that programs have when the runner is root. */
  hostUid?: number
  bwrap?: string
  clock?: () => number
}

export interface Sandbox {
  readonly facts: SandboxFacts
  /** Throws InvalidExecution for a request that cannot be run, SandboxError for a fault of ours; no program can cause the latter. */
  execute(execution: Execution): Promise<ExecutionResult>
  /** Resolves once boxes made ahead of need are ready. */
  warmed(): Promise<void>
  /** Kills what runs, and resolves when no process and no cgroup is left. */
  close(): Promise<void>
}
