/** WebP (RFC 9649): a RIFF file of chunks; a still image is one of them, an animation has one a frame. */
import type { ImageFacts } from '../types.ts'
import { errors } from './errors.ts'
import { type Allowance, checkSize, makeAllowance, type ProbeLimits, type Sides } from './limits.ts'
import { findExif, orientationOf, skipMetadata, takeMetadata } from './metadata.ts'
import type { Reader, Walk } from './reader.ts'

const riffHeadBytes = 12
const chunkHeadBytes = 8
/** Of the RIFF size, which counts from after itself. */
const beforeSizeBytes = 8
const extendedBytes = 10
const frameHeadBytes = 16
const exifBytesMax = 65_536
const flags = { animated: 0x02, alpha: 0x10 } as const
const opaque = 3
const transparent = 4

interface Picture {
  facts: ImageFacts | undefined
  isExtended: boolean
  isAnimated: boolean
  images: number
}

interface Chunk {
  reader: Reader
  limits: ProbeLimits
  allowance: Allowance
  picture: Picture
  type: string
  length: number
}

export function* walkWebp(reader: Reader, limits: ProbeLimits): Walk<ImageFacts> {
  const allowance = makeAllowance(limits)
  const end = (yield* reader.take(riffHeadBytes)).readUInt32LE(4) + beforeSizeBytes
  const picture: Picture = { facts: undefined, isExtended: false, isAnimated: false, images: 0 }
  while (reader.offset < end) {
    const { type, length } = yield* takeChunkHead(reader, end)
    yield* walkChunk({ reader, limits, allowance, picture, type, length })
    yield* skipPadding(reader, length)
  }
  const { facts, images } = picture
  if (!facts || images === 0) throw errors.malformed('it has no picture in it')
  facts.frames = images
  return facts
}

function* takeChunkHead(reader: Reader, end: number): Walk<{ type: string; length: number }> {
  const head = yield* reader.take(chunkHeadBytes)
  const length = head.readUInt32LE(4)
  if (reader.offset + length > end) throw errors.malformed('a chunk is longer than what it lies in')
  return { type: head.toString('latin1', 0, 4), length }
}

/** Chunks begin at even places. The last byte of a file may be left out: some writers do. */
function* skipPadding(reader: Reader, length: number): Walk<void> {
  if (length % 2 === 1 && (yield* reader.more())) yield* reader.skip(1)
}

function* walkChunk(chunk: Chunk): Walk<void> {
  const { reader, limits, allowance, picture, type, length } = chunk
  if (!picture.facts && !/^VP8[ LX]$/.test(type)) throw errors.malformed('it does not begin with a picture')
  switch (type) {
    case 'VP8X':
      return yield* walkExtended(chunk)
    case 'VP8 ':
    case 'VP8L': {
      if (picture.isAnimated || ++picture.images > 1) throw errors.malformed('it has more pictures than it says')
      const image = yield* takeImageHead(reader, type, length)
      if (picture.isExtended) checkSame(picture.facts!, image)
      else picture.facts = factsOf(image)
      picture.facts!.progressive = type === 'VP8L'
      checkSize(picture.facts!, limits)
      return yield* reader.skip(image.bytesLeft)
    }
    case 'ANMF':
      return yield* walkFrame(chunk)
    case 'ALPH':
      allowance.addMetadata(0)
      return yield* reader.skip(length)
    case 'ICCP':
      allowance.addProfile(length)
      allowance.addMetadata(0)
      return yield* reader.skip(length)
    case 'EXIF': {
      if (length > exifBytesMax) return yield* skipMetadata(reader, length, allowance)
      const bytes = yield* takeMetadata(reader, length, allowance)
      if (picture.isExtended) picture.facts!.orientation = orientationOf(findExif(bytes) ?? bytes)
      return
    }
    default:
      return yield* skipMetadata(reader, length, allowance)
  }
}

interface Image {
  width: number
  height: number
  hasAlpha: boolean
}

function factsOf({ width, height, hasAlpha }: Image): ImageFacts {
  const channels = hasAlpha ? transparent : opaque
  return { format: 'webp', width, height, orientation: 1, frames: 1, progressive: false, bitsPerSample: 8, channels }
}

function checkSame(canvas: Sides, image: Sides) {
  if (canvas.width !== image.width || canvas.height !== image.height)
    throw errors.malformed('its parts disagree about its size')
}

function* walkExtended({ reader, limits, picture, length }: Chunk): Walk<void> {
  if (picture.facts || length < extendedBytes) throw errors.malformed('its header is not where it belongs')
  const header = yield* reader.take(extendedBytes)
  const hasAlpha = (header[0]! & flags.alpha) !== 0
  picture.facts = factsOf({ width: header.readUIntLE(4, 3) + 1, height: header.readUIntLE(7, 3) + 1, hasAlpha })
  picture.isExtended = true
  picture.isAnimated = (header[0]! & flags.animated) !== 0
  checkSize(picture.facts, limits)
  yield* reader.skip(length - extendedBytes)
}

/** A frame of an animation: where it lies, then chunks of its own. */
function* walkFrame({ reader, limits, allowance, picture, length }: Chunk): Walk<void> {
  const facts = picture.facts!
  if (!picture.isAnimated || length < frameHeadBytes) throw errors.malformed('it has a frame that is none')
  checkSize({ ...facts, frames: ++picture.images }, limits)
  const end = reader.offset + length
  const head = yield* reader.take(frameHeadBytes)
  const frame = { width: head.readUIntLE(6, 3) + 1, height: head.readUIntLE(9, 3) + 1 }
  const right = head.readUIntLE(0, 3) * 2 + frame.width
  const bottom = head.readUIntLE(3, 3) * 2 + frame.height
  if (right > facts.width || bottom > facts.height) throw errors.malformed('a frame lies outside of the picture')
  let images = 0
  while (reader.offset < end) {
    const { type, length: inner } = yield* takeChunkHead(reader, end)
    if (type === 'VP8 ' || type === 'VP8L') {
      images++
      const image = yield* takeImageHead(reader, type, inner)
      checkSame(frame, image)
      yield* reader.skip(image.bytesLeft)
    } else {
      allowance.addMetadata(0)
      yield* reader.skip(inner)
    }
    if (inner % 2 === 1 && reader.offset < end) yield* reader.skip(1)
  }
  if (images !== 1) throw errors.malformed('a frame has not one picture')
}

const lossyHeadBytes = 10
const losslessHeadBytes = 5
const lossyMark = 0x2a019d
const losslessMark = 0x2f
const sizeMask = 0x3fff
const sizeBits = 14
const alphaBit = 28

/** @returns also how many bytes of the picture come after it */
function* takeImageHead(reader: Reader, type: string, length: number): Walk<Image & { bytesLeft: number }> {
  const headBytes = type === 'VP8 ' ? lossyHeadBytes : losslessHeadBytes
  if (length < headBytes) throw errors.malformed('a picture is shorter than its header')
  const head = yield* reader.take(headBytes)
  return { ...(type === 'VP8 ' ? readLossyHead(head) : readLosslessHead(head)), bytesLeft: length - headBytes }
}

function readLossyHead(head: Buffer): Image {
  const isKeyFrame = (head[0]! & 1) === 0
  if (!isKeyFrame || head.readUIntLE(3, 3) !== lossyMark) throw errors.malformed('a picture does not begin as one')
  return { width: head.readUInt16LE(6) & sizeMask, height: head.readUInt16LE(8) & sizeMask, hasAlpha: false }
}

function readLosslessHead(head: Buffer): Image {
  if (head[0] !== losslessMark) throw errors.malformed('a picture does not begin as one')
  const bits = head.readUInt32LE(1)
  const width = (bits & sizeMask) + 1
  const height = ((bits >>> sizeBits) & sizeMask) + 1
  return { width, height, hasAlpha: ((bits >>> alphaBit) & 1) === 1 }
}
