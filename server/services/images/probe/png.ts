/** PNG (ISO/IEC 15948, third edition): chunks that say how long they are, from IHDR to IEND. */
import type { ImageFacts } from '../types.ts'
import { errors } from './errors.ts'
import { type Allowance, checkSize, makeAllowance, type ProbeLimits } from './limits.ts'
import {
  checkPackedText,
  deflateRatioMax,
  orientationOf,
  packedBytesMax,
  skipMetadata,
  takeMetadata,
  unpack,
} from './metadata.ts'
import type { Reader, Walk } from './reader.ts'

const signatureBytes = 8
const chunkHeadBytes = 8
const checksumBytes = 4
const lengthMax = 2 ** 31 - 1
const headerBytes = 13
/** An EXIF chunk of a camera has at most 64 KiB. */
const exifBytesMax = 65_536
/** Shorter chunks of picture data than this are counted as parts: nobody needs many. */
const dataBytesShort = 256

/** Colour types and the channels they are decoded to. */
const channelsByColour = new Map([
  [0, 1],
  [2, 3],
  [3, 3],
  [4, 2],
  [6, 4],
])
const bitsByColour = new Map([
  [0, [1, 2, 4, 8, 16]],
  [2, [8, 16]],
  [3, [1, 2, 4, 8]],
  [4, [8, 16]],
  [6, [8, 16]],
])
const palette = 3

interface Picture {
  facts: ImageFacts
  colour: number
  /** What of the picture came, packed. */
  dataBytes: number
  stage: 'before' | 'data' | 'after'
  hasPalette: boolean
  /** Frames that have a header of their own. */
  framesSeen: number
  profiles: number
}

interface Chunk {
  reader: Reader
  limits: ProbeLimits
  allowance: Allowance
  picture: Picture
  type: string
  length: number
}

export function* walkPng(reader: Reader, limits: ProbeLimits): Walk<ImageFacts> {
  yield* reader.skip(signatureBytes)
  const allowance = makeAllowance(limits)
  const picture = yield* walkHeader(reader, limits)
  for (;;) {
    const { type, length } = yield* takeChunkHead(reader)
    if (type === 'IEND') {
      yield* reader.skip(length + checksumBytes)
      return finish(picture, length)
    }
    yield* walkChunk({ reader, limits, allowance, picture, type, length })
    yield* reader.skip(checksumBytes)
  }
}

function* takeChunkHead(reader: Reader): Walk<{ type: string; length: number }> {
  const head = yield* reader.take(chunkHeadBytes)
  const length = head.readUInt32BE()
  const type = head.toString('latin1', 4)
  if (length > lengthMax || !/^[A-Za-z]{4}$/.test(type)) throw errors.malformed('one of its chunks is no chunk')
  return { type, length }
}

function* walkHeader(reader: Reader, limits: ProbeLimits): Walk<Picture> {
  const { type, length } = yield* takeChunkHead(reader)
  if (type !== 'IHDR' || length !== headerBytes) throw errors.malformed('it does not begin with its header')
  const header = yield* reader.take(headerBytes)
  const width = header.readUInt32BE(0)
  const height = header.readUInt32BE(4)
  const [bitsPerSample, colour, compression, filter, interlace] = header.subarray(8)
  if (!bitsByColour.get(colour!)?.includes(bitsPerSample!) || compression !== 0 || filter !== 0 || interlace! > 1)
    throw errors.malformed('its header says what no PNG can be')
  const channels = channelsByColour.get(colour!)!
  const progressive = interlace === 1
  const facts: ImageFacts = {
    format: 'png',
    width,
    height,
    orientation: 1,
    frames: 1,
    progressive,
    channels,
    bitsPerSample: bitsPerSample!,
  }
  checkSize(facts, limits)
  yield* reader.skip(checksumBytes)
  return { facts, colour: colour!, dataBytes: 0, stage: 'before', hasPalette: false, framesSeen: 0, profiles: 0 }
}

function* walkChunk(chunk: Chunk): Walk<void> {
  const { reader, allowance, picture, type, length } = chunk
  if (type === 'IDAT') return yield* walkData(chunk)
  if (picture.stage === 'data') picture.stage = 'after'
  switch (type) {
    case 'PLTE':
      return yield* walkPalette(chunk)
    case 'tRNS':
      checkBefore(picture, type)
      if (picture.colour <= palette) picture.facts.channels = (channelsByColour.get(picture.colour) ?? 0) + 1
      allowance.addMetadata(length)
      return yield* reader.skip(length)
    case 'iCCP':
      return yield* walkProfile(chunk)
    case 'eXIf': {
      if (length > exifBytesMax) return yield* skipMetadata(reader, length, allowance)
      picture.facts.orientation = orientationOf(yield* takeMetadata(reader, length, allowance))
      return
    }
    case 'zTXt':
    case 'iTXt':
      return yield* walkText(chunk)
    case 'acTL':
    case 'fcTL':
    case 'fdAT':
      return yield* walkAnimation(chunk)
    default:
      if (/^[A-Z]/.test(type)) throw errors.malformed(`it has a chunk that must be understood and is not (${type})`)
      return yield* skipMetadata(reader, length, allowance)
  }
}

function* walkData({ reader, allowance, picture, length }: Chunk): Walk<void> {
  if (picture.stage === 'after') throw errors.malformed('its picture data is not in one piece')
  if (picture.colour === palette && !picture.hasPalette) throw errors.malformed('its palette is missing')
  if (length < dataBytesShort) allowance.addMetadata(length)
  picture.stage = 'data'
  picture.dataBytes += length
  yield* reader.skip(length)
}

const paletteEntryBytes = 3
const paletteEntriesMax = 256

function* walkPalette({ reader, picture, type, length }: Chunk): Walk<void> {
  checkBefore(picture, type)
  const entries = length / paletteEntryBytes
  if (picture.hasPalette || entries < 1 || entries > paletteEntriesMax || !Number.isInteger(entries))
    throw errors.malformed('its palette is no palette')
  picture.hasPalette = true
  yield* reader.skip(length)
}

function checkBefore({ stage }: Picture, type: string) {
  if (stage !== 'before') throw errors.malformed(`a chunk comes too late (${type})`)
}

const profileNameMax = 79

function* walkProfile({ reader, limits, allowance, picture, type, length }: Chunk): Walk<void> {
  checkBefore(picture, type)
  if (++picture.profiles > 1) throw errors.malformed('it has two colour profiles')
  if (length > packedBytesMax) throw errors.profileTooLarge(limits.profileBytesMax)
  const bytes = yield* reader.take(length)
  const nameEnd = bytes.subarray(0, profileNameMax + 1).indexOf(0)
  if (nameEnd < 0) return
  const profile = unpack(bytes.subarray(nameEnd + 2), limits.profileBytesMax)
  if (profile === 'tooLong') throw errors.profileTooLarge(limits.profileBytesMax)
  // A damaged one is left out by decoders.
  if (profile !== 'damaged') allowance.addProfile(profile.length)
}

/** zTXt: keyword, 0, method, packed. iTXt: keyword, 0, whether packed, method, language, 0, translated keyword, 0, text. */
function* walkText({ reader, limits, allowance, type, length }: Chunk): Walk<void> {
  if (length > packedBytesMax) {
    // What is not packed costs only its own length.
    const keyword = yield* reader.peek(profileNameMax + 2)
    const isPacked = type === 'zTXt' || keyword[keyword.indexOf(0) + 1] !== 0
    if (isPacked) throw errors.metadataTooLarge(limits.metadataBytesMax)
    return yield* skipMetadata(reader, length, allowance)
  }
  const bytes = yield* takeMetadata(reader, length, allowance)
  const keywordEnd = bytes.indexOf(0)
  if (keywordEnd < 0) return
  if (type === 'zTXt') return checkPackedText(bytes.subarray(keywordEnd + 2), allowance)
  if (bytes[keywordEnd + 1] !== 1) return
  const languageEnd = bytes.indexOf(0, keywordEnd + 3)
  const translatedEnd = languageEnd < 0 ? -1 : bytes.indexOf(0, languageEnd + 1)
  if (translatedEnd >= 0) checkPackedText(bytes.subarray(translatedEnd + 1), allowance)
}

const animationBytes = 8

function* walkAnimation({ reader, limits, allowance, picture, type, length }: Chunk): Walk<void> {
  const { facts } = picture
  if (type === 'fdAT') {
    if (length < dataBytesShort) allowance.addMetadata(length)
  } else if (type === 'acTL') {
    checkBefore(picture, type)
    if (length !== animationBytes) throw errors.malformed('its animation header has a wrong length')
    facts.frames = Math.max(1, (yield* reader.peek(4)).readUInt32BE())
    checkSize(facts, limits)
  } else if (++picture.framesSeen > facts.frames) {
    throw errors.malformed('it has more frames than it says')
  }
  yield* reader.skip(length)
}

function finish({ facts, stage, dataBytes, colour }: Picture, endBytes: number): ImageFacts {
  if (endBytes !== 0) throw errors.malformed('its last chunk is not empty')
  if (stage === 'before') throw errors.malformed('it has no picture in it')
  const samples = colour === palette ? 1 : channelsByColour.get(colour)!
  const rowBytes = Math.ceil((facts.width * samples * facts.bitsPerSample) / 8)
  // So little data cannot unpack to so many pixels, whatever it is.
  if (rowBytes * facts.height > dataBytes * deflateRatioMax) throw errors.truncated()
  return facts
}
