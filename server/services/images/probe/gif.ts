/** GIF 87a and 89a: a screen, then extensions and frames, each followed by sub-blocks of at most 255 bytes, then the end. */
import type { ImageFacts } from '../types.ts'
import { errors } from './errors.ts'
import { type Allowance, checkSize, makeAllowance, type ProbeLimits } from './limits.ts'
import { takeMetadata } from './metadata.ts'
import type { Reader, Walk } from './reader.ts'

const screenBytes = 13
const frameBytes = 9
const blocks = { extension: 0x21, frame: 0x2c, end: 0x3b } as const
const control = 0xf9
const controlBytes = 4
const hasTable = 0x80
const isTransparent = 0x01
const channels = 3

export function* walkGif(reader: Reader, limits: ProbeLimits): Walk<ImageFacts> {
  const allowance = makeAllowance(limits)
  const screen = yield* reader.take(screenBytes)
  const facts: ImageFacts = {
    format: 'gif',
    width: screen.readUInt16LE(6),
    height: screen.readUInt16LE(8),
    orientation: 1,
    frames: 0,
    progressive: false,
    bitsPerSample: 8,
    channels,
  }
  checkSize({ ...facts, frames: 1 }, limits)
  yield* reader.skip(tableBytes(screen[10]!))
  for (;;) {
    const block = (yield* reader.take(1))[0]
    if (block === blocks.frame) yield* walkFrame(reader, facts, limits)
    else if (block === blocks.extension) yield* walkExtension(reader, facts, allowance)
    else if (block === blocks.end) break
    else throw errors.malformed('something stands between its frames')
  }
  if (facts.frames === 0) throw errors.malformed('it has no picture in it')
  return facts
}

/** Of a colour table, by the flags that say whether there is one. */
function tableBytes(flags: number): number {
  return flags & hasTable ? 3 << ((flags & 0x07) + 1) : 0
}

function* walkFrame(reader: Reader, facts: ImageFacts, limits: ProbeLimits): Walk<void> {
  const frame = yield* reader.take(frameBytes)
  const right = frame.readUInt16LE(0) + frame.readUInt16LE(4)
  const bottom = frame.readUInt16LE(2) + frame.readUInt16LE(6)
  if (right > facts.width || bottom > facts.height) throw errors.malformed('a frame lies outside of the picture')
  facts.frames++
  checkSize(facts, limits)
  const codeSizeBytes = 1
  yield* reader.skip(tableBytes(frame[8]!) + codeSizeBytes)
  yield* skipBlocks(reader)
}

function* walkExtension(reader: Reader, facts: ImageFacts, allowance: Allowance): Walk<void> {
  const label = (yield* reader.take(1))[0]
  if (label === control) {
    allowance.addMetadata(controlBytes)
    const length = (yield* reader.take(1))[0]!
    if (length !== controlBytes) throw errors.malformed('a frame’s settings have a wrong length')
    if ((yield* reader.take(length))[0]! & isTransparent) facts.channels = channels + 1
    return yield* skipBlocks(reader)
  }
  // Comments and what programs add. XMP stands there as a text whose letters are taken for lengths, so they are looked at
  // too.
  for (;;) {
    const [length] = yield* reader.peek(1)
    if (length === undefined) throw errors.truncated()
    yield* takeMetadata(reader, 1 + length, allowance)
    if (length === 0) return
  }
}

/** Goes over sub-blocks, up to the empty one. */
function* skipBlocks(reader: Reader): Walk<void> {
  for (;;) {
    if (!(yield* reader.more())) throw errors.truncated()
    const { chunk } = reader
    let { at } = reader
    // Those that are wholly at hand, without asking for each.
    for (let length = chunk[at]!; at + length < chunk.length; length = chunk[at]!) {
      at += 1 + length
      if (length === 0) {
        reader.at = at
        return
      }
      if (at >= chunk.length) break
    }
    reader.at = at
    if (at < chunk.length) yield* reader.skip((yield* reader.take(1))[0]!)
  }
}
