export type Gate = <T>(work: () => Promise<T>) => Promise<T>

/** Lets at most `abreast` pieces of work run at once; the others wait their turn. */
export function makeGate(abreast: number): Gate {
  let running = 0
  const waiting: (() => void)[] = []
  return async work => {
    if (running < abreast) running++
    else await new Promise<void>(resolve => waiting.push(resolve))
    try {
      return await work()
    } finally {
      // Whoever waits takes over this place, so `running` stays as it is.
      const next = waiting.shift()
      if (next) next()
      else running--
    }
  }
}
