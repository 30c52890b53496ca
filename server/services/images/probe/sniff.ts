/** What a file is, by its first bytes alone: names and headers of requests are believed by nobody. */
import type { InputFormat } from '../types.ts'

/** Enough for every format taken. */
export const sniffBytes = 12

type Container = Exclude<InputFormat, 'avif' | 'heic'> | 'isobmff'

interface Signature {
  container: Container
  /** As latin1; a dot stands for any byte. */
  begins: string
}

const signatures: Signature[] = [
  { container: 'jpeg', begins: '\xff\xd8\xff' },
  { container: 'png', begins: '\x89PNG\r\n\x1a\n' },
  { container: 'gif', begins: 'GIF87a' },
  { container: 'gif', begins: 'GIF89a' },
  { container: 'webp', begins: 'RIFF....WEBP' },
  { container: 'tiff', begins: 'II*\0' },
  { container: 'tiff', begins: 'MM\0*' },
  { container: 'tiff', begins: 'II+\0' },
  { container: 'tiff', begins: 'MM\0+' },
  ...['avif', 'avis', 'heic', 'heix', 'heim', 'heis', 'hevc', 'hevx', 'mif1', 'mif2', 'msf1', 'miaf'].map(
    (brand): Signature => ({ container: 'isobmff', begins: `....ftyp${brand}` }),
  ),
]

export function findContainer(head: Buffer): Container | undefined {
  return signatures.find(({ begins }) => matches(head, begins, begins.length))?.container
}

/** Whether a file as short as this may be the beginning of one that is taken. */
export function mayBegin(head: Buffer): boolean {
  return signatures.some(({ begins }) => matches(head, begins, Math.min(head.length, begins.length)))
}

function matches(head: Buffer, begins: string, count: number): boolean {
  if (head.length < count) return false
  for (let at = 0; at < count; at++) if (begins[at] !== '.' && begins.charCodeAt(at) !== head[at]) return false
  return true
}

const others: [begins: RegExp, name: string][] = [
  [/^(\xef\xbb\xbf)?\s*<(svg|\?xml|!DOCTYPE s)/i, 'an SVG or XML text'],
  [/^(\xef\xbb\xbf)?\s*<(!|h|\?)/i, 'a text with markup'],
  [/^%PDF/, 'a PDF'],
  [/^PK/, 'a ZIP archive'],
  [/^BM/, 'a BMP'],
  [/^8BPS/, 'a Photoshop file'],
  [/^\xff\x0a|^\0\0\0\x0cJXL /, 'a JPEG XL'],
  [/^\0\0\0\x0cjP/, 'a JPEG 2000'],
  [/^\0\0\x01\0/, 'an icon'],
  [/^....ftyp/s, 'a film'],
]

/** For a person. */
export function nameOther(head: Buffer): string {
  const text = head.toString('latin1')
  return others.find(([begins]) => begins.test(text))?.[1] ?? 'no image that is known here'
}
