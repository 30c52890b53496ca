export interface Allowance {
  /** Takes one; false when there is none just now. */
  take(): boolean
}

/** So many a second, and after a pause so many at once. */
export function makeAllowance(given: { perSecond: number; burst: number; now?: () => number }): Allowance {
  const { perSecond, burst, now = () => performance.now() } = given
  let left = burst
  let countedAt = now()
  return {
    take() {
      const at = now()
      left = Math.min(burst, left + ((at - countedAt) / 1000) * perSecond)
      countedAt = at
      if (left < 1) return false
      left--
      return true
    },
  }
}
