/** Draws a load over time as SVG: records a second above, times of answers below. */
import { show, showTime } from './report.ts'
import type { Slot, Tally } from './tally.ts'

interface Line {
  name: string
  colour: string
  /** Undefined where there is none. */
  values: readonly (number | undefined)[]
}

const width = 960
const edge = 84
const right = 24
const plotHeight = 220
const firstTop = 72
const secondTop = 372
const height = 640
const gridLines = 4
/** Told apart by people who do not see all colours, too (after Okabe and Ito). */
const colours = { taken: '#0072b2', notTaken: '#d55e00', median: '#009e73', slow: '#cc79a7' }

export function drawPlot(given: { tally: Tally; title: string; of: string }): string {
  const { tally, title, of } = given
  const { slotMs, slots } = tally.timeline()
  const perSecond = (count: number, index: number) => count / (lengthOf(index, { slotMs, slots, tally }) / 1000)
  const rates: Line[] = [
    { name: 'taken', colour: colours.taken, values: slots.map((slot, index) => perSecond(slot.taken, index)) },
    {
      name: 'not taken',
      colour: colours.notTaken,
      values: slots.map((slot, index) => perSecond(slot.notTaken, index)),
    },
  ]
  const times: Line[] = [
    { name: 'median', colour: colours.median, values: slots.map(slot => timeOf(slot, 0.5)) },
    { name: '99 of 100', colour: colours.slow, values: slots.map(slot => timeOf(slot, 0.99)) },
  ]
  const words = `${title}: ${show(tally.taken)} records in ${showTime(tally.tookMs)}`
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeXml(words)}">
<style>text { font: 13px system-ui, sans-serif; fill: #333 } @media (prefers-color-scheme: dark) { text { fill: #ddd } }</style>
<text x="16" y="30" style="font-size: 18px; font-weight: 600">${escapeXml(words)}</text>
${drawPanel({ top: firstTop, title: 'records a second', lines: rates, write: show })}
${drawPanel({ top: secondTop, title: `time of ${of}`, lines: times, write: showTime })}
${drawTimes(slots.length * slotMs)}
</svg>
`
}

function timeOf({ times }: Slot, share: number): number | undefined {
  return times.total === 0 ? undefined : times.quantile(share)
}

/** The last slot ends with the load. */
function lengthOf(index: number, given: { slotMs: number; slots: readonly Slot[]; tally: Tally }): number {
  const { slotMs, slots, tally } = given
  return index < slots.length - 1 ? slotMs : Math.max(1, Math.min(slotMs, tally.tookMs - index * slotMs))
}

function drawPanel(given: { top: number; title: string; lines: readonly Line[]; write: (value: number) => string }) {
  const { top, title, lines, write } = given
  const most = niceAbove(Math.max(...lines.flatMap(line => line.values.map(value => value ?? 0)), 0))
  const y = (value: number) => (top + plotHeight - (value / most) * plotHeight).toFixed(1)
  const grid = Array.from({ length: gridLines + 1 }, (_, index) => {
    const value = (most / gridLines) * index
    return (
      `<line x1="${edge}" x2="${width - right}" y1="${y(value)}" y2="${y(value)}" stroke="#8884"/>` +
      `<text x="${edge - 8}" y="${Number(y(value)) + 4}" text-anchor="end">${write(value)}</text>`
    )
  })
  const drawn = lines.map(({ name, colour, values }, index) => {
    const steps = Math.max(1, values.length - 1)
    const x = (at: number) => (edge + (at / steps) * (width - edge - right)).toFixed(1)
    const points = values.flatMap((value, at) => (value === undefined ? [] : [`${x(at)},${y(value)}`]))
    // A single point would be no line.
    if (points.length === 1) points.push(`${width - right},${points[0]!.split(',')[1]}`)
    return (
      `<polyline points="${points.join(' ')}" fill="none" stroke="${colour}" stroke-width="2"/>` +
      `<text x="${width - right - 90 * (lines.length - 1 - index)}" y="${top - 12}" text-anchor="end" style="fill: ${colour}">${name}</text>`
    )
  })
  return [`<text x="${edge}" y="${top - 12}">${escapeXml(title)}</text>`, ...grid, ...drawn].join('\n')
}

function drawTimes(allMs: number): string {
  const y = secondTop + plotHeight + 24
  return (
    `<text x="${edge}" y="${y}">0 s</text>` +
    `<text x="${width - right}" y="${y}" text-anchor="end">${showTime(allMs)}</text>`
  )
}

/** A round number that is not less. */
function niceAbove(value: number): number {
  if (value <= 0) return 1
  const power = 10 ** Math.floor(Math.log10(value))
  return [1, 2, 4, 5, 8, 10].find(each => each * power >= value)! * power
}

function escapeXml(words: string): string {
  return words.replace(/[&<>"']/g, sign => `&#${sign.charCodeAt(0)};`)
}
