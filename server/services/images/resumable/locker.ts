/**
 * Turns of requests at one upload: one at a time, in the order in which they came. Whoever waits makes the one before
 * ask its sender no further, so that a client which comes back need not wait for its own dead connection. Only requests
 * to this process wait for each other; of those to several, the rows decide.
 */
import { ERRORS, type Lock, type Locker } from '@tus/server'

interface Turn {
  /** Asks whoever has the turn to end soon. */
  release: () => void
  begun: PromiseWithResolvers<void>
}

/** @param given.waitMs how long a request waits for its turn */
export function makeLocker({ waitMs }: { waitMs: number }): Locker {
  const lines = new Map<string, Turn[]>()

  async function enter(id: string, turn: Turn) {
    const line = lines.get(id)
    if (!line) {
      lines.set(id, [turn])
      return
    }
    line.push(turn)
    line[0]!.release()
    const timer = setTimeout(() => turn.begun.reject(ERRORS.ERR_LOCK_TIMEOUT), waitMs)
    try {
      await turn.begun.promise
    } catch (error) {
      leave(id, turn)
      throw error
    } finally {
      clearTimeout(timer)
    }
  }

  function leave(id: string, turn: Turn) {
    const line = lines.get(id)!
    line.splice(line.indexOf(turn), 1)
    const next = line[0]
    if (!next) lines.delete(id)
    else begin(next, line.length > 1)
  }

  return {
    newLock(id): Lock {
      let turn: Turn
      return {
        async lock(_signal, release) {
          turn = { release: () => void release(), begun: Promise.withResolvers() }
          await enter(id, turn)
        },
        async unlock() {
          leave(id, turn)
        },
      }
    },
  }
}

/** Of a turn that has begun it changes nothing. */
function begin(turn: Turn, othersWait: boolean) {
  turn.begun.resolve()
  if (othersWait) turn.release()
}
