/** What a load says when it is over. */
import { bar, pad, paint, print } from '../terminal.ts'
import type { Histogram } from './histogram.ts'
import { type Tally, timesOf } from './tally.ts'

const barWidth = 40
/** Bounds of the bars, in ms: 1, 2, 5, 10, … */
const bounds = [0, ...[0.1, 1, 10, 100, 1000, 10_000].flatMap(power => [power, 2 * power, 5 * power]), Infinity]

/** @param of what a time is the time of, such as "a request" */
export function printReport(given: { tally: Tally; title: string; of: string }) {
  const { tally, title, of } = given
  const rate = tally.taken / Math.max(0.001, tally.tookMs / 1000)
  print(paint('bold', `${title}: ${show(tally.taken)} taken in ${showTime(tally.tookMs)}, ${show(rate)} a second`))
  printAnswers(tally)
  if (tally.times.total > 0) printTimes(tally.times, of)
}

function printAnswers(tally: Tally) {
  const rows = tally.answers()
  const width = Math.max(6, ...rows.map(row => row.kind.length))
  print(`\n  ${pad('answer', width)} ${'records'.padStart(11)}`)
  for (const row of rows) {
    const kind = paint(row.taken > 0 ? 'green' : 'red', row.kind)
    print(`  ${pad(kind, width)} ${show(timesOf(row)).padStart(11)}${row.example === '' ? '' : `   ${row.example}`}`)
  }
}

function printTimes(times: Histogram, of: string) {
  const quantiles = [0.5, 0.9, 0.99].map(share => `p${share * 100} ${showTime(times.quantile(share))}`)
  print(`\n  Time of ${of}: ${quantiles.join('   ')}   max ${showTime(times.max)}`)
  const rows = bounds
    .slice(0, -1)
    .map((from, index) => ({ from, to: bounds[index + 1]!, count: times.between(from, bounds[index + 1]!) }))
  const first = rows.findIndex(row => row.count > 0)
  const last = rows.findLastIndex(row => row.count > 0)
  const most = Math.max(...rows.map(row => row.count))
  for (const { from, to, count } of rows.slice(first, last + 1)) {
    const range = to === Infinity ? `from ${showTime(from)}` : `to ${showTime(to)}`
    print(`  ${range.padStart(12)}  ${pad(bar(count / most, barWidth), barWidth)} ${show(count).padStart(11)}`)
  }
}

export function show(count: number): string {
  return Math.round(count).toLocaleString('en')
}

/** In the unit that suits it, with three digits. */
export function showTime(ms: number): string {
  if (ms >= 1000) return `${Number((ms / 1000).toPrecision(3))} s`
  return `${Number(ms.toPrecision(3))} ms`
}
