/** Files that were damaged at random, the same ones every time: whatever they hold, there are facts or a clear refusal. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isAppError } from '#platform/errors.ts'
import { makeRandom } from '#platform/random.ts'
import { collectGarbage } from '../../../../test/support/garbage.ts'
import { gridOf, pngChunk, pngOf } from '../../../../test/support/picture-parts.ts'
import { makePicture } from '../../../../test/support/pictures.ts'
import { inputFormats } from '../types.ts'
import { makeProbe } from './probe.ts'

const pixelsMax = 100_000_000
const casesPerPicture = 500
/** What one takes at most: commonly it is some microseconds. */
const caseMsMax = 1000
const size = { width: 64, height: 48, kind: 'photo', seed: 11 } as const
const random = makeRandom(20)
const below = (bound: number) => Math.floor(random() * bound)

const pictures: Record<string, Buffer> = {
  jpeg: await makePicture({ ...size, format: 'jpeg', orientation: 6, icc: 'p3' }),
  progressive: await makePicture({ ...size, format: 'jpeg', progressive: true }),
  png: await makePicture({ ...size, format: 'png', orientation: 3, icc: 'p3', alpha: true }),
  gif: await makePicture({ ...size, format: 'gif', frames: 4 }),
  webp: await makePicture({ ...size, format: 'webp', orientation: 2, icc: 'p3' }),
  animated: await makePicture({ ...size, format: 'webp', frames: 4 }),
  avif: await makePicture({ ...size, format: 'avif', alpha: true, orientation: 5 }),
  tiff: await makePicture({ ...size, format: 'tiff', frames: 3 }),
  heic: gridOf({ coding: 'hvc1', rows: 2, columns: 3, width: 150, height: 100, tileWidth: 64, tileHeight: 64 }),
  texts: pngOf({ width: 9, height: 9, before: [pngChunk('iTXt', 'a\0\x01\0\0\0'), pngChunk('zTXt', 'a\0\0x')] }),
}

/** Numbers at which parsers go wrong. */
const edges = [0, 1, 2, 7, 8, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff]

/** Where structure is: most changes go to the first bytes and the last. */
function placeIn(bytes: Buffer): number {
  const near = Math.min(bytes.length, 800)
  return random() < 0.7 ? below(near) : below(bytes.length)
}

const changes: ((bytes: Buffer) => Buffer)[] = [
  bytes => {
    bytes[placeIn(bytes)] = below(256)
    return bytes
  },
  bytes => {
    const at = placeIn(bytes)
    bytes[at] = bytes[at]! ^ (1 << below(8))
    return bytes
  },
  bytes => {
    const at = Math.min(placeIn(bytes), Math.max(0, bytes.length - 4))
    const edge = edges[below(edges.length)]!
    if (bytes.length >= 4) random() < 0.5 ? bytes.writeUInt32BE(edge, at) : bytes.writeUInt32LE(edge, at)
    return bytes
  },
  bytes => bytes.subarray(0, below(bytes.length + 1)),
  bytes => {
    const [from, to] = [placeIn(bytes), placeIn(bytes)]
    const piece = bytes.subarray(from, from + below(200))
    return Buffer.concat([bytes.subarray(0, to), piece, bytes.subarray(to)])
  },
  bytes => {
    const from = placeIn(bytes)
    return Buffer.concat([bytes.subarray(0, from), bytes.subarray(from + below(60))])
  },
]

function damage(picture: Buffer): Buffer {
  let bytes: Buffer = Buffer.from(picture)
  for (let left = 1 + below(4); left > 0 && bytes.length > 0; left--) bytes = changes[below(changes.length)]!(bytes)
  return bytes
}

/** @returns what was said of it, so that two ways of cutting can be compared */
function look(bytes: Buffer, chunkBytes: number): string {
  try {
    const probe = makeProbe({ pixelsMax, formats: inputFormats })
    for (let at = 0; at < bytes.length; at += chunkBytes) probe.write(bytes.subarray(at, at + chunkBytes))
    const facts = probe.end()
    for (const value of Object.values(facts)) assert.ok(typeof value !== 'number' || Number.isSafeInteger(value))
    assert.ok(
      facts.width > 0 && facts.height > 0 && facts.frames > 0 && facts.orientation >= 1 && facts.orientation <= 8,
    )
    assert.ok(facts.width * facts.height * facts.frames <= pixelsMax)
    return JSON.stringify(facts)
  } catch (error) {
    if (!isAppError(error)) throw error
    assert.ok(error.status === 415 || error.status === 422)
    return error.code
  }
}

for (const [name, picture] of Object.entries(pictures)) {
  test(`${name}: damaged at random, it has facts or a refusal, the same however it is cut`, () => {
    const said = new Set<string>()
    for (let n = 0; n < casesPerPicture; n++) {
      const bytes = damage(picture)
      const begun = performance.now()
      try {
        const whole = look(bytes, Number.POSITIVE_INFINITY)
        assert.equal(look(bytes, 1 + below(500)), whole)
        said.add(whole)
      } catch (error) {
        throw new Error(`case ${n}: ${bytes.toString('base64').slice(0, 4000)}`, { cause: error })
      }
      assert.ok(performance.now() - begun < caseMsMax, `case ${n} took ${performance.now() - begun} ms`)
    }
    assert.ok(said.has('image_truncated') && said.size >= 4, [...said].join(' '))
  })
}

test('however long the file is, little of it is held', () => {
  const mib = 1024 * 1024
  const endless: Record<string, Buffer> = {
    jpeg: pictures.jpeg!.subarray(0, -2),
    png: Buffer.concat([pngOf({ width: 9, height: 9 }).subarray(0, 33), Buffer.from('\x7f\0\0\0IDAT', 'latin1')]),
    avif: Buffer.concat([pictures.avif!, Buffer.from('\0\0\0\0free', 'latin1')]),
    tiff: pictures.tiff!,
  }
  for (const [name, start] of Object.entries(endless)) {
    collectGarbage()
    const before = process.memoryUsage()
    const probe = makeProbe({ pixelsMax })
    probe.write(start)
    for (let n = 0; n < 256; n++) probe.write(Buffer.alloc(mib, 0x11))
    collectGarbage()
    const after = process.memoryUsage()
    const grown = after.heapUsed - before.heapUsed + after.arrayBuffers - before.arrayBuffers
    assert.ok(grown < 64 * mib, `${name}: ${Math.round(grown / mib)} MiB of 256`)
  }
})
