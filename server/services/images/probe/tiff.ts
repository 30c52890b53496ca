/**
 * TIFF 6.0: directories of entries, each with the place of the next. They are read as the file streams past, so they must
 * stand in rising order, as all common programs write them.
 */
import type { ImageFacts } from '../types.ts'
import { errors } from './errors.ts'
import { checkSize, type ProbeLimits, type Sides } from './limits.ts'
import { toOrientation } from './metadata.ts'
import type { Reader, Walk } from './reader.ts'

const headerBytes = 8
const entryBytes = 12
const countBytes = 2
const nextBytes = 4
const classic = 42
const tags = {
  width: 256,
  height: 257,
  bits: 258,
  colours: 262,
  orientation: 274,
  samples: 277,
  tileWidth: 322,
  tileHeight: 323,
} as const
const types = { byte: 1, short: 3, long: 4 } as const
const bitsTaken = [1, 2, 4, 8, 16, 32, 64]
/** Taken for bits that were told where the stream had passed already: more than photographs have. */
const bitsUnseen = 16
const samplesMax = 4
const paletteColours = 3
const rgb = 3
/** A picture of so many directories is none, whatever they hold. */
const entriesMax = 1024

/** Reads numbers in the byte order of the file. */
interface Numbers {
  short(bytes: Buffer, at: number): number
  long(bytes: Buffer, at: number): number
}

const littleEndian: Numbers = {
  short: (bytes, at) => bytes.readUInt16LE(at),
  long: (bytes, at) => bytes.readUInt32LE(at),
}
const bigEndian: Numbers = { short: (bytes, at) => bytes.readUInt16BE(at), long: (bytes, at) => bytes.readUInt32BE(at) }

export function* walkTiff(reader: Reader, limits: ProbeLimits): Walk<ImageFacts> {
  const header = yield* reader.take(headerBytes)
  const numbers = header[0] === 0x49 ? littleEndian : bigEndian
  if (numbers.short(header, 2) !== classic) throw errors.variantUnsupported('a BigTIFF')
  let facts: ImageFacts | undefined
  let frames = 0
  let pixels = 0
  for (let next = numbers.long(header, 4); next !== 0; ) {
    if (next < reader.offset)
      throw errors.malformed('its directories do not stand in order, or lead back to themselves')
    yield* reader.skip(next - reader.offset)
    const page = yield* walkDirectory(reader, numbers)
    facts ??= page.facts
    next = page.next
    frames++
    pixels += page.facts.width * page.facts.height
    checkSize({ ...page.facts, frames: 1 }, limits)
    if (frames > limits.framesMax) throw errors.tooManyFrames(limits.framesMax)
    if (pixels > limits.pixelsMax) throw errors.tooManyPixels({ ...facts, frames }, limits.pixelsMax)
    // A decoder makes room for a whole tile, however little of it the picture shows.
    checkSize({ ...page.tile, frames: 1 }, limits)
  }
  if (!facts) throw errors.malformed('it has no picture in it')
  // Where the picture data lies is not followed: it may stand anywhere.
  while (yield* reader.more()) reader.at = reader.chunk.length
  return { ...facts, frames }
}

interface Page {
  facts: ImageFacts
  tile: Sides
  /** Where the next directory is; 0 for none. */
  next: number
}

function* walkDirectory(reader: Reader, numbers: Numbers): Walk<Page> {
  const count = numbers.short(yield* reader.take(countBytes), 0)
  if (count === 0 || count > entriesMax) throw errors.malformed('a directory has an impossible number of entries')
  const bytes = yield* reader.take(count * entryBytes + nextBytes)
  const next = numbers.long(bytes, count * entryBytes)
  const entries = readEntries(bytes.subarray(0, count * entryBytes), numbers)
  const bitsPerSample = yield* takeBits({ reader, numbers, entry: entries.get(tags.bits), next })
  return { facts: factsOf(entries, bitsPerSample), tile: tileOf(entries), next }
}

interface Entry {
  type: number
  count: number
  /** The value itself where it is one number. */
  value: number
  /** Where more than four bytes of value are. */
  offset: number
}

type Entries = ReadonlyMap<number, Entry>

function readEntries(bytes: Buffer, numbers: Numbers): Entries {
  const entries = new Map<number, Entry>()
  for (let at = 0; at < bytes.length; at += entryBytes) {
    const type = numbers.short(bytes, at + 2)
    const offset = numbers.long(bytes, at + 8)
    let value = offset
    if (type === types.short) value = numbers.short(bytes, at + 8)
    if (type === types.byte) value = bytes[at + 8]!
    const tag = numbers.short(bytes, at)
    // Of two the first counts, as in libtiff.
    if (!entries.has(tag)) entries.set(tag, { type, count: numbers.long(bytes, at + 4), value, offset })
  }
  return entries
}

function numberOf(entries: Entries, tag: number, fallback: number): number {
  const entry = entries.get(tag)
  if (!entry) return fallback
  const isNumber = entry.type === types.byte || entry.type === types.short || entry.type === types.long
  if (!isNumber || entry.count !== 1)
    throw errors.malformed(`a directory’s entry is not the number it should be (${tag})`)
  return entry.value
}

const shortBytes = 2
const shortsWithin = 2

/** Bits a sample; more than two such numbers stand elsewhere, commonly right behind the directory. */
function* takeBits(given: { reader: Reader; numbers: Numbers; entry: Entry | undefined; next: number }): Walk<number> {
  const { reader, numbers, entry, next } = given
  if (!entry) return 1
  if (entry.type !== types.short || entry.count === 0) throw errors.malformed('it does not say its bits a sample')
  if (entry.count > samplesMax) throw errors.variantUnsupported(`a TIFF of ${entry.count} channels`)
  if (entry.count <= shortsWithin) return checkBits(entry.value)
  const end = entry.offset + entry.count * shortBytes
  if (entry.offset < reader.offset || (next !== 0 && next < end)) return bitsUnseen
  yield* reader.skip(entry.offset - reader.offset)
  const bytes = yield* reader.take(entry.count * shortBytes)
  return checkBits(
    Math.max(...Array.from({ length: entry.count }, (_, index) => numbers.short(bytes, index * shortBytes))),
  )
}

function checkBits(bits: number): number {
  if (!bitsTaken.includes(bits)) throw errors.variantUnsupported(`a TIFF of ${bits} bits a sample`)
  return bits
}

function factsOf(entries: Entries, bitsPerSample: number): ImageFacts {
  const samples = numberOf(entries, tags.samples, 1)
  if (samples < 1 || samples > samplesMax) throw errors.variantUnsupported(`a TIFF of ${samples} channels`)
  return {
    format: 'tiff',
    width: numberOf(entries, tags.width, 0),
    height: numberOf(entries, tags.height, 0),
    orientation: toOrientation(numberOf(entries, tags.orientation, 1)),
    frames: 1,
    progressive: false,
    bitsPerSample,
    channels: numberOf(entries, tags.colours, 1) === paletteColours ? rgb : samples,
  }
}

function tileOf(entries: Entries): Sides {
  return { width: numberOf(entries, tags.tileWidth, 1), height: numberOf(entries, tags.tileHeight, 1) }
}
