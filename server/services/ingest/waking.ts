/** Wake-ups of a busy stream: the first goes out at once, those that follow within a moment go together at its end. */

const restMs = 25

/** @param wake is told each name once a moment, at most */
export function makeWaking(wake: (names: readonly string[]) => void) {
  const late = new Set<string>()
  let timer: NodeJS.Timeout | undefined

  function rest() {
    timer = setTimeout(() => {
      timer = undefined
      if (late.size === 0) return
      tell()
      rest()
    }, restMs)
  }

  function tell() {
    const names = [...late]
    late.clear()
    wake(names)
  }

  return {
    /** Call it after the commit. */
    appended(name: string) {
      late.add(name)
      if (timer) return
      tell()
      rest()
    },
    /** What was not told yet is told now. */
    stop() {
      clearTimeout(timer)
      timer = undefined
      if (late.size > 0) tell()
    },
  }
}
