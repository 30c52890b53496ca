/** Chooses the route of each record: by the weights, exactly, or by a field's value where the stream says so. */
import { hash } from 'node:crypto'
import type { Prepared, Route, StreamRow } from './types.ts'

type Weighted = Pick<StreamRow, 'id' | 'weights' | 'stickyBy'>

export interface Router {
  routeOf(stream: Weighted, record: Pick<Prepared, 'sticky'>): Route
  /** Of records that come together: those of one route stand side by side, where nothing else is asked. */
  routesOf(stream: Weighted, records: readonly Pick<Prepared, 'sticky'>[]): Route[]
}

const whole = 100
const debtsMax = 10_000

export function makeRouter(): Router {
  /** What route A is owed of each stream, in hundredths of a record, from 0 to 99. */
  const debts = new Map<number, number>()

  /** How many of the next records are route A's. */
  function takeA({ id, weights }: Weighted, records: number): number {
    const owed = (debts.get(id) ?? 0) + records * weights.a
    if (!debts.has(id) && debts.size >= debtsMax) debts.clear()
    debts.set(id, owed % whole)
    return Math.floor(owed / whole)
  }

  return {
    routeOf(stream, record) {
      if (record.sticky !== undefined) return routeOfValue(stream, record.sticky)
      return takeA(stream, 1) === 1 ? 'a' : 'b'
    },
    routesOf(stream, records) {
      if (stream.stickyBy !== null) return records.map(record => routeOfValue(stream, record.sticky ?? ''))
      const ofA = takeA(stream, records.length)
      return records.map((_, index) => (index < ofA ? 'a' : 'b'))
    },
  }
}

/** The same in every process, and for as long as the weights stay. */
function routeOfValue({ weights }: Weighted, value: string): Route {
  return Number.parseInt(hash('md5', value, 'hex').slice(0, 8), 16) % whole < weights.a ? 'a' : 'b'
}
