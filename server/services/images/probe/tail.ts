/** The last bytes of what streams past, in a ring, and whether they end a ZIP archive. */
import { errors } from './errors.ts'

export interface Tail {
  push(chunk: Buffer): void
  /** In order. */
  bytes(): Buffer
}

export function makeTail(size: number): Tail {
  // Grows to its size, as most files that are refused are short.
  let ring = Buffer.alloc(0)
  let end = 0
  let total = 0

  function write(bytes: Buffer) {
    const first = Math.min(bytes.length, size - end)
    bytes.copy(ring, end, 0, first)
    bytes.copy(ring, 0, first)
    end = (end + bytes.length) % size
  }

  return {
    push(chunk) {
      if (ring.length === 0) ring = Buffer.allocUnsafe(size)
      total += chunk.length
      write(chunk.subarray(Math.max(0, chunk.length - size)))
    },
    bytes() {
      if (total < size) return ring.subarray(0, total)
      return Buffer.concat([ring.subarray(end), ring.subarray(0, end)])
    },
  }
}

const endMark = Buffer.from('PK\x05\x06', 'latin1')
const endBytes = 22
const commentBytesMax = 65_535
/** Programs that open archives look for their end only so far from the end of the file. */
export const archiveTailBytes = endBytes + commentBytesMax

/** @throws image_has_trailing_data where the file can be opened as a ZIP archive too */
export function checkNoArchive(tail: Buffer) {
  for (let at = tail.indexOf(endMark); at >= 0; at = tail.indexOf(endMark, at + 1))
    if (isArchiveEnd(tail, at)) throw errors.hasTrailingData('a ZIP archive')
}

/** By its numbers too: four bytes alone stand in one of 65,000 photos by chance. */
function isArchiveEnd(tail: Buffer, at: number): boolean {
  if (at + endBytes > tail.length) return false
  const disks = [tail.readUInt16LE(at + 4), tail.readUInt16LE(at + 6)]
  const entries = [tail.readUInt16LE(at + 8), tail.readUInt16LE(at + 10)]
  return disks[0] === disks[1] && entries[0] === entries[1]
}
