/** The pieces of an upload in the blob store: reading them as the one file they are, and erasing them. */
import type { BlobStore } from '#platform/blobs/types.ts'
import type { Database } from '#platform/database/pool.ts'
import { isAppError, errors as platformErrors } from '#platform/errors.ts'
import { partKey } from './keys.ts'
import * as store from './store.ts'

const eraseMax = 1000
const missing = 'A piece of the upload cannot be read from the blob store just now.'

/**
 * The bytes of the whole file.
 * @throws an AppError with a status from 500 where a piece cannot be read: never the file's fault
 */
export async function* readParts(
  blobs: Pick<BlobStore, 'get'>,
  given: { uploadId: string; parts: readonly store.Part[] },
): AsyncGenerator<Buffer> {
  for (const part of given.parts) {
    const blob = await blobs.get(partKey(given.uploadId, part.blob))
    if (blob === undefined || blob.bytes !== part.bytes) {
      blob?.stream.destroy()
      throw platformErrors.unavailable(missing)
    }
    try {
      yield* blob.stream
    } catch (error) {
      throw isAppError(error) ? error : platformErrors.unavailable(missing)
    }
  }
}

export async function eraseBlobs(blobs: Pick<BlobStore, 'delete'>, uploadId: string, names: readonly string[]) {
  for (let from = 0; from < names.length; from += eraseMax) {
    await blobs.delete(names.slice(from, from + eraseMax).map(name => partKey(uploadId, name)))
  }
}

/** Of an upload that has ended, so that no part is added meanwhile. What is not erased stays known. */
export async function eraseParts(given: { db: Database; blobs: Pick<BlobStore, 'delete'> }, uploadId: string) {
  const parts = await store.listParts(given.db, uploadId)
  if (parts.length === 0) return
  await eraseBlobs(
    given.blobs,
    uploadId,
    parts.map(part => part.blob),
  )
  await store.deleteParts(given.db, uploadId)
}
