/** Records that go in together by one route. Few enough that none holds up the others, and that they fit a message. */
import type { Bunch, Prepared, Route } from './types.ts'

const recordsMax = 1000
const charsMax = 256 * 1024
/** What a record weighs beside its text. */
const overheadChars = 50

export interface Routed {
  route: Route
  bunch: Bunch
}

export interface Sorted extends Routed {
  /** Where its records stood. */
  indexes: number[]
}

/** In characters, about: what batches are bounded by. */
export function weighBunch({ texts }: Bunch): number {
  let chars = 0
  for (const text of texts) chars += text.length + overheadChars
  return chars
}

/** Puts records of one route together, in their order. */
export function sortByRoute(chosen: readonly Route[], records: readonly Prepared[]): Sorted[] {
  const sorted: Sorted[] = []
  for (const route of ['a', 'b'] as const) {
    let open: { texts: string[]; keys: string[]; indexes: number[] } | undefined
    let chars = 0
    for (let index = 0; index < records.length; index++) {
      if (chosen[index] !== route) continue
      const { text, key } = records[index]!
      if (!open || open.texts.length >= recordsMax || chars >= charsMax) {
        open = { texts: [], keys: [], indexes: [] }
        chars = 0
        sorted.push({ route, bunch: open, indexes: open.indexes })
      }
      open.texts.push(text)
      open.keys.push(key)
      open.indexes.push(index)
      chars += text.length
    }
  }
  return sorted
}
