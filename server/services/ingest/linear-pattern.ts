/**
 * Regular expressions whose time grows with the text and no faster: a writer must not be able to hold up the process by
 * a string that a stream's `pattern` does badly on, as JavaScript's own engine would let him. All ways through the
 * pattern are followed side by side (Thompson's construction; R. Cox, "Regular Expression Matching Can Be Simple And
 * Fast", 2007). What no such machine can do is refused: references back and looking around.
 */

/** Where to go is told as a distance, so that a piece can be repeated as it is. */
type Step =
  | { takes: (point: number) => boolean }
  | { ways: readonly number[] }
  | { holds: (before: number, next: number) => boolean }

export interface LinearPattern {
  test(text: string): boolean
  /** As `RegExp` has it. */
  toString(): string
}

/** Of the machine: what a character costs at most. */
const stepsMax = 1000
const none = -1
const quantifier = /(?:([*+?])|\{(\d+)(,?)(\d*)\})\??/y
const escaped =
  /\\(?:u\{[^}]*\}|ud[89ab][\da-f]{2}\\ud[c-f][\da-f]{2}|u[\da-f]{4}|x[\da-f]{2}|c[a-z]|p\{[^}]*\}|[\s\S])/iuy
const set = /\[(?:\\[\s\S]|[^\]\\])*\]/uy
const opening = /\((?:\?:|\?<[^=!][^>]*>|(?!\?))/uy

/** @throws SyntaxError for what is no pattern, or none of this kind */
export function makeLinearPattern(source: string): LinearPattern {
  const shown = String(new RegExp(source, 'u'))
  const steps = parse(source)
  return { test: text => run(steps, text), toString: () => shown }
}

/** @param source a valid pattern, so that little can be wrong */
function parse(source: string): Step[] {
  const takers = new Map<string, Step>()
  let at = 0
  const match = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at
    const found = pattern.exec(source)
    if (found) at += found[0].length
    return found
  }

  function choice(): Step[] {
    let steps = sequence()
    while (source[at] === '|') {
      at++
      const other = sequence()
      steps = [{ ways: [1, steps.length + 2] }, ...steps, { ways: [other.length + 1] }, ...other]
    }
    return steps
  }

  function sequence(): Step[] {
    const steps: Step[] = []
    while (at < source.length && source[at] !== '|' && source[at] !== ')') {
      const atom = readAtom()
      steps.push(...repeat(atom, match(quantifier)))
      if (steps.length > stepsMax) throw new SyntaxError('the pattern is too long, its repetitions written out')
    }
    return steps
  }

  function readAtom(): Step[] {
    if (source[at] === '(') {
      if (!match(opening)) throw new SyntaxError('a pattern cannot look around or change flags here')
      const inner = choice()
      at++
      return inner
    }
    if (source[at] === '^' || source[at] === '$') return [asserts[source[at++] as '^' | '$']]
    const [text] = match(escaped) ?? match(set) ?? [String.fromCodePoint(source.codePointAt(at)!)]
    if (text[0] !== '\\' && text[0] !== '[') at += text.length
    if (text === '\\b' || text === '\\B') return [asserts[text]]
    if (/^\\(?:k|[1-9])/.test(text)) throw new SyntaxError('a pattern cannot refer back here')
    const taker = takers.get(text) ?? { takes: makeTaker(text) }
    takers.set(text, taker)
    return [taker]
  }

  return choice()
}

/** Written out as often as it must come, and as often as it may. */
function repeat(steps: Step[], found: RegExpExecArray | null): Step[] {
  if (!found) return steps
  const [, sign, least = '', comma, most] = found
  const min = sign ? (sign === '+' ? 1 : 0) : Number(least)
  const max = sign ? (sign === '?' ? 1 : Number.POSITIVE_INFINITY) : comma ? Number(most || Infinity) : min
  const times = Number.isFinite(max) ? max : min + 1
  if (times * (steps.length + 1) > stepsMax)
    throw new SyntaxError('the pattern is too long, its repetitions written out')
  const all = Array.from({ length: min }, () => steps).flat()
  if (max === Number.POSITIVE_INFINITY) {
    return [...all, { ways: [1, steps.length + 2] }, ...steps, { ways: [-steps.length - 1] }]
  }
  const maybe = Array.from({ length: max - min }, (_, index) => [
    { ways: [1, (max - min - index) * (steps.length + 1)] },
    ...steps,
  ])
  return [...all, ...maybe.flat()]
}

/** What one character must be, as JavaScript itself understands it. */
function makeTaker(text: string): (point: number) => boolean {
  const pattern = new RegExp(`^${text}$`, 'u')
  const isTaken = (point: number) => pattern.test(String.fromCodePoint(point))
  const ascii = Array.from({ length: 128 }, (_, point) => isTaken(point))
  return point => ascii[point] ?? isTaken(point)
}

function isWord(point: number): boolean {
  return point !== none && /^\w$/.test(String.fromCodePoint(point))
}

const asserts = {
  '^': { holds: (before: number) => before === none },
  $: { holds: (_: number, next: number) => next === none },
  '\\b': { holds: (before: number, next: number) => isWord(before) !== isWord(next) },
  '\\B': { holds: (before: number, next: number) => isWord(before) === isWord(next) },
} satisfies Record<string, Step>

/** Whether the pattern is found anywhere. */
function run(steps: readonly Step[], text: string): boolean {
  /** At which character a step was come to last: no step is taken twice for one. */
  const seen = new Int32Array(steps.length + 1).fill(none)
  let here: number[] = []
  let before = none
  for (let at = 0, turn = 0; ; turn++) {
    const next = text.codePointAt(at) ?? none
    const waiting: number[] = []
    const open = [...here, 0]
    for (let step = open.pop(); step !== undefined; step = open.pop()) {
      if (step === steps.length) return true
      if (seen[step] === turn) continue
      seen[step] = turn
      const what = steps[step]!
      if ('takes' in what) waiting.push(step)
      else if ('ways' in what) for (const way of what.ways) open.push(step + way)
      else if (what.holds(before, next)) open.push(step + 1)
    }
    if (next === none) return false
    here = waiting
      .filter(step => (steps[step] as { takes: (point: number) => boolean }).takes(next))
      .map(step => step + 1)
    before = next
    at += next > 0xffff ? 2 : 1
  }
}
