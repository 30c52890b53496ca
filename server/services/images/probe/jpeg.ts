/**
 * JPEG (ISO/IEC 10918-1): segments until the first scan, then scans with segments between them, then the end. Segments
 * say how long they are; a scan ends at the next marker.
 */
import type { ImageFacts } from '../types.ts'
import { errors } from './errors.ts'
import { type Allowance, checkSize, makeAllowance, type ProbeLimits } from './limits.ts'
import { findExif, orientationOf, skipMetadata, takeMetadata } from './metadata.ts'
import type { Reader, Walk } from './reader.ts'

const markers = {
  temporary: 0x01,
  dht: 0xc4,
  jpg: 0xc8,
  dac: 0xcc,
  restartFirst: 0xd0,
  restartLast: 0xd7,
  start: 0xd8,
  end: 0xd9,
  scan: 0xda,
  quantization: 0xdb,
  lines: 0xdc,
  restartInterval: 0xdd,
  appFirst: 0xe0,
  exif: 0xe1,
  profile: 0xe2,
  appLast: 0xef,
  comment: 0xfe,
} as const

/** Frames libjpeg decodes: baseline, extended and progressive, and the last two with arithmetic coding. */
const framesTaken = new Set([0xc0, 0xc1, 0xc2, 0xc9, 0xca])
const framesProgressive = new Set([0xc2, 0xca])
const profileMark = Buffer.from('ICC_PROFILE\0', 'latin1')
const startBytes = 2
const lengthBytes = 2
const componentsTaken = new Set([1, 3, 4])

interface Picture {
  facts: ImageFacts | undefined
  orientation: number | undefined
  scans: number
  profile: Profile
}

/** Parts of a colour profile that came, of how many. */
interface Profile {
  parts: Set<number>
  count: number
}

/** From the start marker to the end marker. */
export function* walkJpeg(reader: Reader, limits: ProbeLimits): Walk<ImageFacts> {
  const allowance = makeAllowance(limits)
  const picture: Picture = {
    facts: undefined,
    orientation: undefined,
    scans: 0,
    profile: { parts: new Set(), count: 0 },
  }
  yield* reader.skip(startBytes)
  let marker = yield* takeMarker(reader)
  while (marker !== markers.end) {
    yield* walkSegment({ reader, limits, allowance, picture, marker })
    marker = marker === markers.scan ? yield* skipScan(reader) : yield* takeMarker(reader)
  }
  const { facts, orientation = 1, scans, profile } = picture
  if (!facts || scans === 0) throw errors.malformed('it has no picture in it')
  if (profile.parts.size !== profile.count) throw errors.malformed('a part of its colour profile is missing')
  return { ...facts, orientation }
}

interface Segment {
  reader: Reader
  limits: ProbeLimits
  allowance: Allowance
  picture: Picture
  marker: number
}

function* walkSegment({ reader, limits, allowance, picture, marker }: Segment): Walk<void> {
  const length = (yield* reader.take(lengthBytes)).readUInt16BE() - lengthBytes
  if (length < 0) throw errors.malformed('a segment is shorter than its own length')
  if (isFrame(marker)) {
    if (picture.facts) throw errors.malformed('it has two frame headers')
    picture.facts = factsOf(marker, yield* reader.take(length))
    checkSize(picture.facts, limits)
  } else if (marker === markers.scan) {
    if (!picture.facts) throw errors.malformed('a scan comes before the frame header')
    if (++picture.scans > limits.scansMax) throw errors.tooManyScans(limits.scansMax)
    yield* reader.skip(length)
  } else if (marker === markers.exif) {
    const bytes = yield* takeMetadata(reader, length, allowance)
    const exif = findExif(bytes)
    if (exif) picture.orientation ??= orientationOf(exif)
  } else if (marker === markers.profile) {
    yield* walkProfile({ reader, length, allowance, profile: picture.profile })
  } else if (isMetadata(marker)) {
    yield* skipMetadata(reader, length, allowance)
  } else if (marker >= markers.dht && marker <= markers.restartInterval && marker !== markers.start) {
    if (marker === markers.lines) throw errors.variantUnsupported('a JPEG that tells its height only at its end')
    allowance.addMetadata(length)
    yield* reader.skip(length)
  } else {
    throw errors.malformed(`it has a marker that no JPEG has (ff${marker.toString(16).padStart(2, '0')})`)
  }
}

/** SOF0 to SOF15: all of C0 to CF that mean nothing else. */
function isFrame(marker: number): boolean {
  if (marker === markers.dht || marker === markers.jpg || marker === markers.dac) return false
  return marker >= 0xc0 && marker <= 0xcf
}

function isMetadata(marker: number): boolean {
  return (marker >= markers.appFirst && marker <= markers.appLast) || marker === markers.comment
}

const frameHeaderBytes = 6
const componentBytes = 3
const samplingMax = 4

function factsOf(marker: number, frame: Buffer): ImageFacts {
  if (!framesTaken.has(marker)) throw errors.variantUnsupported('a lossless or hierarchical JPEG')
  if (frame.length < frameHeaderBytes) throw errors.malformed('its frame header is too short')
  const bitsPerSample = frame[0]!
  if (bitsPerSample !== 8) throw errors.variantUnsupported(`a JPEG of ${bitsPerSample} bits a sample`)
  const channels = frame[5]!
  if (!componentsTaken.has(channels)) throw errors.variantUnsupported(`a JPEG of ${channels} components`)
  if (frame.length !== frameHeaderBytes + channels * componentBytes)
    throw errors.malformed('its frame header has a wrong length')
  for (let at = frameHeaderBytes + 1; at < frame.length; at += componentBytes) checkSampling(frame[at]!)
  const height = frame.readUInt16BE(1)
  if (height === 0) throw errors.variantUnsupported('a JPEG that tells its height only at its end')
  const width = frame.readUInt16BE(3)
  const progressive = framesProgressive.has(marker)
  return { format: 'jpeg', width, height, orientation: 1, frames: 1, progressive, bitsPerSample, channels }
}

function checkSampling(factors: number) {
  for (const factor of [factors >> 4, factors & 0x0f])
    if (factor < 1 || factor > samplingMax) throw errors.malformed('its sampling factors are impossible')
}

/** Profiles longer than a segment come in numbered parts. */
function* walkProfile(given: { reader: Reader; length: number; allowance: Allowance; profile: Profile }): Walk<void> {
  const { reader, length, allowance, profile } = given
  const headBytes = profileMark.length + 2
  if (length < headBytes) return yield* skipMetadata(reader, length, allowance)
  const head = yield* reader.take(headBytes)
  if (!head.subarray(0, profileMark.length).equals(profileMark))
    return yield* skipMetadata(reader, length - headBytes, allowance)
  allowance.addProfile(length - headBytes)
  const part = head[profileMark.length]!
  const count = head[profileMark.length + 1]!
  if (profile.count !== 0 && profile.count !== count) throw errors.malformed('the parts of its colour profile disagree')
  if (part < 1 || part > count || profile.parts.has(part))
    throw errors.malformed('the parts of its colour profile are misnumbered')
  profile.count = count
  profile.parts.add(part)
  yield* reader.skip(length - headBytes)
}

const fill = 0xff
/** Between two segments any number is allowed, and nobody writes many. */
const fillBytesMax = 65_536

function* takeMarker(reader: Reader): Walk<number> {
  if ((yield* reader.take(1))[0] !== fill) throw errors.malformed('something stands between its segments')
  for (let bytes = 0; bytes < fillBytesMax; bytes++) {
    const marker = (yield* reader.take(1))[0]!
    if (marker !== fill) return marker
  }
  throw errors.malformed('nothing stands between its segments but padding')
}

/** Coded data: a marker in it is escaped by a zero, restarts may stand in it. Answers the marker that ends it. */
function* skipScan(reader: Reader): Walk<number> {
  let afterFill = false
  for (;;) {
    if (!(yield* reader.more())) throw errors.truncated()
    const { chunk } = reader
    let { at } = reader
    while (at < chunk.length) {
      if (afterFill) {
        const byte = chunk[at++]!
        afterFill = byte === fill
        if (afterFill || isCoded(byte)) continue
        reader.at = at
        return byte
      }
      const found = chunk.indexOf(fill, at)
      afterFill = found >= 0
      at = afterFill ? found + 1 : chunk.length
    }
    reader.at = at
  }
}

function isCoded(byte: number): boolean {
  return byte === 0 || (byte >= markers.restartFirst && byte <= markers.restartLast)
}
