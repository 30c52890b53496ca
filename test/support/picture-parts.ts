/** Pieces of image files by hand, so that each can be made wrong. */
import { crc32, deflateSync } from 'node:zlib'

export function jpegSegment(marker: number, payload: Buffer | string = ''): Buffer {
  const body = Buffer.from(payload as string, 'latin1')
  const head = Buffer.from([0xff, marker, 0, 0])
  head.writeUInt16BE(body.length + 2, 2)
  return Buffer.concat([head, body])
}

export const jpegStart = Buffer.from([0xff, 0xd8])
export const jpegEnd = Buffer.from([0xff, 0xd9])

interface FlatJpeg {
  width: number
  height: number
  /** Marker of the frame header: C0 baseline, C1 extended, C2 progressive, C3 lossless. */
  frame?: number
  bits?: number
  components?: number
  /** Of a progressive one, after the first. */
  scans?: number
  before?: Buffer[]
}

/**
 * A grey area of any size in few bytes: all its codes are zero bits.
 * Not for all frames is it one that can be decoded.
 */
export function flatJpeg(given: FlatJpeg): Buffer {
  const { width, height, frame = 0xc0, bits = 8, components = 1, scans = 1, before = [] } = given
  const ids = Array.from({ length: components }, (_, index) => index + 1)
  const isProgressive = frame === 0xc2
  const header = Buffer.from([bits, 0, 0, 0, 0, components, ...ids.flatMap(id => [id, 0x11, 0])])
  header.writeUInt16BE(height, 1)
  header.writeUInt16BE(width, 3)
  const blocks = Math.ceil(width / 8) * Math.ceil(height / 8)
  const first = scanOf(ids, [0, isProgressive ? 0 : 63, 0], blocks * components * (isProgressive ? 1 : 2))
  const later = Array.from({ length: isProgressive ? scans : 0 }, (_, index) =>
    scanOf([ids[index % components]!], [1, 63, 0], Math.ceil(blocks / blocksOfRun) * bitsOfRun),
  )
  const quantization = Buffer.alloc(65, 1).fill(0, 0, 1)
  const tables = [jpegSegment(0xdb, quantization), huffman(0x00, 0), huffman(0x10, isProgressive ? 0xe0 : 0)]
  return Buffer.concat([jpegStart, ...before, ...tables, jpegSegment(frame, header), first, ...later, jpegEnd])
}

/** A code of one bit for "2 to the 14th blocks of zeros", and 14 more bits. */
const blocksOfRun = 2 ** 14
const bitsOfRun = 15

/** A table of one code, a zero bit. */
function huffman(table: number, symbol: number): Buffer {
  return jpegSegment(0xc4, Buffer.from([table, 1, ...Array(15).fill(0), symbol]))
}

function scanOf(ids: number[], selection: number[], bits: number): Buffer {
  const head = Buffer.from([ids.length, ...ids.flatMap(id => [id, 0]), ...selection])
  return Buffer.concat([jpegSegment(0xda, head), Buffer.alloc(Math.ceil(bits / 8))])
}

/** A colour profile in parts, as a JPEG has it. */
export function jpegProfile(profile: Buffer, partBytes = 65_000): Buffer[] {
  const count = Math.ceil(profile.length / partBytes)
  return Array.from({ length: count }, (_, index) => {
    const part = profile.subarray(index * partBytes, (index + 1) * partBytes)
    return jpegSegment(0xe2, Buffer.concat([Buffer.from(`ICC_PROFILE\0`), Buffer.from([index + 1, count & 255]), part]))
  })
}

/** Puts segments behind the start of a JPEG. */
export function withSegments(jpeg: Buffer, ...segments: Buffer[]): Buffer {
  return Buffer.concat([jpegStart, ...segments, jpeg.subarray(jpegStart.length)])
}

/** An EXIF segment: little endian, one directory of entries [tag, type, count, value]. */
export function exifSegment(entries: number[][], next = 0): Buffer {
  return jpegSegment(0xe1, Buffer.concat([Buffer.from('Exif\0\0'), tiffOf([{ entries, next }])]))
}

export interface Directory {
  entries: number[][]
  /** Where the next is; without one, right behind this, or nowhere for the last. */
  next?: number
}

/** A classic TIFF, little endian, of directories one after another. */
export function tiffOf(directories: Directory[], data: Buffer = Buffer.alloc(0)): Buffer {
  const parts = [Buffer.from('II*\0\x08\0\0\0', 'latin1')]
  let end = parts[0]!.length
  directories.forEach(({ entries, next }, index) => {
    const directory = Buffer.alloc(2 + entries.length * 12 + 4)
    directory.writeUInt16LE(entries.length)
    entries.forEach(([tag, type, count, value], entry) => {
      directory.writeUInt16LE(tag!, 2 + entry * 12)
      directory.writeUInt16LE(type!, 4 + entry * 12)
      directory.writeUInt32LE(count!, 6 + entry * 12)
      directory.writeUInt32LE(value!, 10 + entry * 12)
    })
    end += directory.length
    directory.writeUInt32LE(next ?? (index + 1 < directories.length ? end : 0), directory.length - 4)
    parts.push(directory)
  })
  return Buffer.concat([...parts, data])
}

export function pngChunk(type: string, data: Buffer | string = ''): Buffer {
  const body = Buffer.from(data as string, 'latin1')
  const chunk = Buffer.alloc(12 + body.length)
  chunk.writeUInt32BE(body.length)
  chunk.write(type, 4, 'latin1')
  body.copy(chunk, 8)
  chunk.writeUInt32BE(crc32(chunk.subarray(4, 8 + body.length)), 8 + body.length)
  return chunk
}

interface Png {
  width: number
  height: number
  bits?: number
  /** 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA. */
  colour?: number
  before?: Buffer[]
  /** As it stands in IDAT; without it, all black. */
  data?: Buffer
  after?: Buffer[]
}

const channels = [1, 0, 3, 1, 2, 0, 4]

export function pngOf(given: Png): Buffer {
  const { width, height, bits = 8, colour = 2, before = [], after = [] } = given
  const header = Buffer.alloc(13)
  header.writeUInt32BE(width)
  header.writeUInt32BE(height, 4)
  header.set([bits, colour], 8)
  const rowBytes = 1 + Math.ceil((width * bits * channels[colour]!) / 8)
  const data = given.data ?? deflateSync(Buffer.alloc(rowBytes * height))
  const signature = Buffer.from('\x89PNG\r\n\x1a\n', 'latin1')
  const body = [pngChunk('IHDR', header), ...before, pngChunk('IDAT', data), ...after, pngChunk('IEND')]
  return Buffer.concat([signature, ...body])
}

/** An animation of frames of one pixel, or of the frame's size given. */
export function gifOf(given: { width: number; height: number; frames: number; frameWidth?: number }): Buffer {
  const { width, height, frames, frameWidth = 1 } = given
  const screen = Buffer.from('GIF89a\0\0\0\0\x80\0\0\0\0\0\xff\xff\xff', 'latin1')
  screen.writeUInt16LE(width, 6)
  screen.writeUInt16LE(height, 8)
  const control = Buffer.from([0x21, 0xf9, 4, 0, 1, 0, 0, 0])
  // Clear, the first colour, end: three codes of three bits.
  const frame = Buffer.from([0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 0x01, 0])
  frame.writeUInt16LE(frameWidth, 5)
  const all = Buffer.alloc((control.length + frame.length) * frames, Buffer.concat([control, frame]))
  return Buffer.concat([screen, all, Buffer.from([0x3b])])
}

export function webpChunk(type: string, data: Buffer): Buffer {
  const head = Buffer.alloc(8)
  head.write(type, 'latin1')
  head.writeUInt32LE(data.length, 4)
  return Buffer.concat([head, data, Buffer.alloc(data.length % 2)])
}

/** @param stated the size it claims to have, where it is another */
export function webpOf(chunks: Buffer[], stated?: number): Buffer {
  const body = Buffer.concat(chunks)
  const head = Buffer.from('RIFF\0\0\0\0WEBP', 'latin1')
  head.writeUInt32LE(stated ?? body.length + 4, 4)
  return Buffer.concat([head, body])
}

/** The header of an extended WebP. */
export function webpExtended(width: number, height: number, flags = 0): Buffer {
  const data = Buffer.alloc(10)
  data[0] = flags
  data.writeUIntLE(width - 1, 4, 3)
  data.writeUIntLE(height - 1, 7, 3)
  return webpChunk('VP8X', data)
}

/** An animation whose frames all are the picture of a simple WebP, as large as the whole. */
export function animatedWebp(still: Buffer, size: { width: number; height: number }, frames: number): Buffer {
  const head = Buffer.alloc(16)
  head.writeUIntLE(size.width - 1, 6, 3)
  head.writeUIntLE(size.height - 1, 9, 3)
  const frame = webpChunk('ANMF', Buffer.concat([head, still.subarray(12)]))
  const all = Array.from({ length: frames }, () => frame)
  return webpOf([webpExtended(size.width, size.height, 2), webpChunk('ANIM', Buffer.alloc(6)), ...all])
}

export function box(type: string, ...bodies: (Buffer | number[])[]): Buffer {
  const body = Buffer.concat(bodies.map(each => Buffer.from(each as Buffer)))
  const head = Buffer.alloc(8)
  head.writeUInt32BE(8 + body.length)
  head.write(type, 4, 'latin1')
  return Buffer.concat([head, body])
}

export function uint(bytes: number, value: number): Buffer {
  const buffer = Buffer.alloc(bytes)
  buffer.writeUIntBE(value, 0, bytes)
  return buffer
}

const version0 = [0, 0, 0, 0]

interface Grid {
  /** `av01` or `hvc1`. */
  coding: string
  rows: number
  columns: number
  width: number
  height: number
  tileWidth: number
  tileHeight: number
}

/** A picture of tiles, without the tiles' data: up to its `meta` box as cameras make it. */
export function gridOf(given: Grid): Buffer {
  const { coding, rows, columns, width, height, tileWidth, tileHeight } = given
  const tiles = Array.from({ length: rows * columns }, (_, index) => index + 2)
  const info = (id: number, type: string) =>
    box('infe', [2, 0, 0, 0], uint(2, id), uint(2, 0), Buffer.from(`${type}\0`, 'latin1'))
  const size = (w: number, h: number) => box('ispe', version0, uint(4, w), uint(4, h))
  const place = (id: number, method: number, bytes: number) =>
    Buffer.concat([...[id, method, 0, 1].map(value => uint(2, value)), uint(4, 0), uint(4, bytes)])
  const infos = [info(1, 'grid'), ...tiles.map(id => info(id, coding))]
  const uses = [uint(2, 1), [1, 1], ...tiles.flatMap(id => [uint(2, id), [1, 2]])].map(each => Buffer.from(each))
  const inner = Buffer.concat([Buffer.from([0, 0, rows - 1, columns - 1]), uint(2, width), uint(2, height)])
  const places = [place(1, 1, inner.length), ...tiles.map(id => place(id, 0, 1))]
  return Buffer.concat([
    box('ftyp', Buffer.from(`${coding === 'av01' ? 'avif' : 'heic'}\0\0\0\0mif1`, 'latin1')),
    box(
      'meta',
      version0,
      box('hdlr', version0, [0, 0, 0, 0], Buffer.from('pict'), Buffer.alloc(13)),
      box('pitm', version0, uint(2, 1)),
      box('iloc', [1, 0, 0, 0, 0x44, 0], uint(2, places.length), ...places),
      box('iinf', version0, uint(2, infos.length), ...infos),
      box('iref', version0, box('dimg', uint(2, 1), uint(2, tiles.length), ...tiles.map(id => uint(2, id)))),
      box(
        'iprp',
        box('ipco', size(width, height), size(tileWidth, tileHeight)),
        box('ipma', version0, uint(4, tiles.length + 1), ...uses),
      ),
      box('idat', inner),
    ),
    box('mdat', Buffer.alloc(64)),
  ])
}
