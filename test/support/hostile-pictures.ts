/** What hostile or broken senders send as an image, each file made by code. */
import { deflateRawSync, deflateSync, gzipSync } from 'node:zlib'
import { makeRandom } from '#platform/random.ts'
import { animations, broken, laden, odd, tiles } from './hostile-contents.ts'
import {
  avif,
  gif,
  type HostilePicture,
  jpeg,
  mib,
  packedText,
  pageEntries,
  png,
  progressive,
  refused,
  tiff,
  webp,
  working,
} from './hostile-samples.ts'
import {
  flatJpeg,
  gifOf,
  jpegEnd,
  jpegSegment,
  jpegStart,
  pngChunk,
  pngOf,
  tiffOf,
  webpExtended,
  webpOf,
  withSegments,
} from './picture-parts.ts'

export type { HostilePicture } from './hostile-samples.ts'

/** Every one of them is answered clearly or processed, in bounded memory, and harms nothing that comes after it. */
export function hostilePictures(): HostilePicture[] {
  return [
    ...huge(),
    ...cut(),
    ...garbage(),
    ...twoInOne(),
    ...laden(),
    ...animations(),
    ...tiles(),
    ...odd(),
    ...broken(),
    ...others(),
  ]
}

function huge(): HostilePicture[] {
  const gifSide = 65_535
  return [
    refused('image_side_too_long', 'a JPEG of 65500 × 65500', () =>
      flatJpeg({ width: 65_500, height: 65_500 }).subarray(0, mib),
    ),
    refused('image_too_large_in_pixels', 'a flat PNG of 30000 × 30000', () => flatPng(30_000)),
    refused('image_too_large_in_pixels', 'a JPEG of 29000 × 29000', () => flatJpeg({ width: 29_000, height: 29_000 })),
    refused('image_side_too_long', 'a GIF of 65535 × 65535', () =>
      gifOf({ width: gifSide, height: gifSide, frames: 1 }),
    ),
    refused('image_side_too_long', 'a PNG of 2^31 − 1 × 1', () =>
      pngOf({ width: 2 ** 31 - 1, height: 1, data: deflateSync(Buffer.alloc(9)) }),
    ),
    refused('image_too_large_in_pixels', 'a WebP whose canvas has 16384 × 16384', () =>
      webpOf([webpExtended(16_384, 16_384), webp.subarray(12)]),
    ),
    refused('image_side_too_long', 'a TIFF of 2^32 − 1 × 2^32 − 1', () =>
      tiffOf([{ entries: pageEntries(2 ** 32 - 1, 2 ** 32 - 1) }]),
    ),
    refused('image_too_heavy', 'a progressive JPEG of 81 megapixels', () =>
      flatJpeg({ width: 9000, height: 9000, frame: 0xc2, components: 3 }),
    ),
    working('a flat PNG of 4000 × 4000 in 47 KB', () => flatPng(4000)),
    working('a flat JPEG of 4000 × 4000', () => flatJpeg({ width: 4000, height: 4000 })),
    refused('image_too_many_scans', 'a JPEG of 3000 scans', () =>
      flatJpeg({ width: 2000, height: 2000, frame: 0xc2, scans: 3000 }),
    ),
    working('a JPEG of 90 scans', () => flatJpeg({ width: 1000, height: 1000, frame: 0xc2, scans: 89 })),
  ]
}

const flatSideHeld = 4000

/** With the first of its rows alone, where all would be too many to hold. */
function flatPng(side: number): Buffer {
  const rows = Math.min(side, Math.floor(flatSideHeld ** 2 / side))
  return pngOf({ width: side, height: side, data: deflateSync(Buffer.alloc(rows * (1 + side * 3))) })
}

function cut(): HostilePicture[] {
  const cuts = [3, 20, 100, 200, 300, 400, 600, 620, 700, -300, -3, -1]
  const pictures = Object.entries({ jpeg, progressive, png, gif, webp, avif })
  return [
    ...pictures.flatMap(([name, bytes]) =>
      cuts
        .filter(at => Math.abs(at) < bytes.length)
        .map(at => refused('image_truncated', `a ${name} cut at ${at}`, () => bytes.subarray(0, at))),
    ),
    ...pngCuts().map(at =>
      refused('image_truncated', `a PNG cut before the chunk at ${at}`, () => png.subarray(0, at)),
    ),
    refused('image_truncated', 'a TIFF cut before its directory', () => tiff.subarray(0, 1000)),
  ]
}

/** Where its chunks begin. */
function pngCuts(): number[] {
  const starts: number[] = []
  for (let at = 8; at < png.length; at += 12 + png.readUInt32BE(at)) starts.push(at)
  return starts
}

function garbage(): HostilePicture[] {
  const random = makeRandom(3)
  const noise = Buffer.from(Array.from({ length: 5000 }, () => random() * 256))
  return [
    refused('image_empty', 'no bytes', () => Buffer.alloc(0)),
    refused('image_truncated', 'one byte', () => Buffer.from([0xff])),
    refused('image_truncated', 'the start of a JPEG alone', () => jpegStart),
    refused('image_format_unknown', 'the start of a JPEG, then noise', () =>
      Buffer.concat([jpegStart, Buffer.from([7]), noise]),
    ),
    refused('image_malformed', 'the start of a segment, then zeros', () =>
      Buffer.concat([jpegStart, Buffer.from([0xff]), Buffer.alloc(5000)]),
    ),
    refused('image_malformed', 'a JPEG of nothing but its ends', () => Buffer.concat([jpegStart, jpegEnd])),
    refused('image_malformed', 'a JPEG with a segment of length 0', () =>
      withSegments(jpeg, Buffer.from([0xff, 0xe0, 0, 0])),
    ),
    refused('image_malformed', 'noise that says it is a PNG', () => Buffer.concat([png.subarray(0, 8), noise])),
    refused('image_malformed', 'noise that says it is a GIF', () => Buffer.concat([gif.subarray(0, 13), noise])),
    refused('image_malformed', 'noise that says it is a WebP', () => Buffer.concat([webp.subarray(0, 12), noise])),
    refused('image_format_unknown', 'noise', () => noise),
    refused('image_format_unknown', 'zeros', () => Buffer.alloc(mib)),
  ]
}

/** Files that are something else too, for whoever believes their name or reads them from the end. */
function twoInOne(): HostilePicture[] {
  const page = '<html><script>alert(1)</script></html>'
  const zip = zipOf('evil.js', 'alert(1)')
  const trailing = (name: string, image: Buffer, more: Buffer | string) =>
    refused('image_has_trailing_data', name, () => Buffer.concat([image, Buffer.from(more as string)]))
  return [
    working('a PNG labelled as image/jpeg', () => png),
    trailing('a JPEG, then HTML', jpeg, page),
    trailing('a JPEG, then zeros, then HTML', jpeg, '\0'.repeat(1000) + page),
    trailing('a JPEG, then a ZIP', jpeg, zip),
    trailing('a PNG, then a ZIP', png, zip),
    trailing('a GIF, then a ZIP', gif, zip),
    trailing('a WebP, then HTML', webp, page),
    trailing('a PNG, then PHP', png, '<?php system($_GET[0]);'),
    trailing('a JPEG, then a PDF', jpeg, '%PDF-1.7\n'),
    trailing('a PNG, then another', png, png),
    trailing('a JPEG, then 20 more', jpeg, Buffer.concat(Array(20).fill(jpeg))),
    refused('image_has_trailing_data', 'a JPEG with a ZIP in a comment', () =>
      withSegments(jpeg, jpegSegment(0xfe, zip)),
    ),
    refused('image_has_markup', 'a JPEG with a script in a comment', () => withSegments(jpeg, jpegSegment(0xfe, page))),
    refused('image_has_markup', 'a JPEG with PHP in its EXIF', () =>
      withSegments(jpeg, jpegSegment(0xe1, `Exif\0\0<?PHP x`)),
    ),
    refused('image_has_markup', 'a PNG with SVG in a text', () =>
      pngOf({ width: 9, height: 9, before: [pngChunk('tEXt', 'a\0<svg onload=x>')] }),
    ),
    refused('image_has_markup', 'a PNG with a script in a packed text', () =>
      pngOf({ width: 9, height: 9, after: [packedText(Buffer.from(page))] }),
    ),
    refused('image_has_markup', 'a GIF with a script in a comment', () =>
      Buffer.concat([gif.subarray(0, -1), Buffer.from(`!\xfe${String.fromCharCode(page.length)}${page}\0;`, 'latin1')]),
    ),
    refused('image_format_unknown', 'a GIF by its first three bytes that is JavaScript', () =>
      Buffer.from(`GIF=1;alert(1)//${' '.repeat(500)}`),
    ),
    working('a JPEG, then padding', () => Buffer.concat([jpeg, Buffer.alloc(5000)])),
    working('a JPEG, then another, as cameras add previews', () => Buffer.concat([jpeg, jpeg])),
  ]
}

/** One file, stored: local header, directory, end. */
function zipOf(name: string, text: string): Buffer {
  const data = deflateRawSync(text)
  const local = Buffer.alloc(30)
  local.write('PK\x03\x04', 'latin1')
  local.writeUInt16LE(8, 8)
  local.writeUInt32LE(data.length, 18)
  local.writeUInt32LE(text.length, 22)
  local.writeUInt16LE(name.length, 26)
  const entry = Buffer.concat([Buffer.from('PK\x01\x02\x14\0', 'latin1'), local.subarray(4), Buffer.alloc(14)])
  const end = Buffer.alloc(22)
  end.write('PK\x05\x06', 'latin1')
  end.writeUInt16LE(1, 8)
  end.writeUInt16LE(1, 10)
  end.writeUInt32LE(entry.length + name.length, 12)
  end.writeUInt32LE(local.length + name.length + data.length, 16)
  return Buffer.concat([local, Buffer.from(name), data, entry, Buffer.from(name), end])
}

/** No image, or none that is taken. */
function others(): HostilePicture[] {
  const svg = (doctype: string, inside: string) =>
    `<?xml version="1.0"?>${doctype}<svg xmlns="http://www.w3.org/2000/svg">${inside}</svg>`
  const laughs = Array.from({ length: 9 }, (_, n) => `<!ENTITY l${n + 1} "${`&l${n};`.repeat(10)}">`).join('')
  const texts: Record<string, string | Buffer> = {
    'SVG that reads a file': svg('<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>', '<text>&x;</text>'),
    'SVG of a billion laughs': svg(`<!DOCTYPE svg [<!ENTITY l0 "ha">${laughs}]>`, '<text>&l9;</text>'),
    'SVG that fetches': svg('', '<image href="http://169.254.169.254/latest/meta-data/"/>'),
    'packed SVG': gzipSync(svg('', '')),
    HTML: '<!doctype html><script>alert(1)</script>',
    'a PDF': '%PDF-1.7\n1 0 obj\n',
    'a ZIP': zipOf('a', 'b'),
    'a BMP': Buffer.concat([Buffer.from('BM'), Buffer.alloc(100)]),
    PostScript: '%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file',
    'a program of ImageMagick': 'push graphic-context\nfill \'url(https://127.0.0.1/";id")\'\npop graphic-context\n',
    'a film': Buffer.from('\0\0\0\x18ftypisom\0\0\0\0isommp42', 'latin1'),
    'a JPEG XL': Buffer.from('\xff\x0a\xfa\x0a\0\0\0\0\0\0\0\0', 'latin1'),
  }
  return Object.entries(texts).map(([name, bytes]) =>
    refused('image_format_unknown', name, () => Buffer.from(bytes as string)),
  )
}
