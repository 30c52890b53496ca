/** Draws counts as SVG: bars for totals, lines over time. */

export interface ChartGiven {
  title: string
  by: readonly string[]
  everyMs: number | undefined
  from: Date | undefined
  to: Date
  rows: readonly { at: Date | undefined; values: readonly string[]; count: number }[]
}

interface Series {
  name: string
  total: number
  counts: Map<number, number>
}

const width = 960
const left = 220
const right = 90
const top = 56
const barHeight = 22
const barsMax = 40
const plotHeight = 360
const linesMax = 12
const legendHeight = 20
const gridLines = 4
const nameCharsMax = 32
const rest = 'others'
/** Told apart by people who do not see all colours, too (after Okabe and Ito). */
const colours = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#7f7f7f', '#b5a900', '#000000']

export function drawChart(given: ChartGiven): string {
  const series = toSeries(given)
  return given.everyMs === undefined ? drawBars(given, series) : drawLines(given, series)
}

/** The largest first; those that do not fit are one. */
function toSeries({ rows, everyMs }: ChartGiven): Series[] {
  const byName = new Map<string, Series>()
  for (const { at, values, count } of rows) {
    const name = values.map(value => value || '(none)').join(' · ') || 'all'
    const series = byName.get(name) ?? { name, total: 0, counts: new Map() }
    byName.set(name, series)
    series.total += count
    const step = at?.getTime() ?? 0
    series.counts.set(step, (series.counts.get(step) ?? 0) + count)
  }
  const sorted = [...byName.values()].sort((a, b) => b.total - a.total || (a.name < b.name ? -1 : 1))
  const max = everyMs === undefined ? barsMax : linesMax
  return sorted.length <= max ? sorted : [...sorted.slice(0, max - 1), sumOf(sorted.slice(max - 1))]
}

function sumOf(series: readonly Series[]): Series {
  const sum: Series = { name: rest, total: 0, counts: new Map() }
  for (const { total, counts } of series) {
    sum.total += total
    for (const [step, count] of counts) sum.counts.set(step, (sum.counts.get(step) ?? 0) + count)
  }
  return sum
}

function drawBars(given: ChartGiven, series: readonly Series[]): string {
  const most = Math.max(1, ...series.map(each => each.total))
  const space = width - left - right
  const bars = series.map(({ name, total }, index) => {
    const y = top + index * barHeight
    const length = ((total / most) * space).toFixed(1)
    return (
      text({ x: left - 8, y: y + 15, anchor: 'end', words: shorten(name) }) +
      `<rect x="${left}" y="${y + 3}" width="${length}" height="${barHeight - 6}" rx="2" fill="${colours[0]}"/>` +
      text({ x: left + Number(length) + 6, y: y + 15, words: total.toLocaleString('en') })
    )
  })
  return frame({ given, height: top + Math.max(1, series.length) * barHeight + 24, body: bars.join('\n') || empty() })
}

function drawLines(given: ChartGiven, series: readonly Series[]): string {
  const everyMs = given.everyMs!
  const first = Math.floor((given.from?.getTime() ?? 0) / everyMs) * everyMs
  const steps = Math.max(1, Math.ceil((given.to.getTime() - first) / everyMs))
  const most = niceAbove(Math.max(1, ...series.flatMap(each => [...each.counts.values()])))
  const edge = 72
  const x = (step: number) => edge + (steps === 1 ? 0.5 : step / (steps - 1)) * (width - edge - 24)
  const y = (count: number) => top + plotHeight - (count / most) * plotHeight
  const grid = Array.from({ length: gridLines + 1 }, (_, index) => {
    const count = (most / gridLines) * index
    return (
      `<line x1="${edge}" x2="${width - 24}" y1="${y(count)}" y2="${y(count)}" stroke="#8884"/>` +
      text({ x: edge - 8, y: y(count) + 4, anchor: 'end', words: count.toLocaleString('en') })
    )
  })
  const ends = [first, first + (steps - 1) * everyMs].map((time, index) =>
    text({
      x: index === 0 ? edge : width - 24,
      y: top + plotHeight + 20,
      anchor: index === 0 ? 'start' : 'end',
      words: `${new Date(time).toISOString().slice(0, 16).replace('T', ' ')} UTC`,
    }),
  )
  const lines = series.map(({ name, counts, total }, index) => {
    const colour = colours[index % colours.length]
    const dash = index < colours.length ? '' : ' stroke-dasharray="5 3"'
    const points = Array.from({ length: steps }, (_, step) => {
      const count = counts.get(first + step * everyMs) ?? 0
      return `${x(step).toFixed(1)},${y(count).toFixed(1)}`
    })
    const row = top + plotHeight + 44 + index * legendHeight
    return (
      `<polyline points="${points.join(' ')}" fill="none" stroke="${colour}" stroke-width="2"${dash}/>` +
      `<line x1="${edge}" x2="${edge + 24}" y1="${row - 4}" y2="${row - 4}" stroke="${colour}" stroke-width="2"${dash}/>` +
      text({ x: edge + 32, y: row, words: `${shorten(name)} (${total.toLocaleString('en')})` })
    )
  })
  const height = top + plotHeight + 48 + Math.max(1, series.length) * legendHeight
  return frame({ given, height, body: [...grid, ...ends, ...lines].join('\n') + (series.length === 0 ? empty() : '') })
}

/** A round number that is not less. */
function niceAbove(count: number): number {
  const power = 10 ** Math.floor(Math.log10(count))
  const nice = [1, 2, 4, 5, 8, 10].find(each => each * power >= count)! * power
  return Math.max(gridLines, nice)
}

function empty(): string {
  return text({ x: width / 2, y: top + 16, anchor: 'middle', words: 'No records yet.' })
}

function frame({ given, height, body }: { given: ChartGiven; height: number; body: string }): string {
  const total = given.rows.reduce((sum, row) => sum + row.count, 0)
  const words = `${given.title}: ${total.toLocaleString('en')} records${given.by.length > 0 ? ` by ${given.by.join(', ')}` : ''}`
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeXml(words)}">
<style>text { font: 13px system-ui, sans-serif; fill: #333 } @media (prefers-color-scheme: dark) { text { fill: #ddd } }</style>
<text x="16" y="30" style="font-size: 18px; font-weight: 600">${escapeXml(words)}</text>
${body}
</svg>
`
}

function text(given: { x: number; y: number; anchor?: 'start' | 'middle' | 'end'; words: string }): string {
  return `<text x="${given.x.toFixed(1)}" y="${given.y.toFixed(1)}" text-anchor="${given.anchor ?? 'start'}">${escapeXml(given.words)}</text>`
}

function shorten(name: string): string {
  return name.length > nameCharsMax ? `${name.slice(0, nameCharsMax - 1)}…` : name
}

/** Values come from strangers; what XML cannot hold is let go. */
function escapeXml(words: string): string {
  return words
    .toWellFormed()
    .replace(/[^\t\n\r\x20-\uFFFD\u{10000}-\u{10FFFF}]/gu, '')
    .replace(/[&<>"']/g, sign => `&#${sign.charCodeAt(0)};`)
}
