/** What hostile pictures are made of and described by. */
import { deflateSync } from 'node:zlib'
import sharp from 'sharp'
import { pngChunk } from './picture-parts.ts'
import { makePicture } from './pictures.ts'

export interface HostilePicture {
  name: string
  bytes(): Buffer
  /** `fails in the job`: the header is sound and the picture is not. */
  expect: 'refused at upload' | 'fails in the job' | 'works'
  /** Of the refusal. */
  code?: string
}

export const mib = 1024 * 1024
const size = { width: 96, height: 64, kind: 'photo', seed: 5 } as const
export const [jpeg, progressive, png, gif, webp, avif, tiff] = await Promise.all([
  makePicture({ ...size, format: 'jpeg' }),
  makePicture({ ...size, format: 'jpeg', progressive: true }),
  makePicture({ ...size, format: 'png' }),
  makePicture({ ...size, format: 'gif' }),
  makePicture({ ...size, format: 'webp' }),
  makePicture({ ...size, format: 'avif' }),
  makePicture({ ...size, format: 'tiff' }),
])
export const cmyk = await sharp(jpeg).toColourspace('cmyk').jpeg().toBuffer()
export const tinyWebp = await makePicture({ width: 1, height: 1, format: 'webp', kind: 'flat', seed: 1 })

export function refused(code: string, name: string, bytes: () => Buffer): HostilePicture {
  return { name, bytes, expect: 'refused at upload', code }
}

export function failing(name: string, bytes: () => Buffer): HostilePicture {
  return { name, bytes, expect: 'fails in the job' }
}

export function working(name: string, bytes: () => Buffer): HostilePicture {
  return { name, bytes, expect: 'works' }
}

export function packedText(text: Buffer): Buffer {
  return pngChunk('zTXt', Buffer.concat([Buffer.from('note\0\0'), deflateSync(text)]))
}

const short = 3
const long = 4

/** Of a grey page of a TIFF whose data begins at the eighth byte. */
export function pageEntries(width: number, height: number): number[][] {
  return [
    [256, long, 1, width],
    [257, long, 1, height],
    [258, short, 1, 8],
    [259, short, 1, 1],
    [262, short, 1, 1],
    [273, long, 1, 8],
    [277, short, 1, 1],
    [278, long, 1, height],
    [279, long, 1, 64],
  ]
}
