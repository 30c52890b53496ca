/**
 * Shares out the places for transforms that are being made. Nobody holds more places than are free, so that whoever comes
 * finds one: one holder alone gets half of them, two a third each. Of those that wait, each holder's next goes in turn,
 * so that a place is not behind all that others hold.
 */
import { errors } from './errors.ts'

export interface Shares {
  /** @throws image_makers_full where no place is free, too_many_transforms where the holder has as many as are free */
  take(holder: string): Share
  /** Places held by anybody. */
  readonly taken: number
}

/** A place. Whoever has it must end it. */
export interface Share {
  /** Does the work when it is its turn. */
  run<T>(work: () => Promise<T>): Promise<T>
  end(): void
}

/** @param abreast works done at once */
export function makeShares({ places, abreast }: { places: number; abreast: number }): Shares {
  const held = new Map<string, number>()
  /** What each holder waits to begin; in the order of their turns. */
  const lines = new Map<string, (() => void)[]>()
  let taken = 0
  let running = 0

  function lineUp(holder: string): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const line = lines.get(holder)
    if (line) line.push(resolve)
    else lines.set(holder, [resolve])
    return promise
  }

  /** Whoever is next takes over the place among those that run. */
  function beginNext() {
    const [next] = lines
    if (!next) return running--
    const [holder, line] = next
    const begin = line.shift()!
    lines.delete(holder)
    if (line.length > 0) lines.set(holder, line)
    begin()
  }

  function count(holder: string, by: 1 | -1) {
    taken += by
    const now = (held.get(holder) ?? 0) + by
    if (now > 0) held.set(holder, now)
    else held.delete(holder)
  }

  return {
    take(holder) {
      const free = places - taken
      if (free === 0) throw errors.makersFull()
      if ((held.get(holder) ?? 0) >= free) throw errors.tooManyTransforms()
      count(holder, 1)
      return {
        async run(work) {
          if (running < abreast) running++
          else await lineUp(holder)
          try {
            return await work()
          } finally {
            beginNext()
          }
        },
        end: () => count(holder, -1),
      }
    },
    get taken() {
      return taken
    },
  }
}
