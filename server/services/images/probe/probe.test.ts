import assert from 'node:assert/strict'
import { test } from 'node:test'
import sharp from 'sharp'
import { isAppError } from '#platform/errors.ts'
import { hostilePictures } from '../../../../test/support/hostile-pictures.ts'
import {
  box,
  exifSegment,
  flatJpeg,
  gifOf,
  gridOf,
  pngChunk,
  pngOf,
  tiffOf,
  uint,
  withSegments,
} from '../../../../test/support/picture-parts.ts'
import { makeJpegOfSize, makePicture, type PictureAsked } from '../../../../test/support/pictures.ts'
import { type ImageFacts, inputFormats } from '../types.ts'
import type { ProbeLimits } from './limits.ts'
import { makeProbe } from './probe.ts'

const mib = 1024 * 1024
const pixelsMax = 100_000_000
const chunkings = [1, 7, 65_536, Number.POSITIVE_INFINITY]
const size = { width: 210, height: 90, kind: 'photo', seed: 3 } as const

function probe(bytes: Buffer, chunkBytes = Number.POSITIVE_INFINITY, more: Partial<ProbeLimits> = {}): ImageFacts {
  const looked = makeProbe({ pixelsMax, ...more })
  for (let at = 0; at < bytes.length; at += chunkBytes) looked.write(bytes.subarray(at, at + chunkBytes))
  return looked.end()
}

/** The code of the refusal, or undefined. */
function codeOf(work: () => unknown): string | undefined {
  try {
    work()
    return undefined
  } catch (error) {
    assert.ok(isAppError(error), String(error instanceof Error ? error.stack : error))
    assert.ok(error.message.length > 20)
    return error.code
  }
}

const asked: Omit<PictureAsked, keyof typeof size>[] = [
  { format: 'jpeg' },
  { format: 'jpeg', progressive: true, icc: 'p3' },
  { format: 'png' },
  { format: 'png', progressive: true, alpha: true, icc: 'srgb' },
  { format: 'gif' },
  { format: 'gif', frames: 5, alpha: true },
  { format: 'webp' },
  { format: 'webp', alpha: true, icc: 'p3' },
  { format: 'webp', frames: 4 },
  { format: 'avif' },
  { format: 'avif', alpha: true },
  { format: 'tiff' },
  { format: 'tiff', frames: 3, alpha: true },
]

for (const each of asked) {
  const name = Object.entries(each).map(([key, value]) => (key === 'format' ? value : `${key} ${value}`))
  test(`${name.join(', ')}: the facts are the decoder’s, however the bytes are cut`, async () => {
    const bytes = await makePicture({ ...size, ...each })
    const known = await sharp(bytes, { animated: true }).metadata()
    const expected = {
      format: each.format,
      width: size.width,
      height: size.height,
      orientation: 1,
      frames: each.frames ?? 1,
      progressive: known.isProgressive,
      bitsPerSample: 8,
      channels: known.channels,
    }
    assert.deepEqual([known.width, known.pageHeight ?? known.height], [size.width, size.height])
    for (const chunkBytes of chunkings) assert.deepEqual(probe(bytes, chunkBytes), expected, `by ${chunkBytes}`)
  })
}

test('every orientation is found, in every format that has one', async () => {
  for (const format of ['jpeg', 'png', 'webp', 'avif', 'tiff'] as const) {
    for (let orientation = 1; orientation <= 8; orientation++) {
      const facts = probe(await makePicture({ ...size, format, kind: 'flat', orientation }))
      assert.deepEqual([facts.orientation, facts.width], [orientation, size.width], format)
    }
  }
})

test('EXIF in either byte order is read, and what is wrong in it is not', async () => {
  const jpeg = await makePicture({ ...size, format: 'jpeg' })
  const big = Buffer.from(
    '\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0',
    'latin1',
  )
  const cases: [segment: Buffer, orientation: number][] = [
    [exifSegment([[0x112, 3, 1, 5]]), 5],
    [
      exifSegment(
        [
          [0x10f, 2, 4, 0],
          [0x112, 3, 1, 7],
        ],
        8,
      ),
      7,
    ],
    [big, 8],
    [exifSegment([[0x112, 3, 1, 9]]), 1],
    [exifSegment([[0x112, 2, 1, 5]]), 1],
    [exifSegment([]), 1],
  ]
  for (const [segment, orientation] of cases) assert.equal(probe(withSegments(jpeg, segment)).orientation, orientation)
})

test('kinds that sharp does not write are known too', async () => {
  const jpeg = await makePicture({ ...size, format: 'jpeg' })
  const cmyk = await sharp(jpeg).toColourspace('cmyk').jpeg().toBuffer()
  const grey = flatJpeg({ width: 30, height: 20 })
  assert.deepEqual([probe(cmyk).channels, probe(grey).channels], [4, 1])
  const still = (width: number, bits: number, colour: number, before: Buffer[] = []) =>
    probe(pngOf({ width, height: 4, bits, colour, before }))
  assert.deepEqual([still(9, 1, 0).bitsPerSample, still(9, 16, 2).bitsPerSample], [1, 16])
  assert.equal(still(9, 8, 3, [pngChunk('PLTE', 'abc')]).channels, 3)
  assert.equal(still(9, 8, 3, [pngChunk('PLTE', 'abc'), pngChunk('tRNS', '\0')]).channels, 4)
  const animation = pngChunk('acTL', Buffer.from([0, 0, 0, 7, 0, 0, 0, 0]))
  assert.equal(still(9, 8, 2, [animation]).frames, 7)
  assert.equal(probe(gifOf({ width: 5, height: 5, frames: 40 })).frames, 40)
  const deep = await sharp(jpeg).avif({ bitdepth: 10, effort: 0 }).toBuffer()
  assert.equal(probe(deep).bitsPerSample, 10)
})

test('a picture of tiles has the size of the whole', () => {
  const grid = { rows: 2, columns: 3, width: 1500, height: 1000, tileWidth: 512, tileHeight: 512 }
  const formats = inputFormats
  for (const [coding, format] of [
    ['hvc1', 'heic'],
    ['av01', 'avif'],
  ] as const) {
    const facts = probe(gridOf({ coding, ...grid }), 7, { formats })
    assert.deepEqual([facts.format, facts.width, facts.height], [format, 1500, 1000])
  }
  const heic = gridOf({ coding: 'hvc1', ...grid })
  assert.equal(
    codeOf(() => probe(heic)),
    'image_format_unknown',
    'HEIC is taken only where it can be decoded',
  )
})

test('what phones put behind a JPEG is taken', async () => {
  const jpeg = await makePicture({ ...size, format: 'jpeg' })
  const film = Buffer.concat([box('ftyp', Buffer.from('mp42\0\0\0\0')), box('mdat', Buffer.alloc(9000)), box('moov')])
  const block = Buffer.concat([Buffer.from('\0\0\x01\x0a\x04\0\0\0name', 'latin1'), Buffer.alloc(40, 7)])
  const directory = Buffer.concat([Buffer.from('SEFH'), Buffer.alloc(20)])
  const length = Buffer.alloc(4)
  length.writeUInt32LE(directory.length)
  const samsung = Buffer.concat([block, directory, length, Buffer.from('SEFT')])
  const expected = probe(jpeg)
  for (const more of [film, samsung, jpeg, Buffer.alloc(70_000), Buffer.concat([Buffer.alloc(99), jpeg, film])])
    for (const chunkBytes of chunkings) assert.deepEqual(probe(Buffer.concat([jpeg, more]), chunkBytes), expected)
  const cut = Buffer.concat([jpeg, samsung.subarray(0, -1)])
  assert.equal(
    codeOf(() => probe(cut)),
    'image_has_trailing_data',
  )
  assert.equal(
    codeOf(() => probe(Buffer.concat([jpeg, film.subarray(0, -9)]))),
    'image_truncated',
  )
})

test('every hostile picture is refused with its code, however its bytes are cut', () => {
  for (const { name, bytes: make, expect, code } of hostilePictures()) {
    const bytes = make()
    // That one is weighed when its facts are known.
    const expected = expect === 'refused at upload' && code !== 'image_too_heavy' ? code : undefined
    const cuts = bytes.length < 100_000 ? chunkings : [65_521, Number.POSITIVE_INFINITY]
    for (const cut of cuts)
      assert.equal(
        codeOf(() => probe(bytes, cut)),
        expected,
        `${name}, by ${cut}`,
      )
  }
})

test('a size that is too large is refused by the first bytes', async () => {
  const limits = { pixelsMax: 5000 }
  const early = { jpeg: 1000, png: 33, gif: 13, webp: 40, avif: 1000 }
  for (const [format, bytesMax] of Object.entries(early)) {
    const bytes = await makePicture({ ...size, format: format as keyof typeof early })
    const code = codeOf(() => makeProbe(limits).write(bytes.subarray(0, bytesMax)))
    assert.equal(code, 'image_too_large_in_pixels', format)
  }
})

test('limits are taken up to themselves and not beyond', () => {
  const side = (sideMax: number) => codeOf(() => probe(flatJpeg({ width: 80, height: 8 }), 99, { sideMax }))
  assert.deepEqual([side(80), side(79)], [undefined, 'image_side_too_long'])
  const pixels = (max: number) =>
    codeOf(() => probe(gifOf({ width: 10, height: 10, frames: 3 }), 99, { pixelsMax: max }))
  assert.deepEqual([pixels(300), pixels(299)], [undefined, 'image_too_large_in_pixels'])
  const frames = (framesMax: number) =>
    codeOf(() => probe(gifOf({ width: 1, height: 1, frames: 3 }), 99, { framesMax }))
  assert.deepEqual([frames(3), frames(2)], [undefined, 'image_too_many_frames'])
  const progressive = flatJpeg({ width: 80, height: 8, frame: 0xc2, scans: 4 })
  const scans = (scansMax: number) => codeOf(() => probe(progressive, 99, { scansMax }))
  assert.deepEqual([scans(5), scans(4)], [undefined, 'image_too_many_scans'])
})

test('a refusal is thrown again by whatever comes after it', () => {
  const looked = makeProbe({ pixelsMax })
  const bad = Buffer.from('<svg xmlns="http://www.w3.org/2000/svg"/>')
  const codes = [() => looked.write(bad), () => looked.write(bad), () => looked.end()].map(codeOf)
  assert.deepEqual(codes, Array(3).fill('image_format_unknown'))
})

test('pages of a TIFF in big endian are counted', () => {
  const entries = [
    [256, 3, 1, 5],
    [257, 3, 1, 6],
    [258, 3, 1, 8],
    [277, 3, 1, 1],
  ]
  assert.equal(probe(tiffOf([{ entries }, { entries }])).frames, 2)
  const directory = Buffer.concat([
    uint(2, 4),
    ...entries.map(([tag, type, count, value]) =>
      Buffer.concat([uint(2, tag!), uint(2, type!), uint(4, count!), uint(2, value!), uint(2, 0)]),
    ),
    uint(4, 0),
  ])
  const facts = probe(Buffer.concat([Buffer.from('MM\0*\0\0\0\x08', 'latin1'), directory]), 1)
  assert.deepEqual([facts.width, facts.height, facts.frames], [5, 6, 1])
})

test('a large JPEG costs far less time than it takes to send', async () => {
  const bytes = await makeJpegOfSize(mib, 1)
  const rounds = 50
  const rate = (chunkBytes: number) => {
    const begun = performance.now()
    for (let n = 0; n < rounds; n++) probe(bytes, chunkBytes)
    return (rounds * bytes.length) / 1e6 / ((performance.now() - begun) / 1000)
  }
  rate(65_536)
  // It is some GB/s; a tenth of that is left for a machine that is busy.
  assert.ok(rate(65_536) > 100, `${rate(65_536)} MB/s`)
})
