/** Lines of a body that may have no end, as they come. */
import { isUtf8 } from 'node:buffer'

/** Lines that follow each other; empty ones are among them. */
export interface Lines {
  /** The number of the first, from 1 on. */
  first: number
  texts: string[]
}

/** What stood behind the last line break when the body was cut off. */
export interface CutOff {
  number: number
  isEmpty: boolean
  error: unknown
}

const newline = 0x0a
const linesMax = 1000
/** Stands for a line that is not UTF-8: no JSON either, and refused for that. */
const notUtf8 = '\uFFFD'

/**
 * Hands on whole lines, at most a thousand together. Of a line that is longer than `lineBytesMax`, so much is handed on
 * that it is seen to be too long. Answers how the body was cut off, after all whole lines were handed on; undefined
 * when it came to its end.
 */
export async function* readLines(
  body: AsyncIterable<Buffer>,
  { lineBytesMax }: { lineBytesMax: number },
): AsyncGenerator<Lines, CutOff | undefined> {
  let number = 1
  const rest = makeRest(lineBytesMax)
  function* handOn(bytes: Buffer): Generator<Lines> {
    const texts = decodeLines(bytes, lineBytesMax)
    for (let from = 0; from < texts.length; from += linesMax) {
      const some = texts.length <= linesMax ? texts : texts.slice(from, from + linesMax)
      yield { first: number, texts: some }
      number += some.length
    }
  }
  try {
    for await (const chunk of body) {
      const end = chunk.lastIndexOf(newline)
      if (end >= 0) yield* handOn(rest.take(chunk.subarray(0, end)))
      rest.add(chunk.subarray(end + 1))
    }
  } catch (error) {
    return { number, isEmpty: rest.isEmpty, error }
  }
  if (!rest.isEmpty) yield* handOn(rest.take(Buffer.alloc(0)))
  return undefined
}

/** The beginning of a line whose end has not come yet. */
function makeRest(bytesMax: number) {
  let pieces: Buffer[] = []
  let bytes = 0
  return {
    get isEmpty() {
      return bytes === 0
    },
    add(piece: Buffer) {
      const kept = Math.min(piece.length, bytesMax + 1 - bytes)
      if (kept <= 0) return
      // Copied: the memory of the whole chunk would be kept by its last bytes.
      pieces.push(Buffer.from(piece.subarray(0, kept)))
      bytes += kept
    },
    /** What was kept, with more behind it. */
    take(more: Buffer): Buffer {
      const whole = bytes === 0 ? more : Buffer.concat([...pieces, more])
      pieces = []
      bytes = 0
      return whole
    },
  }
}

function decodeLines(bytes: Buffer, lineBytesMax: number): string[] {
  if (isUtf8(bytes)) return bytes.toString('utf8').split('\n')
  const texts: string[] = []
  for (let from = 0; from <= bytes.length; ) {
    const found = bytes.indexOf(newline, from)
    const end = found < 0 ? bytes.length : found
    const line = bytes.subarray(from, end)
    // What is too long may have been cut inside a character, and is refused for its length.
    if (line.length > lineBytesMax) texts.push(line.toString('latin1'))
    else texts.push(isUtf8(line) ? line.toString('utf8') : notUtf8)
    from = end + 1
  }
  return texts
}
