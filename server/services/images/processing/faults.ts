/** Whose fault an error of libvips is, and how it is said to the image's owner. */

import { NotPossible } from './making.ts'
import type { Answer } from './order.ts'

/** The disk, the folder or the machine; not the file. */
const notTheFile =
  /no space left|disk quota|unable to open for write|write error|unable to write|input file is missing|read-only file system|permission denied|input\/output error|too many open files/i
const causeMax = 200

export function faultOf(
  error: unknown,
  paths: readonly string[],
): Pick<Answer & { message: string }, 'kind' | 'message'> {
  const message = error instanceof Error ? error.message : String(error)
  if (error instanceof NotPossible) return { kind: 'broken', message }
  if (notTheFile.test(message)) return { kind: 'failed', message }
  return { kind: 'broken', message: `It cannot be decoded: ${causeIn(message, paths)}.` }
}

/** The first of libvips' lines, which is the cause of the others, without where the file lies. */
function causeIn(message: string, paths: readonly string[]): string {
  let line = message.split('\n')[0] ?? ''
  for (const path of paths) line = line.replaceAll(path, 'the file')
  if (/exceeds pixel limit/i.test(line)) return 'it is larger than its header says'
  return line
    .replace(/^Input (file|buffer) (has corrupt header|contains unsupported image format): ?/i, '')
    .slice(0, causeMax)
    .replace(/[.\s]+$/, '')
}
