/**
 * What an image costs in memory, known before anything is decoded. Every number here was measured, as the most that a
 * process had above its idle self with pictures of 2 to 50 megapixels, and rounded up; `weigh.test.ts` measures again.
 */
import type { ImageFacts } from '../types.ts'
import { movingPixelsMax, pixelsOf, scaled, scaleOf, sidesMade, staysMoving, uprightSides } from './geometry.ts'
import { moves } from './transform.ts'
import type { FixedTransform, Work } from './types.ts'

const mib = 1024 * 1024
/** What libraries take for the smallest image. */
const baseBytes = 12 * mib
/** An image held uncompressed between two passes has at most so many pixels. */
export const heldPixelsMax = 2 ** 24
/** Of the default presets' largest. */
const presetPixels = 2048 * 2048
const presetBytesPerPixel = 16

/**
 * Most memory that decoding the file takes here, and making variants as large as the usual presets' of it, in bytes.
 * An image that weighs more than all the memory there is need not be taken.
 */
export function decodeBytesOf(facts: ImageFacts): number {
  const pixels = facts.width * facts.height
  const moving = moves(facts) ? Math.min(pixels * facts.frames, movingPixelsMax) * movingOutputBytesPerPixel : 0
  return totalOf(facts, Math.min(pixels, presetPixels) * presetBytesPerPixel + moving)
}

/** Most memory that a piece of work takes, in bytes. */
export function workBytesOf(work: Pick<Work, 'facts' | 'outputs' | 'describe'>): number {
  const outputs = work.outputs.map(({ transform }) => outputBytesOf(transform, work.facts))
  return totalOf(work.facts, heldBytesOf(work) + Math.max(0, ...outputs))
}

function totalOf(facts: ImageFacts, outputBytes: number): number {
  const { decoding, staying } = sourceBytesOf(facts)
  return Math.ceil(baseBytes + Math.max(decoding, staying + outputBytes))
}

/** Lines that libvips has at hand while it makes an image smaller, at most. JPEG comes in a smaller size already. */
const linesHeld = 2000
const jpegLinesHeld = 500
/** Of a progressive JPEG, for each pixel and channel: coefficients of two bytes. Most have a half less colour. */
const coefficientBytes = 2.2
/** Of an interlaced PNG and of a TIFF in one strip, for each of their bytes. */
const wholeFrame = 1.5
/** Without loss, as transparency always is. */
const webpBytesPerPixel = 7
/** With loss, it comes in a smaller size already. */
const lossyWebpBytesPerPixel = 2
/** For converting inks to colours. */
const inkBytes = 60 * mib
const gifBytesPerPixel = 8
/** Of each pixel of a frame, and the two before, on which it is drawn. */
const movingBytesPerPixel = 20
/** In the decoder and on the way to RGB; of more than 8 bits half as much again. */
const avifBytesPerPixel = 20

const inkChannels = 4

/** While it is decoded, and from then on to the work's end. */
function sourceBytesOf(facts: ImageFacts): { decoding: number; staying: number } {
  const { format, width, height, channels, progressive, bitsPerSample, frames } = facts
  const pixels = width * height
  const lineBytes = width * channels * (bitsPerSample > 8 ? 2 : 1)
  const lines = (most: number) => lineBytes * Math.min(height, most)
  const both = (bytes: number) => ({ decoding: bytes, staying: bytes })
  switch (format) {
    case 'jpeg':
      return both(
        lines(jpegLinesHeld) +
          (progressive ? coefficientBytes * pixels * channels : 0) +
          (channels === inkChannels ? inkBytes : 0),
      )
    case 'png':
      return both(progressive ? wholeFrame * lineBytes * height : lines(linesHeld))
    case 'tiff':
      return both(lines(linesHeld) + wholeFrame * lineBytes * height)
    case 'webp':
      return both(pixels * webpBytesOf(facts))
    case 'gif':
      return both(pixels * (frames > 1 ? movingBytesPerPixel : gifBytesPerPixel))
    case 'avif':
    case 'heic':
      return { decoding: pixels * avifBytesPerPixel * (bitsPerSample > 8 ? 1.5 : 1), staying: lineBytes * height }
  }
}

function webpBytesOf({ frames, progressive, channels }: ImageFacts): number {
  if (frames > 1) return movingBytesPerPixel
  return progressive || channels > 3 ? webpBytesPerPixel : lossyWebpBytesPerPixel
}

/** The held image itself, and as much again while it grows. */
const heldCopies = 2

/** As `making.ts` decides it. */
function heldBytesOf({ facts, outputs, describe = false }: Pick<Work, 'facts' | 'outputs' | 'describe'>): number {
  const sides = uprightSides(facts)
  const users = outputs.filter(({ transform }) => !transform.crop && !staysMoving(transform, facts))
  if (users.length + Number(describe) < 2) return 0
  const scales = users.map(({ transform }) => scaleOf(transform, sides))
  const pixels = pixelsOf(scaled(sides, Math.max(0, ...scales)))
  return pixels > heldPixelsMax ? 0 : pixels * facts.channels * heldCopies
}

/** For each pixel that is made, in the encoder and on the way to it. */
const encodedBytesPerPixel = { jpeg: 8, png: 5, webp: 12, avif: 42, gif: 32 }
/** Of what moves: all frames are held. */
const movingOutputBytesPerPixel = 8

function outputBytesOf(transform: FixedTransform, facts: ImageFacts): number {
  const source = transform.crop ?? uprightSides(facts)
  const pixels = pixelsOf(sidesMade(transform, source))
  if (staysMoving(transform, facts)) return pixels * facts.frames * movingOutputBytesPerPixel
  return pixels * encodedBytesPerPixel[transform.format]
}
