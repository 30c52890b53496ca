/**
 * Looks at a file while it streams past: what it is, how large a picture, and whether its structure is sound to its last
 * byte. Nothing is decoded. What is wrong is thrown as soon as the bytes tell.
 */
import type { ImageFacts, InputFormat } from '../types.ts'
import { errors } from './errors.ts'
import { walkGif } from './gif.ts'
import { walkIsobmff } from './isobmff.ts'
import { walkJpeg } from './jpeg.ts'
import { defaultLimits, type ProbeLimits } from './limits.ts'
import { walkPng } from './png.ts'
import { makeReader, type Reader, type Walk } from './reader.ts'
import { findContainer, mayBegin, nameOther, sniffBytes } from './sniff.ts'
import { archiveTailBytes, checkNoArchive, makeTail } from './tail.ts'
import { walkTiff } from './tiff.ts'
import { checkSamsungEnd, walkTrailing } from './trailing.ts'
import { walkWebp } from './webp.ts'

export interface Probe {
  /**
   * The next bytes of the file, cut anywhere. They must not be changed afterwards.
   * @throws an AppError of errors.ts, the same again if it is called again
   */
  write(chunk: Buffer): void
  /** That was all. @throws an AppError of errors.ts */
  end(): ImageFacts
}

/** @param given what is left out is as in `defaultLimits`: HEIC is taken only where `formats` names it */
export function makeProbe(given: Pick<ProbeLimits, 'pixelsMax'> & Partial<ProbeLimits>): Probe {
  const limits = { ...defaultLimits, ...given }
  const reader = makeReader()
  const tail = makeTail(archiveTailBytes)
  const walk = walkFile(reader, limits)
  let found: Found | undefined
  let refusal: unknown

  function advance() {
    try {
      const step = walk.next()
      if (step.done) found = step.value
    } catch (error) {
      refusal = error
      throw error
    }
  }

  // Up to where it first needs a byte.
  advance()

  return {
    write(chunk) {
      if (refusal) throw refusal
      if (chunk.length === 0) return
      tail.push(chunk)
      reader.feed(chunk)
      advance()
    },
    end() {
      if (refusal) throw refusal
      reader.end()
      advance()
      return finish(found!, tail.bytes())
    },
  }
}

interface Found {
  facts: ImageFacts
  mustEndAsSamsungs: boolean
}

function finish({ facts, mustEndAsSamsungs }: Found, tail: Buffer): ImageFacts {
  if (mustEndAsSamsungs) checkSamsungEnd(tail)
  checkNoArchive(tail)
  return facts
}

const walks = { jpeg: walkJpeg, png: walkPng, gif: walkGif, webp: walkWebp, tiff: walkTiff, isobmff: walkIsobmff }

function* walkFile(reader: Reader, limits: ProbeLimits): Walk<Found> {
  const head = yield* reader.peek(sniffBytes)
  if (head.length === 0) throw errors.empty()
  const container = findContainer(head)
  if (!container) {
    if (head.length < sniffBytes && mayBegin(head)) throw errors.truncated()
    throw errors.formatUnknown(nameOther(head), limits.formats)
  }
  if (container !== 'isobmff') checkTaken(container, limits)
  const facts = yield* walks[container](reader, limits)
  checkTaken(facts.format, limits)
  return { facts, mustEndAsSamsungs: yield* walkTrailing(reader, facts.format, limits) }
}

function checkTaken(format: InputFormat, { formats }: ProbeLimits) {
  if (!formats.includes(format)) throw errors.formatUnknown(`an image of the format ${format}`, formats)
}
