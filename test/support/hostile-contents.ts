/** Hostile pictures whose first bytes are sound: what they carry, how many pictures they are, and broken data. */
import { constants, deflateSync } from 'node:zlib'
import {
  avif,
  cmyk,
  failing,
  type HostilePicture,
  jpeg,
  mib,
  packedText,
  pageEntries,
  png,
  refused,
  tinyWebp,
  webp,
  working,
} from './hostile-samples.ts'
import {
  animatedWebp,
  box,
  exifSegment,
  flatJpeg,
  gifOf,
  gridOf,
  jpegEnd,
  jpegProfile,
  jpegSegment,
  pngChunk,
  pngOf,
  tiffOf,
  uint,
  webpChunk,
  webpExtended,
  webpOf,
  withSegments,
} from './picture-parts.ts'

/** Profiles, texts and EXIF that are too much, or lie. */
export function laden(): HostilePicture[] {
  const bomb = deflateSync(Buffer.alloc(16 * mib))
  const small = { width: 9, height: 9 }
  const profile = (data: Buffer) => pngChunk('iCCP', Buffer.concat([Buffer.from('p\0\0'), data]))
  const long = Buffer.concat([Buffer.from('note\0\x01\0\0\0', 'latin1'), bomb])
  const parts = jpegProfile(Buffer.alloc(200_000, 'profile'))
  return [
    refused('image_profile_too_large', 'a JPEG with a profile of 16 MiB', () =>
      withSegments(jpeg, ...jpegProfile(Buffer.alloc(255 * 65_000))),
    ),
    refused('image_profile_too_large', 'a PNG with a profile that unpacks to 16 MiB', () =>
      pngOf({ ...small, before: [profile(bomb)] }),
    ),
    refused('image_malformed', 'a profile of which a part is missing', () => withSegments(jpeg, ...parts.slice(1))),
    refused('image_malformed', 'a profile of which a part comes twice', () => withSegments(jpeg, parts[0]!, ...parts)),
    working('a JPEG with noise as its profile', () => withSegments(jpeg, ...parts)),
    working('a PNG with a profile that is no deflate', () =>
      pngOf({ ...small, before: [profile(Buffer.alloc(500, 'x'))] }),
    ),
    refused('image_metadata_too_large', 'a text that unpacks to 16 MiB', () =>
      pngOf({ ...small, before: [packedText(Buffer.alloc(16 * mib))] }),
    ),
    refused('image_metadata_too_large', 'an international one', () =>
      pngOf({ ...small, after: [pngChunk('iTXt', long)] }),
    ),
    refused('image_metadata_too_large', '20 texts of 1 MiB each', () =>
      pngOf({ ...small, before: Array(20).fill(packedText(Buffer.alloc(mib))) }),
    ),
    refused('image_metadata_too_large', 'a JPEG of 10000 empty comments', () =>
      withSegments(jpeg, ...Array(10_000).fill(jpegSegment(0xfe))),
    ),
    refused('image_metadata_too_large', 'a JPEG with 13 MB of comments', () =>
      withSegments(jpeg, ...Array(200).fill(jpegSegment(0xfe, Buffer.alloc(65_000)))),
    ),
    refused('image_metadata_too_large', '20 texts that unpack to 7 MiB and then are damaged', () =>
      pngOf({ ...small, before: Array(20).fill(damagedText()) }),
    ),
    refused('image_malformed', 'a JPEG with 1 MiB of padding between segments', () =>
      withSegments(jpeg, Buffer.alloc(mib, 0xff)),
    ),
    working('EXIF whose directory is followed by itself', () => withSegments(jpeg, exifSegment([[0x112, 3, 1, 1]], 8))),
    working('EXIF whose parts lead back to it', () =>
      withSegments(
        jpeg,
        exifSegment([
          [0x8769, 4, 1, 8],
          [0x8825, 4, 1, 8],
          [0xa005, 4, 1, 8],
        ]),
      ),
    ),
    working('EXIF with an orientation of 99', () => withSegments(jpeg, exifSegment([[0x112, 3, 1, 99]]))),
    working('EXIF with an orientation that is no number', () =>
      withSegments(jpeg, exifSegment([[0x112, 2, 2 ** 32 - 1, 2 ** 31]])),
    ),
    working('EXIF with a preview of 4 GB', () =>
      withSegments(
        jpeg,
        exifSegment([
          [0x201, 4, 1, 8],
          [0x202, 4, 1, 2 ** 32 - 1],
        ]),
      ),
    ),
    working('EXIF with a directory far beyond its end', () =>
      withSegments(jpeg, jpegSegment(0xe1, 'Exif\0\0II*\0\xff\xff\xff\xff')),
    ),
  ]
}

/** Its last block is of a kind that there is not. */
function damagedText(): Buffer {
  const unended = deflateSync(Buffer.alloc(7 * mib), { finishFlush: constants.Z_SYNC_FLUSH })
  return pngChunk('zTXt', Buffer.concat([Buffer.from('note\0\0'), unended, Buffer.from([7])]))
}

export function animations(): HostilePicture[] {
  const frames = 10_000
  const stated = Buffer.alloc(8)
  stated.writeUInt32BE(2 ** 32 - 1)
  return [
    refused('image_too_many_frames', 'a GIF of 10000 frames', () => gifOf({ width: 1, height: 1, frames })),
    refused('image_too_many_frames', 'a WebP of 10000 frames', () =>
      animatedWebp(tinyWebp, { width: 1, height: 1 }, frames),
    ),
    refused('image_too_large_in_pixels', 'a GIF of 500 frames of 1000 × 1000', () =>
      gifOf({ width: 1000, height: 1000, frames: 500 }),
    ),
    refused('image_too_many_frames', 'a PNG that claims 2^32 − 1 frames', () =>
      pngOf({ width: 9, height: 9, before: [pngChunk('acTL', stated)] }),
    ),
    refused('image_too_many_frames', 'a TIFF of 2000 pages', () =>
      tiffOf(Array.from({ length: 2000 }, () => ({ entries: pageEntries(8, 8) }))),
    ),
    refused('image_malformed', 'a GIF without a picture', () => gifOf({ width: 9, height: 9, frames: 0 })),
    refused('image_malformed', 'a GIF of 0 × 0', () => gifOf({ width: 0, height: 0, frames: 1 })),
    refused('image_malformed', 'a GIF whose frame is wider than its screen', () =>
      gifOf({ width: 9, height: 9, frames: 1, frameWidth: 60_000 }),
    ),
    refused('image_malformed', 'a WebP whose frames are larger than their pictures', () =>
      animatedWebp(tinyWebp, { width: 9, height: 9 }, 2),
    ),
    refused('image_malformed', 'a WebP whose frame lies outside', () => {
      const bytes = animatedWebp(tinyWebp, { width: 1, height: 1 }, 2)
      return patched(bytes, bytes.indexOf('ANMF') + 8, 5)
    }),
    refused('image_metadata_too_large', 'a WebP of 10000 empty chunks', () =>
      webpOf([webpExtended(1, 1), tinyWebp.subarray(12), ...Array(10_000).fill(webpChunk('ALPH', Buffer.alloc(0)))]),
    ),
    working('a GIF of 200 frames', () => gifOf({ width: 40, height: 40, frames: 200 })),
  ]
}

export function tiles(): HostilePicture[] {
  const bomb = { rows: 250, columns: 200, width: 9000, height: 9000, tileWidth: 9000, tileHeight: 9000 }
  const many = { rows: 16, columns: 16, width: 64, height: 64, tileWidth: 8192, tileHeight: 8192 }
  return [
    refused('image_malformed', 'a HEIC of 50000 tiles, each as large as the whole', () =>
      gridOf({ coding: 'hvc1', ...bomb }),
    ),
    refused('image_malformed', 'an AVIF of 50000 tiles, each as large as the whole', () =>
      gridOf({ coding: 'av01', ...bomb }),
    ),
    refused('image_malformed', 'an AVIF of 64 × 64 made of 256 tiles of 8192 × 8192', () =>
      gridOf({ coding: 'av01', ...many }),
    ),
    refused('image_side_too_long', 'an AVIF of 2^31 × 2^31', () => withSize(2 ** 31, 2 ** 31)),
    refused('image_too_large_in_pixels', 'an AVIF that says it has 20000 × 20000', () => withSize(20_000, 20_000)),
    refused('image_malformed', 'an AVIF of 0 × 0', () => withSize(0, 0)),
    failing('an AVIF that says it is smaller than it is', () => withSize(8, 8)),
    refused('image_malformed', 'an AVIF of the same tile 50000 times', () => withSameTile(250, 200)),
    refused('image_malformed', 'an AVIF of 5000 empty boxes', () =>
      Buffer.concat([avif, ...Array(5000).fill(box('free'))]),
    ),
    refused('image_malformed', 'an AVIF with a property 20000 times', () => withProperties(20_000)),
    refused('image_malformed', 'an AVIF with a box longer than what it lies in', () => withSizeOf('ispe', mib)),
    refused('image_truncated', 'an AVIF whose data ends early, in a box that goes on to the end', () =>
      withSizeOf('mdat', 0).subarray(0, -300),
    ),
    refused('image_malformed', 'an AVIF whose parts lie in 6 million places', () => withPlaces(100)),
    refused('image_malformed', 'an AVIF with a `meta` of 4 GB', () => withSizeOf('meta', 2 ** 32 - 1)),
    refused('image_malformed', 'an AVIF with a box of 3 bytes', () => withSizeOf('meta', 3)),
  ]
}

function withSize(width: number, height: number): Buffer {
  const bytes = Buffer.from(avif)
  const at = bytes.indexOf('ispe') + 8
  bytes.writeUInt32BE(width, at)
  bytes.writeUInt32BE(height, at + 4)
  return bytes
}

const oneTile = { coding: 'av01', rows: 1, columns: 1, width: 64, height: 64, tileWidth: 64, tileHeight: 64 }

/** Each says that it has 65535 places, which take no bytes. */
function withPlaces(items: number): Buffer {
  const place = Buffer.concat([1, 0, 0, 65_535].map(value => uint(2, value)))
  const places = box('iloc', [1, 0, 0, 0, 0, 0], uint(2, items), Buffer.alloc(place.length * items, place))
  return withBox(gridOf(oneTile), places, ['meta'])
}

function withProperties(count: number): Buffer {
  const use = Buffer.concat([uint(2, 1), Buffer.from([1, 1])])
  const ofTile = Buffer.concat([uint(2, 2), Buffer.from([1, 2])])
  const uses = box('ipma', [0, 0, 0, 0], uint(4, count + 1), ofTile, Buffer.alloc(use.length * count, use))
  return withBox(gridOf(oneTile), uses, ['meta', 'iprp'])
}

/** Of 64 × 64, made of one tile many times over. */
function withSameTile(rows: number, columns: number): Buffer {
  const count = rows * columns
  const uses = Buffer.alloc(2 * count, uint(2, 2))
  const iref = box('iref', [0, 0, 0, 0], box('dimg', uint(2, 1), uint(2, count), uses))
  const idat = box('idat', [0, 0, rows - 1, columns - 1], uint(2, 64), uint(2, 64))
  const bytes = gridOf({ ...oneTile, tileWidth: 1, tileHeight: 1 })
  return withBox(withBox(bytes, iref, ['meta']), idat, ['meta'])
}

/** Exchanges the box of that type for another. */
function withBox(bytes: Buffer, next: Buffer, around: string[]): Buffer {
  const at = bytes.indexOf(next.subarray(4, 8)) - 4
  const before = bytes.readUInt32BE(at)
  const all = Buffer.concat([bytes.subarray(0, at), next, bytes.subarray(at + before)])
  for (const type of around) {
    const size = all.indexOf(type) - 4
    all.writeUInt32BE(all.readUInt32BE(size) + next.length - before, size)
  }
  return all
}

function withSizeOf(type: string, stated: number): Buffer {
  const bytes = Buffer.from(avif)
  bytes.writeUInt32BE(stated, bytes.indexOf(type) - 4)
  return bytes
}

/** Kinds of the formats that few programs write. */
export function odd(): HostilePicture[] {
  const variant = (name: string, bytes: () => Buffer) => refused('image_variant_unsupported', name, bytes)
  const side = { width: 64, height: 64 }
  return [
    working('a CMYK JPEG', () => cmyk),
    variant('a JPEG of 12 bits', () => flatJpeg({ ...side, frame: 0xc1, bits: 12 })),
    variant('a lossless JPEG', () => flatJpeg({ ...side, frame: 0xc3 })),
    variant('a JPEG of 2 components', () => flatJpeg({ ...side, components: 2 })),
    variant('a JPEG whose height is told at its end', () => flatJpeg({ width: 64, height: 0 })),
    variant('a BigTIFF', () => Buffer.from('II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0', 'latin1')),
    variant('a sequence of AVIF images', () =>
      Buffer.from(avif.toString('latin1').replace('ftypavif', 'ftypavis'), 'latin1'),
    ),
    refused('image_malformed', 'a TIFF whose directory is followed by itself', () =>
      tiffOf([{ entries: pageEntries(8, 8), next: 8 }]),
    ),
    refused('image_side_too_long', 'a TIFF whose tiles are huge', () =>
      tiffOf([{ entries: [...pageEntries(8, 8), [322, 4, 1, 2 ** 31], [323, 4, 1, 2 ** 31]] }]),
    ),
    refused('image_malformed', 'a PNG whose data is in two pieces', () =>
      pngOf({ width: 9, height: 9, after: [pngChunk('tEXt', 'a\0b'), pngChunk('IDAT', 'x')] }),
    ),
    refused('image_metadata_too_large', 'a PNG whose data is in 10000 pieces', () =>
      pngOf({ width: 9, height: 9, after: Array(10_000).fill(pngChunk('IDAT')) }),
    ),
    refused('image_malformed', 'a TIFF directory of no entries', () => tiffOf([{ entries: [] }])),
  ]
}

/** Sound in structure, so that only decoding shows it. */
export function broken(): HostilePicture[] {
  const tall = { width: 64, height: 64 }
  const noise = Buffer.alloc(3000, 'not deflate at all')
  const lying = Buffer.concat([
    webp.subarray(0, 12),
    webpChunk('VP8 ', Buffer.concat([webp.subarray(20, 30), Buffer.alloc(4000, 0xa5)])),
  ])
  lying.writeUInt32LE(lying.length - 8, 4)
  return [
    failing('a PNG of noise instead of deflate', () => pngOf({ ...tall, data: noise })),
    failing('a PNG with a wrong checksum of its data', () => patched(png, png.length - 14)),
    failing('a PNG with a wrong checksum of its header', () => patched(png, 30)),
    failing('a PNG of half its rows', () => pngOf({ ...tall, data: deflateSync(Buffer.alloc(32 * 193)) })),
    working('a PNG of far more data than rows', () =>
      pngOf({ width: 100, height: 100, data: deflateSync(Buffer.alloc(16 * mib)) }),
    ),
    // They stand for the usual ones.
    working('a JPEG without Huffman tables', () => without(jpeg, 0xc4)),
    failing('a JPEG without quantization tables', () => without(jpeg, 0xdb)),
    failing('a JPEG whose Huffman tables are impossible', () =>
      withSegments(without(jpeg, 0xc4), jpegSegment(0xc4, Buffer.alloc(20, 0xff))),
    ),
    // Cameras cut files short too; libjpeg fills up with grey.
    working('a JPEG whose scan has no data', () => scanless()),
    failing('a WebP of noise', () => lying),
    failing('a TIFF whose data lies beyond its end', () =>
      tiffOf([{ entries: pageEntries(64, 64).map(entry => (entry[0] === 273 ? [273, 4, 1, 2 ** 31] : entry)) }]),
    ),
    refused('image_malformed', 'a WebP that says it is longer', () =>
      webpOf([webpChunk('VP8 ', webp.subarray(20)).subarray(0, 40)], 99),
    ),
    refused('image_has_trailing_data', 'a WebP that says it is shorter', () =>
      webpOf([webp.subarray(12), Buffer.from('<html>')], webp.length - 8),
    ),
    refused('image_malformed', 'a WebP whose canvas is another size', () =>
      webpOf([webpExtended(50, 50), webp.subarray(12)]),
    ),
    refused('image_truncated', 'a PNG of 10 bytes of data for 5000 × 5000', () =>
      pngOf({ width: 5000, height: 5000, data: Buffer.alloc(10) }),
    ),
  ]
}

/** With another byte there; without a given one, all its bits are turned. */
function patched(bytes: Buffer, at: number, value = bytes[at]! ^ 0xff): Buffer {
  const copy = Buffer.from(bytes)
  copy[at] = value
  return copy
}

/** All segments up to the scan but those of a marker. */
function without(bytes: Buffer, marker: number): Buffer {
  const kept = [bytes.subarray(0, 2)]
  let at = 2
  for (; bytes[at + 1] !== 0xda; at += 2 + bytes.readUInt16BE(at + 2))
    if (bytes[at + 1] !== marker) kept.push(bytes.subarray(at, at + 2 + bytes.readUInt16BE(at + 2)))
  return Buffer.concat([...kept, bytes.subarray(at)])
}

function scanless(): Buffer {
  const at = jpeg.indexOf(Buffer.from([0xff, 0xda]))
  return Buffer.concat([jpeg.subarray(0, at + 2 + jpeg.readUInt16BE(at + 2)), jpegEnd])
}
