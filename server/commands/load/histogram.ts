/** Counts times in buckets that grow with them, so that any number takes the same memory and a quantile is off by 3 % at most. */

export interface Histogram {
  add(ms: number): void
  /** Adds all of another's. */
  merge(other: Histogram): void
  readonly total: number
  /** Exact; 0 where there is none. */
  readonly max: number
  /** In ms, from above. @param share such as 0.99 */
  quantile(share: number): number
  /** How many are at least `from` and less than `to`, in ms, as far as buckets tell. */
  between(from: number, to: number): number
  /** For `merge`. */
  readonly counts: Uint32Array
}

/** Buckets of each doubling. */
const steps = 32
const stepBits = 5
/** 2^32 µs are more than an hour. */
const doublings = 28

export function makeHistogram(): Histogram {
  const counts = new Uint32Array(steps * doublings)
  let total = 0
  let max = 0
  return {
    counts,
    get total() {
      return total
    },
    get max() {
      return max
    },
    add(ms) {
      const index = indexOf(Math.round(ms * 1000))
      counts[index] = counts[index]! + 1
      total++
      max = Math.max(max, ms)
    },
    merge(other) {
      for (const [index, count] of other.counts.entries()) counts[index] = counts[index]! + count
      total += other.total
      max = Math.max(max, other.max)
    },
    quantile(share) {
      const rank = Math.max(1, Math.ceil(share * total))
      let seen = 0
      for (const [index, count] of counts.entries()) {
        seen += count
        if (seen >= rank) return Math.min(max, boundOf(index + 1) / 1000)
      }
      return 0
    },
    between(from, to) {
      let found = 0
      for (const [index, count] of counts.entries()) {
        const ms = boundOf(index) / 1000
        if (ms >= from && ms < to) found += count
      }
      return found
    },
  }
}

/** The first 32 µs have a bucket each, then each doubling has 32. */
function indexOf(us: number): number {
  if (us < steps) return us
  const shift = 31 - Math.clz32(us) - stepBits
  return Math.min(steps * doublings - 1, steps * (shift + 1) + ((us >>> shift) - steps))
}

/** The least time of a bucket, in µs. */
function boundOf(index: number): number {
  if (index < steps) return index
  const shift = Math.floor(index / steps) - 1
  return (steps + (index % steps)) * 2 ** shift
}
