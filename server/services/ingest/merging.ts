/**
 * Merges what records add to the counts into the rollups: for every set of the stream's dimensions, by minute, hour
 * and day. Many deltas become few rows, since what they count is the same few combinations of values.
 */
import type { Database, Tx } from '#platform/database/pool.ts'
import { lockCursor, moveCursor } from './cursor-store.ts'
import { type DeltaRow, deleteDeltas, listDeltas } from './delta-store.ts'
import type { ReaderKind } from './readers.ts'
import { otherValue } from './record.ts'
import { addCounts, grains, insertKeys, listKeys, type RollupRow } from './rollup-store.ts'

export const mergerName = 'merge'
/** A relay of counts to another store has its own cursor over the deltas. */
export const relayName = 'redis'
const deltasMax = 2000
/** Between two rounds: within it, batches of a busy stream add up. */
const restMs = 1000
/** Combinations of values of a stream that are counted as themselves. */
export const keysMax = 10_000
/** How long deltas are kept for a relay whose store may lose its last seconds, and for one that does not come back. */
const keepMs = 3_600_000
const keepAtMostMs = 24 * 3_600_000
/** The set of a route alone. */
export const routeSet = 'route'

export function makeMerger(deps: { db: Database; clock: () => number }): ReaderKind {
  const { db, clock } = deps
  const known = makeKnownKeys()
  return {
    name: mergerName,
    counted: 'last_delta',
    restMs,
    step: ({ streamId }) =>
      db.tx(async tx => {
        const position = await lockCursor(tx, { streamId, reader: mergerName })
        if (position === undefined) return false
        const deltas = await listDeltas(tx, { streamId, after: position, limit: deltasMax })
        const last = deltas.at(-1)?.seq
        if (last === undefined) return false
        const rows = await merge(deltas, pairs => known.admit(tx, { streamId, position, last, ...pairs }))
        addCounts(tx, { streamId, rows })
        moveCursor(tx, { streamId, reader: mergerName, position: last })
        const now = clock()
        deleteDeltas(tx, {
          streamId,
          upto: last,
          reader: relayName,
          before: new Date(now - keepMs),
          beforeAll: new Date(now - keepAtMostMs),
        })
        return true
      }),
  }
}

type Admit = (given: { dimensions: string; keys: ReadonlySet<string> }) => Promise<ReadonlySet<string>>

/** The rows that deltas come to, sorted. */
async function merge(deltas: readonly DeltaRow[], admit: Admit): Promise<RollupRow[]> {
  const rows = makeRows()
  const tally = tallyDeltas(deltas)
  for (const [dimensions, minutes] of tally.byDimensions) {
    const keys = new Set([...minutes.values()].flatMap(counts => [...counts.keys()]))
    const admitted = await admit({ dimensions, keys })
    for (const [minute, counts] of minutes) {
      for (const { name, sums } of sumSets(dimensions, counts, admitted)) rows.add(name, minute, sums)
    }
  }
  for (const { minute, route, count } of tally.byRoute) {
    rows.add(routeSet, minute, new Map([[JSON.stringify([route]), count]]))
  }
  return rows.all().sort(inOrderOfIndex)
}

/** Gathers counts in buckets of every grain. */
function makeRows() {
  const rows = new Map<string, RollupRow>()
  return {
    add(dimensions: string, minute: number, sums: ReadonlyMap<string, number>) {
      for (const grain of grains) {
        const bucket = new Date(Math.floor(minute / (grain * 1000)) * grain * 1000)
        const prefix = `${grain} ${dimensions} ${bucket.getTime()} `
        for (const [key, count] of sums) {
          const row = rows.get(prefix + key)
          if (row) row.count += count
          else rows.set(prefix + key, { grain, dimensions, bucket, key, count })
        }
      }
    },
    all: () => [...rows.values()],
  }
}

/** The counts of a minute, summed up for every set of the dimensions. */
function sumSets(dimensions: string, counts: ReadonlyMap<string, number>, admitted: ReadonlySet<string>) {
  const sets = setsOf(dimensions).map(set => ({ ...set, sums: new Map<string, number>() }))
  for (const [key, count] of counts) {
    const values = admitted.has(key) ? (JSON.parse(key) as string[]) : sets[0]!.places.map(() => otherValue)
    for (const { places, sums } of sets) {
      const part = JSON.stringify(places.map(place => values[place]))
      sums.set(part, (sums.get(part) ?? 0) + count)
    }
  }
  return sets
}

function inOrderOfIndex(a: RollupRow, b: RollupRow): number {
  return (
    a.grain - b.grain ||
    compare(a.dimensions, b.dimensions) ||
    a.bucket.getTime() - b.bucket.getTime() ||
    compare(a.key, b.key)
  )
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}

function tallyDeltas(deltas: readonly DeltaRow[]) {
  const byDimensions = new Map<string, Map<number, Map<string, number>>>()
  const byRoute: { minute: number; route: string; count: number }[] = []
  for (const delta of deltas) {
    const minute = delta.minute.getTime()
    const { dimensions, routes } = readDelta(delta)
    const minutes = byDimensions.get(dimensions) ?? new Map<number, Map<string, number>>()
    byDimensions.set(dimensions, minutes)
    const counts = minutes.get(minute) ?? new Map<string, number>()
    minutes.set(minute, counts)
    for (const { route, pairs } of routes) {
      for (const [values, count] of pairs) {
        const key = JSON.stringify(values)
        counts.set(key, (counts.get(key) ?? 0) + count)
      }
      byRoute.push({ minute, route, count: pairs.reduce((sum, [, count]) => sum + count, 0) })
    }
  }
  return { byDimensions, byRoute }
}

/** What a delta counts, by route, with the values in the order in which sets of dimensions are counted. */
export function readDelta(delta: { dimensions: string; counts: string }) {
  const names = delta.dimensions === '' ? [] : delta.dimensions.split(',')
  const sorted = inCountedOrder(names)
  const places = sorted.map(name => names.indexOf(name))
  const isSorted = places.every((place, index) => place === index)
  const byRoute = Object.entries(JSON.parse(delta.counts) as Record<string, [string[], number][]>)
  const routes = byRoute.map(([route, pairs]) => {
    if (!isSorted) for (const pair of pairs) pair[0] = places.map(place => pair[0][place]!)
    return { route, pairs }
  })
  return { dimensions: sorted.join(','), routes }
}

/** Whatever order they are declared or asked for in: a set of dimensions is counted in one place. */
export function inCountedOrder(dimensions: readonly string[]): string[] {
  return dimensions.toSorted(compare)
}

/** Every set of the dimensions, the whole one first, with the places of its values. */
export function setsOf(dimensions: string): { name: string; places: number[] }[] {
  const names = dimensions === '' ? [] : dimensions.split(',')
  return Array.from({ length: 2 ** names.length }, (_, index) => {
    const mask = 2 ** names.length - 1 - index
    const places = names.map((_, place) => place).filter(place => mask & (1 << place))
    return { name: places.map(place => names[place]).join(','), places }
  })
}

/** Which combinations of values are counted as themselves. Whoever holds the merger's cursor decides. */
function makeKnownKeys() {
  const streams = new Map<string, { position: number; keys: Set<string> }>()
  return {
    async admit(
      tx: Tx,
      given: { streamId: number; dimensions: string; position: number; last: number; keys: ReadonlySet<string> },
    ): Promise<ReadonlySet<string>> {
      const { streamId, dimensions, position, last } = given
      const name = `${streamId} ${dimensions}`
      const cached = streams.get(name)
      // Another process may have merged in between, and let others in.
      const keys =
        cached?.position === position
          ? cached.keys
          : new Set(await listKeys(tx, { streamId, dimensions, limit: keysMax }))
      const fresh = [...given.keys].filter(key => !keys.has(key)).slice(0, keysMax - keys.size)
      if (fresh.length > 0) insertKeys(tx, { streamId, dimensions, keys: fresh })
      const admitted = new Set([...keys, ...fresh])
      streams.delete(name)
      tx.afterCommit(() => streams.set(name, { position: last, keys: admitted }))
      return admitted
    },
  }
}
