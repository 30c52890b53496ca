import { type AppError, errors, isAppError, messageOf } from '../errors.ts'
import type { Log } from '../log.ts'

export type Trouble = 'full' | 'away' | 'refused'

/** For whoever asked, and for whoever runs the server. */
const sentences: Record<Trouble, { why: string; log: string }> = {
  full: { why: 'the store is full', log: 'the blob store is full: make room in it' },
  away: { why: 'the store cannot be reached', log: 'the blob store cannot be used: see that it is there and works' },
  refused: {
    why: 'the store refuses this server',
    log: 'the blob store refuses Capstan: see the name, the keys and the permissions it was given',
  },
}

/** An outage is logged when it begins, and again each minute that it lasts. */
const logEveryMs = 60_000

export interface Outage {
  /** Runs store work; what `troubleOf` knows becomes `blob_store_unavailable`. */
  guard<T>(work: () => Promise<T>): Promise<T>
  /** The error as it goes on: as it came, where it is no trouble of the store. */
  translate(error: unknown): unknown
}

/** Turns what a store throws into the one error that callers know, and says why in the log, but not at each request. */
export function makeOutage(given: {
  description: string
  log: Log
  troubleOf: (error: unknown) => Trouble | undefined
  clock?: () => number
}): Outage {
  const clock = given.clock ?? Date.now
  const told = new Map<Trouble, { at: number; since: number }>()

  function tell(trouble: Trouble, error: unknown) {
    const last = told.get(trouble)
    if (last && clock() - last.at < logEveryMs) {
      last.since++
      return
    }
    told.set(trouble, { at: clock(), since: 0 })
    // Not the error itself: what SDKs hang on theirs may be more than a log should hold.
    const { name, code } = error as { name?: string; code?: string }
    const reason = messageOf(error)
    const unlogged = last?.since ?? 0
    given.log.error({ store: given.description, reason, code: code ?? name, unlogged }, sentences[trouble].log)
  }

  function translate(error: unknown): unknown {
    if (isAppError(error)) return error
    const trouble = given.troubleOf(error)
    if (!trouble) return error
    tell(trouble, error)
    return errors.blobStoreUnavailable(sentences[trouble].why, error) satisfies AppError
  }

  return {
    translate,
    async guard(work) {
      try {
        return await work()
      } catch (error) {
        throw translate(error)
      }
    },
  }
}
