/** What a load came to so far: by answer, by time. */
import { type Histogram, makeHistogram } from './histogram.ts'

export interface Answer {
  /** As it is shown: `201`, `429`, `record_invalid`, `no answer: ECONNRESET`. */
  kind: string
  taken: number
  refused: number
  /** Neither taken nor refused for certain. */
  lost: number
  /** Words of the first such answer. */
  example?: string
}

export interface AnswerRow extends Answer {
  example: string
}

/** A stretch of time, from the beginning on. */
export interface Slot {
  taken: number
  notTaken: number
  times: Histogram
}

export interface Tally {
  count(answer: Answer): void
  /** A request (or a piece of one) was answered. */
  time(ms: number): void
  readonly taken: number
  readonly refused: number
  readonly lost: number
  /** How long it took, in ms; up to now while it goes on. */
  readonly tookMs: number
  readonly times: Histogram
  /** The most frequent first. */
  answers(): AnswerRow[]
  timeline(): { slotMs: number; slots: readonly Slot[] }
  end(): void
}

const firstSlotMs = 100
/** Past these, two slots become one. */
const slotsMax = 600
const kindsMax = 100
const exampleCharsMax = 160

export function makeTally(clock: () => number = () => performance.now()): Tally {
  const begun = clock()
  const rows = new Map<string, AnswerRow>()
  const times = makeHistogram()
  const sums = { taken: 0, refused: 0, lost: 0 }
  let slotMs = firstSlotMs
  let slots: Slot[] = []
  let ended: number | undefined

  function slot(): Slot {
    let index = Math.floor((clock() - begun) / slotMs)
    while (index >= slotsMax) {
      slots = joinPairs(slots)
      slotMs *= 2
      index = Math.floor((clock() - begun) / slotMs)
    }
    while (slots.length <= index) slots.push({ taken: 0, notTaken: 0, times: makeHistogram() })
    return slots[index]!
  }

  return {
    count({ kind, taken, refused, lost, example = '' }) {
      const name = rows.has(kind) || rows.size < kindsMax ? kind : 'others'
      const row = rows.get(name) ?? { kind: name, taken: 0, refused: 0, lost: 0, example: shorten(example) }
      rows.set(name, row)
      for (const each of [row, sums]) {
        each.taken += taken
        each.refused += refused
        each.lost += lost
      }
      const now = slot()
      now.taken += taken
      now.notTaken += refused + lost
    },
    time(ms) {
      times.add(ms)
      slot().times.add(ms)
    },
    get taken() {
      return sums.taken
    },
    get refused() {
      return sums.refused
    },
    get lost() {
      return sums.lost
    },
    get tookMs() {
      return (ended ?? clock()) - begun
    },
    times,
    answers: () => [...rows.values()].sort((a, b) => timesOf(b) - timesOf(a) || (a.kind < b.kind ? -1 : 1)),
    timeline: () => ({ slotMs, slots }),
    end() {
      ended ??= clock()
    },
  }
}

/** How many records had this answer. */
export function timesOf({ taken, refused, lost }: AnswerRow): number {
  return taken + refused + lost
}

function joinPairs(slots: readonly Slot[]): Slot[] {
  return Array.from({ length: Math.ceil(slots.length / 2) }, (_, index) => {
    const joined = slots[2 * index]!
    const second = slots[2 * index + 1]
    if (second) {
      joined.taken += second.taken
      joined.notTaken += second.notTaken
      joined.times.merge(second.times)
    }
    return joined
  })
}

function shorten(words: string): string {
  const line = words.replace(/\s+/g, ' ')
  return line.length > exampleCharsMax ? `${line.slice(0, exampleCharsMax - 1)}…` : line
}
