import type { Item } from './batch.ts'

export const tailEventsMax = 128
const tailCharsMax = 65_536

/** The newest events, so that whoever is a little behind costs no query. */
export function makeTail() {
  let items: Item[] = []
  let chars = 0
  let last = 0
  return {
    get items(): readonly Item[] {
      return items
    },
    add(more: readonly Item[]) {
      for (const item of more) {
        // After a gap the older ones no longer join on.
        if (item.event.seq !== last + 1) {
          items = []
          chars = 0
        }
        items.push(item)
        chars += item.json.length
        last = item.event.seq
      }
      let dropped = 0
      while (items.length - dropped > tailEventsMax || chars > tailCharsMax) {
        chars -= items[dropped++]!.json.length
      }
      if (dropped > 0) items = items.slice(dropped)
    },
    /** All events above a number, or undefined when the tail does not reach back to it. */
    after(seq: number): Item[] | undefined {
      const first = items[0]?.event.seq
      if (first === undefined || seq + 1 < first) return undefined
      return items.slice(seq + 1 - first)
    },
  }
}
