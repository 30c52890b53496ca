import type { StepOutcome } from './box.ts'
import type { Capture } from './output.ts'
import { signalName } from './signals.ts'
import type { Limits, StepResult, StepStatus } from './types.ts'

/** What one step came to, from what was measured and what was seen. */
export function judge(outcome: StepOutcome, limits: Limits, output: { stdout: Capture; stderr: Capture }): StepResult {
  const truncated = output.stdout.truncated || output.stderr.truncated
  const signal = endingSignal(outcome)
  return {
    status: statusOf(outcome, limits, { truncated, signal }),
    exitCode: signal === null && outcome.endReason === null ? outcome.code : null,
    signal,
    stdout: output.stdout.bytes(),
    stderr: output.stderr.bytes(),
    stdoutTruncated: output.stdout.truncated,
    stderrTruncated: output.stderr.truncated,
    cpuMs: Math.round(outcome.cpuMs * 1000) / 1000,
    wallMs: Math.round(outcome.wallMs * 1000) / 1000,
    memoryPeakBytes: outcome.memoryPeakBytes,
  }
}

function endingSignal({ code, bySignal, endReason }: StepOutcome): string | null {
  if (endReason || code === null) return 'SIGKILL'
  return bySignal && code > 128 ? signalName(code - 128) : null
}

function statusOf(
  { endReason, ranOutOfMemory, cpuMs, code }: StepOutcome,
  limits: Limits,
  { truncated, signal }: { truncated: boolean; signal: string | null },
): StepStatus {
  if (endReason === 'cancelled') return 'cancelled'
  if (endReason === 'memory' || ranOutOfMemory) return 'out_of_memory'
  // A program that ended by itself but took more than it may have is late all the same.
  if (endReason === 'wall' || endReason === 'cpu' || signal === 'SIGXCPU' || cpuMs > limits.cpuMs) return 'timed_out'
  if (endReason === 'flood' || truncated) return 'output_limit'
  return code === 0 && signal === null ? 'succeeded' : 'failed'
}
