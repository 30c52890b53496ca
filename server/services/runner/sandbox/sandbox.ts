import type { Box } from './box.ts'
import { checkExecution } from './check.ts'
import { errors } from './errors.ts'
import { type Host, openHost } from './host.ts'
import { systemBinds } from './languages.ts'
import { floodBytes, makeCapture } from './output.ts'
import { makePool, type Pool } from './pool.ts'
import { roundDisk } from './rootfs.ts'
import { type BoxFile, stepScript, workFiles } from './script.ts'
import type {
  Bind,
  Execution,
  ExecutionResult,
  Limits,
  Sandbox,
  SandboxFacts,
  SandboxOptions,
  Step,
  StepResult,
} from './types.ts'
import { judge } from './verdict.ts'

const MIB = 1024 * 1024

/** Enough for an exercise in any of the languages here. */
export const DEFAULT_LIMITS: Limits = {
  cpuMs: 5_000,
  wallMs: 10_000,
  memoryBytes: 256 * MIB,
  processes: 64,
  outputBytes: 256 * 1024,
  fileBytes: 16 * MIB,
  diskBytes: 64 * MIB,
  openFiles: 128,
}

interface Kind {
  readOnly: Bind[]
  diskBytes: number
}

export async function makeSandbox(options: SandboxOptions = {}): Promise<Sandbox> {
  const readOnly = options.runtimes?.[0]?.readOnly ?? systemBinds()
  const opened = await openHost(options, host => probe(host, { readOnly, diskBytes: MIB }))
  if ('reason' in opened) return unavailable(opened.reason)
  const host = opened
  const diskBytes = roundDisk(options.warmDiskBytes ?? DEFAULT_LIMITS.diskBytes)
  let warmLimits: Limits = { ...DEFAULT_LIMITS, diskBytes }
  const pool = makePool<Kind>({
    warm: options.warm ?? 2,
    boxesMax: options.boxesMax ?? 64,
    keyOf: kind => JSON.stringify(kind),
    make: kind => host.makeBox(kind, warmLimits),
  })
  for (const runtime of options.runtimes ?? []) pool.stock({ readOnly: runtime.readOnly, diskBytes })
  return {
    facts: host.facts,
    warmed: () => pool.warmed(),
    async execute(execution) {
      checkExecution(execution)
      // What was asked for last is likely to be asked for next: boxes are made with these limits already set.
      warmLimits = execution.compile?.limits ?? execution.run.limits
      return executeIn(pool, host, execution)
    },
    async close() {
      await pool.close()
      await host.close()
    },
  }
}

function unavailable(reason: string): Sandbox {
  const facts: SandboxFacts = {
    available: false,
    reason,
    memoryLimitBy: 'rlimit',
    processLimitBy: 'rlimit',
    cpuLimitBy: 'rlimit',
    seccomp: false,
    sentence: `Programs cannot be run here: ${reason}`,
  }
  return {
    facts,
    warmed: async () => {},
    execute: async () => {
      throw errors.unavailable(reason)
    },
    close: async () => {},
  }
}

/** One box from beginning to end, to learn whether this host lets us. */
async function probe(host: Host, kind: Kind): Promise<void> {
  const box = await host.makeBox(kind, null)
  box.kill()
  await box.gone
}

async function executeIn(pool: Pool<Kind>, host: Host, execution: Execution): Promise<ExecutionResult> {
  const { runtime, run, signal } = execution
  const box = await takeBox(pool, { readOnly: runtime.readOnly, diskBytes: roundDisk(run.limits.diskBytes) }, signal)
  if (!box) return neverStarted('cancelled')
  const cancel = () => box.end('cancelled')
  signal?.addEventListener('abort', cancel)
  try {
    return await runSteps(box, host, execution)
  } finally {
    signal?.removeEventListener('abort', cancel)
    box.kill()
    pool.finished()
  }
}

/** Null where the run was cancelled before a box was to be had. */
async function takeBox(pool: Pool<Kind>, kind: Kind, signal: AbortSignal | undefined): Promise<Box | null> {
  if (!signal) return pool.take(kind)
  if (signal.aborted) return null
  const taken = pool.take(kind)
  const { promise: aborted, resolve: abort } = Promise.withResolvers<null>()
  const onAbort = () => abort(null)
  signal.addEventListener('abort', onAbort)
  const box = await Promise.race([taken, aborted]).finally(() => signal.removeEventListener('abort', onAbort))
  if (box && !signal.aborted) return box
  // Whoever stops waiting still gets his box, and throws it away.
  taken.then(
    late => {
      late.kill()
      pool.finished()
    },
    () => {},
  )
  return null
}

async function runSteps(box: Box, host: Host, execution: Execution): Promise<ExecutionResult> {
  const { compile, run, signal } = execution
  await box.write(filesOf(execution))
  const compiled = compile && (await runStep(box, host, execution, compile))
  if (compiled && compiled.status !== 'succeeded') return { ...neverStarted(compiled.status), compile: compiled }
  if (signal?.aborted) return { ...neverStarted('cancelled'), ...(compiled && { compile: compiled }) }
  const result = await runStep(box, host, execution, run)
  return compiled ? { ...result, compile: compiled } : result
}

function neverStarted(status: StepResult['status']): ExecutionResult {
  const none = { exitCode: null, signal: null, stdout: Buffer.alloc(0), stderr: Buffer.alloc(0), memoryPeakBytes: null }
  return { status, ...none, stdoutTruncated: false, stderrTruncated: false, cpuMs: 0, wallMs: 0 }
}

const STDIN = { compile: '/box/stdin.compile', run: '/box/stdin.run' } as const

function filesOf({ files, compile, run }: Execution): BoxFile[] {
  const inputs: BoxFile[] = []
  if (compile?.stdin?.length) inputs.push({ path: STDIN.compile, content: compile.stdin })
  if (run.stdin?.length) inputs.push({ path: STDIN.run, content: run.stdin })
  return [...workFiles(files), ...inputs]
}

async function runStep(box: Box, host: Host, { runtime, run, onOutput }: Execution, step: Step): Promise<StepResult> {
  const { limits } = step
  const isRun = step === run
  const output = { stdout: makeCapture(limits.outputBytes), stderr: makeCapture(limits.outputBytes) }
  const script = stepScript({
    argv: isRun ? [...runtime.argv, ...step.argv] : step.argv,
    env: runtime.env,
    stdinPath: step.stdin?.length ? STDIN[isRun ? 'run' : 'compile'] : null,
    limits,
    last: isRun,
    ...host.scriptTraits(limits),
  })
  let failure: { error: unknown } | undefined
  const outcome = await box.runStep({
    script,
    limits,
    onChunk(stream, chunk) {
      const kept = output[stream].push(chunk)
      try {
        if (isRun && kept.length > 0 && !failure) onOutput?.(stream, kept)
      } catch (error) {
        // A listener's own fault ends its run, and nobody else's.
        failure = { error }
        box.end('cancelled')
      }
      if (output[stream].seenBytes > floodBytes(limits.outputBytes)) box.end('flood')
    },
  })
  if (failure) throw failure.error
  return judge(outcome, limits, output)
}
