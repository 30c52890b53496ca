/** What goes between this process and those that decode. */
import type { ImageFacts } from '../types.ts'
import type { Description, Made, Output } from './types.ts'

/** One piece of work, as a process that decodes gets it. */
export interface Order {
  path: string
  facts: ImageFacts
  outputs: readonly Output[]
  describe: boolean
}

export interface Results {
  made: Made[]
  description: (Omit<Description, 'thumbhash'> & { thumbhash: string }) | undefined
}

export type Answer =
  | { kind: 'ready' }
  /** `peakBytes` above what the process had at first; `residentBytes` of what it has now, likewise. */
  | { kind: 'done'; results: Results; peakBytes: number; residentBytes: number }
  /** The file is to blame. */
  | { kind: 'broken'; message: string; residentBytes: number }
  /** The file is not to blame: a full disk, say. */
  | { kind: 'failed'; message: string; residentBytes: number }
