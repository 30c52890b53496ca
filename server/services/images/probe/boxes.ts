/** Boxes of the ISO base media file format (ISO/IEC 14496-12): AVIF, HEIC and films are made of them. */
import { errors } from './errors.ts'
import type { Reader, Walk } from './reader.ts'

export const boxHeadBytes = 8
const largeBytes = 8
const largeFollows = 1
const toTheEnd = 0
/** Of a file, at its top level. Films in fragments have hundreds. */
const topBoxesMax = 2000

export interface BoxHead {
  type: string
  /** Infinite for one that goes on to the end of the file. */
  bodyBytes: number
}

/** The top level of a file: `walkBody` goes exactly over the body of the box it is given. */
export function* walkTopBoxes(reader: Reader, walkBody: (head: BoxHead) => Walk<void>): Walk<void> {
  for (let boxes = 0; yield* reader.more(); boxes++) {
    if (boxes === topBoxesMax) throw errors.malformed('it has too many parts')
    yield* walkBody(yield* takeBoxHead(reader))
  }
}

function* takeBoxHead(reader: Reader): Walk<BoxHead> {
  const head = yield* reader.take(boxHeadBytes)
  const type = head.toString('latin1', 4)
  const size = head.readUInt32BE()
  if (size === toTheEnd) return { type, bodyBytes: Number.POSITIVE_INFINITY }
  let bodyBytes = size - boxHeadBytes
  if (size === largeFollows) {
    const large = (yield* reader.take(largeBytes)).readBigUInt64BE()
    bodyBytes = Number(large) - boxHeadBytes - largeBytes
  }
  if (bodyBytes < 0 || !isType(type)) throw errors.malformed('one of its boxes is no box')
  return { type, bodyBytes }
}

/** What stands in four bytes is a type if it can be printed: nothing else is given out. */
function isType(type: string): boolean {
  return /^[\x20-\x7e\xa9]{4}$/.test(type)
}

export function* skipBody(reader: Reader, { bodyBytes }: BoxHead): Walk<void> {
  if (bodyBytes !== Number.POSITIVE_INFINITY) return yield* reader.skip(bodyBytes)
  while (yield* reader.more()) reader.at = reader.chunk.length
}

export interface Box {
  type: string
  body: Buffer
}

/** The boxes that a body in memory is made of. @throws image_malformed */
export function boxesIn(body: Buffer): Box[] {
  const boxes: Box[] = []
  for (let at = 0; at < body.length; ) {
    const left = body.length - at
    const stated = left >= boxHeadBytes ? body.readUInt32BE(at) : -1
    const size = stated === toTheEnd ? left : stated
    if (size < boxHeadBytes || size > left) throw errors.malformed('a box does not fit into the one around it')
    boxes.push({
      type: body.toString('latin1', at + 4, at + boxHeadBytes),
      body: body.subarray(at + boxHeadBytes, at + size),
    })
    at += size
  }
  return boxes
}

/** Reads big-endian numbers one after another. @throws image_malformed past the end */
export interface Fields {
  /** Of 0 to 4 bytes, or 8. */
  number(bytes: number): number
  text(bytes: number): string
  readonly left: number
}

export function fieldsOf(body: Buffer): Fields {
  let at = 0
  function advance(bytes: number) {
    if (at + bytes > body.length) throw errors.malformed('a box ends before its contents do')
    at += bytes
    return at - bytes
  }
  return {
    number(bytes) {
      const from = advance(bytes)
      if (bytes === 0) return 0
      return bytes === 8 ? Number(body.readBigUInt64BE(from)) : body.readUIntBE(from, bytes)
    },
    text: bytes => body.toString('latin1', advance(bytes), at),
    get left() {
      return body.length - at
    },
  }
}
