/**
 * Who goes next. What is urgent goes before the rest, what is light may pass what is too heavy for now; but whoever was
 * passed too often goes before all, and nobody passes it any more.
 */
export interface Waiting {
  /** In bytes. */
  weight: number
  urgent: boolean
}

export interface Turns<T extends Waiting> {
  add(item: T): void
  remove(item: T): boolean
  /** Takes out the next one that weighs at most so much; of those that are urgent, where only such may go. */
  next(room: number, only?: 'urgent'): T | undefined
  /** Takes out all. */
  drain(): T[]
  readonly length: number
}

export function makeTurns<T extends Waiting>({ passedMax }: { passedMax: number }): Turns<T> {
  /** In the order in which they came. */
  let queue: { item: T; passed: number }[] = []

  function pick(room: number, only?: 'urgent') {
    const overdue = queue.find(each => each.passed >= passedMax)
    const fits = (overdue ? [overdue] : queue).filter(each => each.item.weight <= room)
    return fits.find(each => each.item.urgent) ?? (only ? undefined : fits[0])
  }

  return {
    add(item) {
      queue.push({ item, passed: 0 })
    },
    remove(item) {
      const before = queue.length
      queue = queue.filter(each => each.item !== item)
      return queue.length < before
    },
    next(room, only) {
      const picked = pick(room, only)
      if (!picked) return undefined
      const at = queue.indexOf(picked)
      for (const earlier of queue.slice(0, at)) earlier.passed++
      queue.splice(at, 1)
      return picked.item
    },
    drain() {
      const items = queue.map(each => each.item)
      queue = []
      return items
    },
    get length() {
      return queue.length
    },
  }
}
