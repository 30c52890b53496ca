/** What every benchmark shares: interleaved rounds, medians with their spread, one table. */
import { availableParallelism, cpus, totalmem } from 'node:os'

/** A figure of one system in one round. */
export type Sample = Record<string, number>

export interface Figure {
  median: number
  min: number
  max: number
}

/**
 * Runs every contestant once a round, in turn, so that what the machine does besides hits all alike.
 * Answers, by contestant and figure, the median of the rounds with its spread.
 */
export async function interleave(
  contestants: Record<string, () => Promise<Sample>>,
  rounds: number,
): Promise<Record<string, Record<string, Figure>>> {
  const samples = new Map<string, Sample[]>()
  for (let round = 1; round <= rounds; round++) {
    for (const [name, run] of Object.entries(contestants)) {
      progress(`round ${round}/${rounds}  ${name}`)
      const sample = await run()
      samples.set(name, [...(samples.get(name) ?? []), sample])
    }
  }
  progress('')
  return Object.fromEntries([...samples].map(([name, all]) => [name, summarise(all)]))
}

function summarise(samples: Sample[]): Record<string, Figure> {
  const keys = Object.keys(samples[0] ?? {})
  return Object.fromEntries(keys.map(key => [key, figureOf(samples.map(sample => sample[key]!))]))
}

export function figureOf(values: number[]): Figure {
  const sorted = values.toSorted((a, b) => a - b)
  return { median: percentile(sorted, 0.5), min: sorted[0]!, max: sorted.at(-1)! }
}

/** @param sorted ascending */
export function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!
}

export function latencyOf(values: number[]): { p50: number; p99: number } {
  const sorted = values.toSorted((a, b) => a - b)
  return { p50: percentile(sorted, 0.5), p99: percentile(sorted, 0.99) }
}

/** Runs `task` `count` times with `width` at once. Answers tasks a second. */
export async function rate(count: number, width: number, task: (index: number) => Promise<unknown>): Promise<number> {
  let next = 0
  const begun = performance.now()
  await Promise.all(
    Array.from({ length: width }, async () => {
      while (next < count) await task(next++)
    }),
  )
  return (count / (performance.now() - begun)) * 1000
}

export function describeMachine(): string {
  const gib = Math.round(totalmem() / 2 ** 30)
  return `${availableParallelism()} cores (${cpus()[0]?.model.trim() ?? 'unknown'}), ${gib} GiB, Node ${process.versions.node}`
}

export interface Line {
  what: string
  /** Ours and theirs, in the same unit. */
  ours: Figure
  theirs: Figure
  theirName: string
  unit: string
  /** Ours over theirs: for a rate at least, for a time at most. A figure may stand there without an aim. */
  aim?: { atLeast: number } | { atMost: number }
}

/** Prints one Markdown table, and whether each aim was met. */
export function printLines(title: string, lines: Line[]) {
  printHead(title)
  for (const line of lines) {
    const ratio = line.ours.median / line.theirs.median
    const { aim, met } = judge(line.aim, ratio)
    console.log(
      `| ${line.what} | ${show(line.ours, line.unit)} | ${line.theirName} ${show(line.theirs, line.unit)} | ${ratio.toFixed(2)} × | ${aim} | ${met} |`,
    )
  }
}

function judge(aim: Line['aim'], ratio: number): { aim: string; met: string } {
  if (aim === undefined) return { aim: '', met: '' }
  if ('atLeast' in aim) return { aim: `≥ ${aim.atLeast} ×`, met: ratio >= aim.atLeast ? 'yes' : 'no' }
  return { aim: `≤ ${aim.atMost} ×`, met: ratio <= aim.atMost ? 'yes' : 'no' }
}

/** A figure against a fixed bound: a number is the most it may be. */
export function printBound(what: string, figure: Figure, unit: string, bound: number | { atLeast: number }) {
  const isMost = typeof bound === 'number'
  const isMet = isMost ? figure.median <= bound : figure.median >= bound.atLeast
  const aim = isMost ? `≤ ${bound}` : `≥ ${bound.atLeast.toLocaleString('en')}`
  console.log(`| ${what} | ${show(figure, unit)} | | | ${aim} ${unit} | ${isMet ? 'yes' : 'no'} |`)
}

/** The head of a table, for lines that are printed one by one. */
export function printHead(title: string) {
  console.log(`\n${title} (${describeMachine()})\n`)
  console.log('| figure | Capstan | beside | ratio | aim | met |')
  console.log('| --- | --- | --- | --- | --- | --- |')
}

export function show(figure: Figure, unit: string): string {
  const digits = figure.median < 100 ? 2 : 0
  const text = (value: number) =>
    value.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: 0 })
  return `${text(figure.median)} ${unit} (${text(figure.min)}–${text(figure.max)})`
}

function progress(text: string) {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`)
}
