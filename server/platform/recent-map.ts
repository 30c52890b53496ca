/**
 * Remembers at least the last `limit` / 2 entries that were set or asked for, and never more than `limit`.
 *
 * Two generations: what is asked for moves to the young one; when that is full it becomes the old one, and what
 * nobody asked for since is gone.
 */
export interface RecentMap<V> {
  get(key: string): V | undefined
  set(key: string, value: V): void
  delete(key: string): void
  clear(): void
  values(): Iterable<V>
  readonly size: number
}

export function makeRecentMap<V>(limit: number): RecentMap<V> {
  let young = new Map<string, V>()
  let old = new Map<string, V>()

  function put(key: string, value: V) {
    if (young.size >= limit / 2) {
      old = young
      young = new Map()
    }
    young.set(key, value)
  }

  return {
    get(key) {
      const value = young.get(key)
      if (value !== undefined) return value
      const older = old.get(key)
      if (older === undefined) return undefined
      old.delete(key)
      put(key, older)
      return older
    },
    set(key, value) {
      old.delete(key)
      if (young.has(key)) young.set(key, value)
      else put(key, value)
    },
    delete(key) {
      young.delete(key)
      old.delete(key)
    },
    clear() {
      young = new Map()
      old = new Map()
    },
    *values() {
      yield* young.values()
      yield* old.values()
    },
    get size() {
      return young.size + old.size
    },
  }
}
