import { randomBytes } from 'node:crypto'

const wordBytes = 8

/** A name for the piece that begins at an offset. Two requests that send the same piece at once get two. */
export function nameBlob(at: number): string {
  return `${at}-${randomBytes(wordBytes).toString('hex')}`
}

/** Where a piece of an upload lies. */
export function partKey(uploadId: string, blob: string): string {
  return `uploads/${uploadId.slice(-2)}/${uploadId}/${blob}`
}
