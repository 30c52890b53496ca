import type { Api } from './support/api.ts'
import type { Capstan } from './support/capstan.ts'

/** One stop of the tour. To add one, write it into demo/stops/ and list it in tour.ts. */
export interface Stop {
  /** A few words, shown above what it prints and in the table at the end. */
  title: string
  /** Left out, with a sentence, where no program can be run. */
  needsSandbox?: boolean
  /** Does its work and answers what came of it, in one line. @throws when it is not as promised */
  run(context: Context): Promise<string>
}

export interface Context {
  /** The server, which a stop may kill and start again. */
  capstan: Capstan
  /** Aborted by Ctrl-C. */
  signal: AbortSignal
  languages: Language[]
  /** Prints a line of progress. */
  say(line: string): void
  /** Makes an account of this name and speaks for it. */
  makeUser(name: string): Promise<Api>
}

export interface Language {
  id: string
  name: string
  version: string
}

/** Ends the tour with a sentence rather than a stack. */
export class TourError extends Error {}

export function expect(condition: unknown, sentence: string): asserts condition {
  if (!condition) throw new TourError(sentence)
}
