/** Answers how many records there are: from rollups, and what is not merged into them yet. */
import type { Database } from '#platform/database/pool.ts'
import { errors } from './errors.ts'
import { inCountedOrder, mergerName, readDelta, routeSet } from './merging.ts'
import { type CountedRow, type Grain, grains, type Piece, readCounts } from './rollup-store.ts'
import type { StreamRow } from './types.ts'

export interface CountsQuery {
  by: readonly string[]
  /** Milliseconds of a step in time; undefined for the whole time in one. */
  everyMs: number | undefined
  from: Date | undefined
  to: Date | undefined
}

export interface Counts {
  /** Rounded down to the minute; undefined for the beginning. */
  from: Date | undefined
  /** Rounded up to the minute. */
  to: Date
  /** By time, then by values. */
  rows: { at: Date | undefined; values: string[]; count: number }[]
}

const minuteMs = 60_000
const dayMs = 86_400_000
/** Of the steps in time of one answer. */
const stepsMax = 2000
const rowsMax = 50_000
/** Of the rows that an answer sums up: reading so many takes about a second. */
const readMax = 1_000_000
/** Of what is not merged yet. */
const unmergedBytesMax = 32 * 1024 * 1024
/** The last instant of four digits. */
const latestMs = Date.UTC(9999, 11, 31, 23, 59)
/** Steps of time without a word of when. */
const defaultSteps = 60

export function makeCounts(deps: { db: Database; rollupDays: number; clock: () => number }) {
  return {
    /** @throws bad_counts_query */
    async count(stream: StreamRow, query: CountsQuery): Promise<Counts> {
      const set = nameOfSet(stream, query.by)
      const range = rangeOf(query, deps.clock())
      const rows = await readCounts(deps.db, {
        streamId: stream.id,
        dimensions: set,
        pieces: piecesOf({ ...range, everyMs: query.everyMs, finestFrom: deps.clock() - deps.rollupDays * dayMs }),
        everyMs: query.everyMs,
        reader: mergerName,
        limits: { rows: rowsMax + 1, read: readMax + 1, unmergedBytes: unmergedBytesMax },
      })
      assertBounded(rows)
      return {
        from: range.from,
        to: range.to,
        rows: sumUp({ stream, rows, by: query.by, set, everyMs: query.everyMs }),
      }
    },
  }
}

/** @throws bad_counts_query, counts_behind */
function assertBounded(rows: readonly CountedRow[]) {
  const read = rows.reduce((sum, row) => sum + (row.read ?? 0), 0)
  if (rows.length > rowsMax || read > readMax) {
    throw errors.badCountsQuery(
      `The answer has more than ${rowsMax} rows, or sums up more than ${readMax}; count by less, in longer steps, or over less time.`,
    )
  }
  if (rows.some(row => row.key === null && row.counts === null)) throw errors.countsBehind()
}

function nameOfSet(stream: StreamRow, by: readonly string[]): string {
  if (by.length === 1 && by[0] === routeSet) return routeSet
  const unknown = by.find(name => !stream.dimensions.includes(name))
  if (unknown === undefined && new Set(by).size === by.length) return inCountedOrder(by).join(',')
  const known = [...stream.dimensions, routeSet].map(name => `\`${name}\``).join(', ')
  throw errors.badCountsQuery(
    `\`by\` takes different ones of ${known}, joined by commas; \`route\` goes with no other.`,
  )
}

function rangeOf({ everyMs, from, to }: CountsQuery, nowMs: number) {
  if (
    everyMs !== undefined &&
    (everyMs < minuteMs || everyMs % minuteMs !== 0 || (everyMs > dayMs && everyMs % dayMs !== 0))
  ) {
    throw errors.badCountsQuery('`every` is a number of minutes, hours or days, such as `1m`, `15m`, `1h`, `1d`.')
  }
  const end = roundUp(keepWithin(to?.getTime() ?? nowMs + 1), minuteMs)
  const start = from?.getTime() ?? (everyMs === undefined ? undefined : end - defaultSteps * everyMs)
  const begin = start === undefined ? undefined : Math.floor(keepWithin(start) / minuteMs) * minuteMs
  if ((begin ?? 0) >= end) throw errors.badCountsQuery('`from` must lie before `to`.')
  if (everyMs !== undefined && (end - begin!) / everyMs > stepsMax) {
    throw errors.badCountsQuery(`From \`from\` to \`to\` are more than ${stepsMax} steps; take a longer \`every\`.`)
  }
  return { from: begin === undefined ? undefined : new Date(begin), to: new Date(end) }
}

/** Nothing was counted before 1970, and PostgreSQL writes other years in ways of its own. */
function keepWithin(ms: number): number {
  return Math.min(Math.max(ms, 0), latestMs)
}

/**
 * Splits a time into pieces that are answered from the largest buckets that fit: minutes at its ends, days in its
 * middle. With steps, no bucket is larger than what divides a step.
 */
export function piecesOf(given: {
  from: Date | undefined
  to: Date
  everyMs: number | undefined
  /** Before it there are days alone. */
  finestFrom: number
}): Piece[] {
  const { to, everyMs, finestFrom } = given
  const largest = grains.findLast(grain => everyMs === undefined || everyMs % (grain * 1000) === 0)!
  const from = given.from?.getTime() ?? 0
  const start = from < finestFrom ? Math.floor(from / dayMs) * dayMs : from
  const pieces: Piece[] = []
  const add = (grain: Grain, since: number, upto: number) => {
    if (upto > since) pieces.push({ grain, from: new Date(since), to: new Date(upto) })
  }
  const split = (level: number, since: number, upto: number) => {
    const grain = grains[level]!
    const above = grains[level + 1]
    if (above === undefined || above > largest) return add(grain, since, upto)
    const first = roundUp(since, above * 1000)
    const last = Math.floor(upto / (above * 1000)) * above * 1000
    if (first >= last) return add(grain, since, upto)
    add(grain, since, first)
    split(level + 1, first, last)
    add(grain, last, upto)
  }
  split(0, start, to.getTime())
  return pieces
}

function roundUp(value: number, step: number): number {
  return Math.ceil(value / step) * step
}

function sumUp(given: {
  stream: StreamRow
  rows: readonly CountedRow[]
  by: readonly string[]
  set: string
  everyMs: number | undefined
}): Counts['rows'] {
  const { rows, by, set, everyMs } = given
  const inSet = set === '' ? [] : set.split(',')
  // Values are answered in the order in which they were asked for.
  const places = by.map(name => inSet.indexOf(name))
  const sums = new Map<string, Counts['rows'][number]>()
  const add = (at: Date | null, values: readonly string[], count: number) => {
    const step = everyMs === undefined || at === null ? undefined : Math.floor(at.getTime() / everyMs) * everyMs
    const shown = places.map(place => values[place]!)
    const name = `${step} ${JSON.stringify(shown)}`
    const sum = sums.get(name)
    if (sum) sum.count += count
    else sums.set(name, { at: step === undefined ? undefined : new Date(step), values: shown, count })
  }
  for (const row of rows) {
    if (row.key !== null) add(row.bucket, JSON.parse(row.key), row.count!)
    else for (const { values, count } of unmerged(row, set, inSet)) add(row.bucket, values, count)
  }
  return [...sums.values()].sort(
    (a, b) => (a.at?.getTime() ?? 0) - (b.at?.getTime() ?? 0) || compareTexts(a.values, b.values),
  )
}

function* unmerged(row: CountedRow, set: string, inSet: readonly string[]) {
  const { dimensions, routes } = readDelta({ dimensions: row.dimensions!, counts: row.counts! })
  const names = dimensions.split(',')
  const places = inSet.map(name => names.indexOf(name))
  for (const { route, pairs } of routes) {
    for (const [values, count] of pairs) {
      if (set === routeSet) yield { values: [route], count }
      else if (!places.includes(-1)) yield { values: places.map(place => values[place]!), count }
    }
  }
}

function compareTexts(a: readonly string[], b: readonly string[]): number {
  const [left, right] = [JSON.stringify(a), JSON.stringify(b)]
  return left < right ? -1 : left > right ? 1 : 0
}
