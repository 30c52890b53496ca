import { availableParallelism } from 'node:os'
import type { Box } from './box.ts'
import { errors } from './errors.ts'

// Boxes made ahead of need, one shelf for each kind (what it binds, how big its disk is). A box leaves its shelf once
// and does not come back. The shelf is filled again when a box is taken while a core is idle, and otherwise when a run
// ends: whoever waits comes first, then what runs, then the shelf.

export interface PoolOptions<Kind> {
  warm: number
  boxesMax: number
  keyOf(kind: Kind): string
  make(kind: Kind): Promise<Box>
}

export interface Pool<Kind> {
  /** A warm box, or the next to be ready. */
  take(kind: Kind): Promise<Box>
  /** Called when a box taken from here is no longer used. */
  finished(): void
  /** Makes boxes of this kind ahead of need from now on. */
  stock(kind: Kind): void
  warmed(): Promise<void>
  close(): Promise<void>
}

interface Waiter {
  resolve(box: Box): void
  reject(error: unknown): void
}

interface Shelf<Kind> {
  kind: Kind
  warm: Box[]
  waiters: Waiter[]
  starting: number
}

export function makePool<Kind>({ warm, boxesMax, keyOf, make }: PoolOptions<Kind>): Pool<Kind> {
  /** Oldest use first. */
  const shelves = new Map<string, Shelf<Kind>>()
  const alive = new Set<Box>()
  const idleWaiters: (() => void)[] = []
  const cores = availableParallelism()
  const startingMax = 2 * cores
  let starting = 0
  let running = 0
  let closed = false

  function shelfOf(kind: Kind): Shelf<Kind> {
    const key = keyOf(kind)
    const shelf = shelves.get(key) ?? { kind, warm: [], waiters: [], starting: 0 }
    shelves.delete(key)
    shelves.set(key, shelf)
    return shelf
  }

  async function start(shelf: Shelf<Kind>): Promise<void> {
    starting += 1
    shelf.starting += 1
    try {
      const box = await make(shelf.kind)
      alive.add(box)
      box.gone.then(() => {
        alive.delete(box)
        shelf.warm = shelf.warm.filter(other => other !== box)
        fill()
      })
      if (closed) box.kill()
      else place(shelf, box)
    } catch (error) {
      // The next in line learns why; the others get their own try.
      shelf.waiters.shift()?.reject(error)
    } finally {
      starting -= 1
      shelf.starting -= 1
      fill()
    }
  }

  function place(shelf: Shelf<Kind>, box: Box): void {
    const waiter = shelf.waiters.shift()
    if (!waiter) {
      shelf.warm.push(box)
      return
    }
    running += 1
    waiter.resolve(box)
  }

  function fill(): void {
    for (const shelf of [...shelves.values()].reverse()) {
      while (wants(shelf) && starting < startingMax && alive.size + starting < boxesMax) void start(shelf)
    }
    if (starting === 0) for (const wake of idleWaiters.splice(0)) wake()
  }

  function wants(shelf: Shelf<Kind>): boolean {
    if (closed) return false
    if (shelf.waiters.length > shelf.starting) return true
    return running + starting < startingMax && shelf.warm.length + shelf.starting < warm
  }

  /** Kinds that nobody asked for lately give up their boxes to make room. */
  function trim(): void {
    const excess = () => [...shelves.values()].reduce((sum, shelf) => sum + shelf.warm.length, 0) > warm * 2
    for (const [key, shelf] of [...shelves].slice(0, -1)) {
      if (!excess() && shelves.size <= 8) return
      for (const box of shelf.warm.splice(0)) box.kill()
      if (shelf.waiters.length + shelf.starting === 0) shelves.delete(key)
    }
  }

  return {
    async take(kind) {
      if (closed) throw errors.closed()
      const shelf = shelfOf(kind)
      const box = shelf.warm.shift()
      if (box) {
        running += 1
        setImmediate(fill)
        return box
      }
      return new Promise((resolve, reject) => {
        shelf.waiters.push({ resolve, reject })
        if (alive.size + starting >= boxesMax) evictOne(shelf)
        fill()
      })
    },
    finished() {
      running -= 1
      trim()
      fill()
    },
    stock(kind) {
      shelfOf(kind)
      fill()
    },
    warmed() {
      fill()
      return starting === 0 ? Promise.resolve() : new Promise(resolve => idleWaiters.push(resolve))
    },
    async close() {
      closed = true
      for (const shelf of shelves.values()) for (const waiter of shelf.waiters.splice(0)) waiter.reject(errors.closed())
      if (starting > 0) await new Promise<void>(resolve => idleWaiters.push(resolve))
      const boxes = [...alive]
      for (const box of boxes) box.kill()
      await Promise.all(boxes.map(box => box.gone))
    },
  }

  /** All places are taken, but a warm box of another kind holds one for nobody. */
  function evictOne(shelf: Shelf<Kind>): void {
    const other = [...shelves.values()].find(candidate => candidate !== shelf && candidate.warm.length > 0)
    other?.warm.shift()?.kill()
  }
}
