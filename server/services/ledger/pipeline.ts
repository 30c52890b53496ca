/**
 * Streams of transfers. Lines are submitted as they come, so that many share a commit, and are answered in the order
 * they came. Two bounds keep that in memory: on the lines of one stream that are not answered yet, and on the lines
 * of all streams that are under way. Past a bound a stream is not read on, and its client waits.
 */
import type { Outcome } from '#platform/batch.ts'
import { isAppError } from '#platform/errors.ts'

export interface Places {
  /** Waited for, in order, while all are taken. */
  take(): Promise<void> | undefined
  give(): void
}

export function makePlaces(placesMax: number): Places {
  let taken = 0
  const waiting: (() => void)[] = []
  return {
    take() {
      if (taken === placesMax) return new Promise(resolve => waiting.push(resolve))
      taken++
      return undefined
    },
    give() {
      const next = waiting.shift()
      // The place is handed over.
      if (next) next()
      else taken--
    },
  }
}

interface Line<R> {
  outcome: Outcome<R> | undefined
}

export interface PipelineOptions<T, R> {
  /** Lines as they come, some at a time. */
  messages: AsyncIterable<readonly T[]>
  submit: (line: T) => Promise<R>
  /** Shared by all streams. */
  places: Places
  /** Most lines of this stream that are not answered. */
  linesMax: number
}

/**
 * Yields the outcomes of lines, in order, as soon as they are known, several at a time. When the lines end with an
 * error, or one cannot be answered (the database is away), what stands before that is answered, and then it throws.
 */
export async function* runPipeline<T, R>(options: PipelineOptions<T, R>): AsyncGenerator<Outcome<R>[]> {
  const unanswered: Line<R>[] = []
  const change = makeBell()
  const reader = { ended: false, abandoned: false, failure: undefined as { error: unknown } | undefined }
  void readLines({ ...options, unanswered, change, reader })
  try {
    for (;;) {
      const outcomes = takeSettled(unanswered)
      if (outcomes.length > 0) {
        change.ring()
        yield outcomes
      }
      const [first] = unanswered
      if (first?.outcome) throw (first.outcome as { error: unknown }).error
      if (first === undefined && reader.ended) break
      if (outcomes.length === 0) await change.wait()
    }
    if (reader.failure) throw reader.failure.error
  } finally {
    reader.abandoned = true
    change.ring()
  }
}

async function readLines<T, R>(
  given: PipelineOptions<T, R> & {
    unanswered: Line<R>[]
    change: Bell
    reader: { ended: boolean; abandoned: boolean; failure: { error: unknown } | undefined }
  },
) {
  const { unanswered, change, reader, places } = given
  try {
    for await (const message of given.messages) {
      for (const each of message) {
        while (unanswered.length >= given.linesMax && !reader.abandoned) await change.wait()
        const place = places.take()
        if (place) await place
        if (reader.abandoned) return places.give()
        const line: Line<R> = { outcome: undefined }
        unanswered.push(line)
        given
          .submit(each)
          .then(
            value => ({ value }),
            error => ({ error }),
          )
          .then(outcome => {
            line.outcome = outcome
            places.give()
            if (unanswered[0] === line) change.ring()
          })
      }
    }
  } catch (error) {
    reader.failure = { error }
  } finally {
    reader.ended = true
    change.ring()
  }
}

/** Takes out the lines from the first on that are settled and can be answered. */
function takeSettled<R>(unanswered: Line<R>[]): Outcome<R>[] {
  const count = unanswered.findIndex(({ outcome }) => outcome === undefined || !isAnswer(outcome))
  return unanswered.splice(0, count < 0 ? unanswered.length : count).map(line => line.outcome!)
}

/** A refusal is an answer; that it could not be decided is none. */
function isAnswer(outcome: Outcome<unknown>): boolean {
  return 'value' in outcome || (isAppError(outcome.error) && outcome.error.status < 500)
}

interface Bell {
  ring(): void
  wait(): Promise<void>
}

/** Wakes everybody who waits. */
function makeBell(): Bell {
  let waiting: (() => void)[] = []
  return {
    ring() {
      const woken = waiting
      waiting = []
      for (const wake of woken) wake()
    },
    wait: () => new Promise(resolve => waiting.push(resolve)),
  }
}
