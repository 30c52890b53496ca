/** What may stand behind the end of an image: what phones put there, and nothing else. */
import type { InputFormat } from '../types.ts'
import { boxHeadBytes, skipBody, walkTopBoxes } from './boxes.ts'
import { errors } from './errors.ts'
import { walkJpeg } from './jpeg.ts'
import type { ProbeLimits } from './limits.ts'
import type { Reader, Walk } from './reader.ts'

/** Previews and gain maps behind a JPEG; phones put one or two. */
const furtherJpegsMax = 8
/** Long enough to tell what it is. */
const peekBytes = 8

/**
 * Goes on from the end of the image to the end of the file.
 * @returns whether the file must end as Samsung's phones end it
 * @throws image_has_trailing_data
 */
export function* walkTrailing(reader: Reader, format: InputFormat, limits: ProbeLimits): Walk<boolean> {
  for (let further = 0; ; ) {
    const next = yield* reader.peek(peekBytes)
    if (next.length === 0) return false
    if (format === 'jpeg' && isFilm(next)) {
      yield* walkFilm(reader)
      return false
    }
    if (format === 'jpeg' && isSamsungBlock(next)) {
      while (yield* reader.more()) reader.at = reader.chunk.length
      return true
    }
    if (format === 'jpeg' && next[0] === 0xff && next[1] === 0xd8 && further++ < furtherJpegsMax) {
      yield* walkJpeg(reader, limits)
    } else if (next[0] === 0) {
      skipZeros(reader)
    } else {
      throw errors.hasTrailingData(nameOf(next))
    }
  }
}

function nameOf(next: Buffer): string {
  const text = next.toString('latin1')
  if (text.startsWith('PK')) return 'a ZIP archive'
  if (text.startsWith('%PDF')) return 'a PDF'
  if (/^\s*</.test(text)) return 'markup'
  return 'bytes that do not belong there'
}

/** Zeros at hand, but for the last, which may belong to what comes next. */
function skipZeros(reader: Reader) {
  const { chunk } = reader
  let at = reader.at + 1
  while (at + peekBytes < chunk.length && chunk[at] === 0 && chunk[at + peekBytes - 1] === 0) at++
  reader.at = at
}

function isFilm(next: Buffer): boolean {
  return next.toString('latin1', 4) === 'ftyp'
}

/** The moving part of a photo: boxes to the end of the file. */
function* walkFilm(reader: Reader): Walk<void> {
  yield* walkTopBoxes(reader, head => skipBody(reader, head))
}

const nameBytesMax = 64

/** Two zeros, a kind, the length of a name: Samsung's phones add what else they know of a photo in such blocks. */
function isSamsungBlock(next: Buffer): boolean {
  if (next.length < boxHeadBytes || next.readUInt16LE() !== 0 || next.readUInt16LE(2) === 0) return false
  const nameBytes = next.readUInt32LE(4)
  return nameBytes > 0 && nameBytes <= nameBytesMax
}

/** A directory of the blocks, its length, and `SEFT`. @throws image_has_trailing_data */
export function checkSamsungEnd(tail: Buffer) {
  const lengthAt = tail.length - 8
  const directoryAt = lengthAt < 0 ? -1 : lengthAt - tail.readUInt32LE(lengthAt)
  const isWhole = directoryAt >= 0 && tail.toString('latin1', directoryAt, directoryAt + 4) === 'SEFH'
  if (!isWhole || tail.toString('latin1', lengthAt + 4) !== 'SEFT')
    throw errors.hasTrailingData('bytes that do not belong there')
}
