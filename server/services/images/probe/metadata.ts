/** What stands in a file beside the picture: it costs something, is looked through for markup, and says which way is up. */
import { constants, inflateSync } from 'node:zlib'
import { errors } from './errors.ts'
import type { Allowance } from './limits.ts'
import type { Reader, Walk } from './reader.ts'

/** What makes a file a page or a program for whoever believes its name rather than its first bytes. */
const markup = /<(?:script|html|svg|\?php)/i
const markupCharsMax = 7
const pieceBytes = 65_536

/** Goes over so many bytes that are no picture, in little memory. @throws image_metadata_too_large, image_has_markup */
export function* skipMetadata(reader: Reader, count: number, allowance: Allowance): Walk<void> {
  allowance.addMetadata(count)
  let before = ''
  for (let left = count; left > 0; ) {
    if (!(yield* reader.more())) throw errors.truncated()
    const end = Math.min(reader.chunk.length, reader.at + left, reader.at + pieceBytes)
    const text = before + reader.chunk.toString('latin1', reader.at, end)
    refuseMarkup(text)
    before = text.slice(-markupCharsMax + 1)
    left -= end - reader.at
    reader.at = end
  }
}

/** The same for bytes that must be seen as a whole. Whoever asks bounds `count`. */
export function* takeMetadata(reader: Reader, count: number, allowance: Allowance): Walk<Buffer> {
  allowance.addMetadata(count)
  const bytes = yield* reader.take(count)
  refuseMarkup(bytes.toString('latin1'))
  return bytes
}

function refuseMarkup(text: string) {
  const found = markup.exec(text)
  if (found) throw errors.hasMarkup(found[0].toLowerCase())
}

/** Deflate packs 258 bytes into two bits at best. */
export const deflateRatioMax = 1032
/** Bytes of deflate that are unpacked to see how long they get: what is held of a file at most. */
export const packedBytesMax = 512 * 1024

/**
 * Unpacks zlib data.
 * @returns `tooLong` where it would have more than `bytesMax`; data that ends early is what there is of it
 */
export function unpack(packed: Buffer, bytesMax: number): Buffer | 'tooLong' | 'damaged' {
  try {
    return inflateSync(packed, { maxOutputLength: Math.max(1, bytesMax), finishFlush: constants.Z_SYNC_FLUSH })
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ERR_BUFFER_TOO_LARGE' ? 'tooLong' : 'damaged'
  }
}

/** Counts packed text by what it unpacks to. */
export function checkPackedText(packed: Buffer, allowance: Allowance) {
  const text = unpack(packed, allowance.metadataLeft)
  if (text === 'tooLong') return allowance.addMetadata(Number.POSITIVE_INFINITY)
  // Decoders leave out what is damaged. Where the damage is nobody says, so it counts as the most it can have cost.
  if (text === 'damaged') return allowance.addMetadata(packed.length * deflateRatioMax)
  allowance.addMetadata(text.length)
  refuseMarkup(text.toString('latin1'))
}

const exifMark = Buffer.from('Exif\0\0', 'latin1')

/** The TIFF structure in what is marked as EXIF, or undefined. */
export function findExif(bytes: Buffer): Buffer | undefined {
  return bytes.subarray(0, exifMark.length).equals(exifMark) ? bytes.subarray(exifMark.length) : undefined
}

const orientationTag = 0x0112
const shortType = 3
const entryBytes = 12

/**
 * The orientation in an EXIF block, 1 to 8; 1 where it says none or nonsense. Only the first directory is read and no
 * pointer but the one to it is followed, so nothing can loop.
 */
export function orientationOf(exif: Buffer): number {
  const order = exif.toString('latin1', 0, 4)
  if (order !== 'II*\0' && order !== 'MM\0*') return 1
  const short = (at: number) => {
    if (at + 2 > exif.length) return 0
    return order[0] === 'I' ? exif.readUInt16LE(at) : exif.readUInt16BE(at)
  }
  if (exif.length < 8) return 1
  const directory = order[0] === 'I' ? exif.readUInt32LE(4) : exif.readUInt32BE(4)
  const count = short(directory)
  for (let entry = 0; entry < count; entry++) {
    const at = directory + 2 + entry * entryBytes
    if (at + entryBytes > exif.length) return 1
    if (short(at) === orientationTag) return short(at + 2) === shortType ? toOrientation(short(at + 8)) : 1
  }
  return 1
}

/** @returns 1 for what is no orientation */
export function toOrientation(value: number): number {
  return value >= 1 && value <= 8 ? value : 1
}
