/**
 * Makes a whole upload an image, once. It may be begun by several processes, or anew after one died in the middle: the
 * image's id is the upload's and so is its idempotency key, so that whoever comes second gets the first one's image.
 */

import type { BlobStore } from '#platform/blobs/types.ts'
import type { Database } from '#platform/database/pool.ts'
import { type AppError, isAppError } from '#platform/errors.ts'
import type { Caller } from '#platform/http/guard.ts'
import type { Log } from '#platform/log.ts'
import { errors as imageErrors } from '../errors.ts'
import type { Images } from '../images.ts'
import type { Receiver } from '../receiving.ts'
import type { ImagesSettings } from '../settings.ts'
import { findImage } from '../store.ts'
import { errors } from './errors.ts'
import { readParts } from './parts.ts'
import * as store from './store.ts'
import { refusalOf, type Uploads } from './uploads.ts'

export interface Finishing {
  /**
   * Finishes an upload whose bytes are all there, unless it has ended.
   * @throws why it was refused; upload_finishes_later, image_quota_exceeded
   */
  finish(given: { id: string; caller: Caller; requestId: string }): Promise<void>
}

export interface FinishingDeps {
  db: Database
  blobs: Pick<BlobStore, 'get'>
  receiver: Pick<Receiver, 'receive'>
  images: Pick<Images, 'accept' | 'assertRoom'>
  uploads: Pick<Uploads, 'end'>
  settings: Pick<ImagesSettings, 'IMAGE_BYTES_MAX'>
  log: Log
}

type Given = Parameters<Finishing['finish']>[0]

const profile = 'presets'

export function makeFinishing(deps: FinishingDeps): Finishing {
  const { db, blobs, receiver, images, uploads, settings, log } = deps
  const running = new Map<string, Promise<void>>()

  async function finish(given: Given) {
    const upload = await store.findUpload(db, given.id)
    if (!upload) throw errors.uploadNotFound()
    if (upload.status === 'receiving') return turnIntoImage(upload, given)
    const refusal = refusalOf(upload)
    if (refusal) throw refusal
  }

  async function turnIntoImage(upload: store.UploadRow, given: Given) {
    // Somebody accepted it and died before saying so.
    if (await findImage(db, upload.id)) return uploads.end(upload.id, null)
    try {
      await images.assertRoom(given.caller)
      const parts = await store.listParts(db, upload.id)
      const received = await receiver.receive({
        source: readParts(blobs, { uploadId: upload.id, parts }),
        profile,
        bytesMax: settings.IMAGE_BYTES_MAX,
        bytesKnown: upload.at,
      })
      await images.accept({
        received,
        owner: given.caller,
        profile,
        id: upload.id,
        name: upload.name,
        visibility: upload.visibility,
        key: keyOf(upload.id),
        requestId: given.requestId,
      })
    } catch (error) {
      return await settle(upload, error)
    }
    await uploads.end(upload.id, null)
  }

  async function settle({ id }: store.UploadRow, error: unknown) {
    // Another process may have ended it meanwhile and erased what was being read here.
    const upload = await store.findUpload(db, id)
    if (!upload) throw errors.uploadNotFound()
    if (upload.status === 'finished') return
    const refusal = refusalOf(upload)
    if (refusal) throw refusal
    if (!isAppError(error)) throw error
    if (isRefusal(error)) await uploads.end(id, error)
    if (!isPassing(error)) throw error
    log.warn({ err: error, upload: id }, 'an upload is whole, but cannot be made an image just now')
    throw errors.finishesLater(error.message, error.retryAfterSeconds)
  }

  return {
    finish(given) {
      const found = running.get(given.id)
      if (found) return found
      const work = finish(given).finally(() => running.delete(given.id))
      running.set(given.id, work)
      return work
    },
  }
}

/** With a letter that no header's key may have, so that it is no key of a user's own. */
function keyOf(id: string): string {
  return `§upload:${id}`
}

const refusalStatuses = [400, 413, 415, 422]

/** The file is to blame, and the same bytes would be refused again. */
function isRefusal(error: AppError): boolean {
  return refusalStatuses.includes(error.status) && error.code !== imageErrors.bodyCutOff().code
}

function isPassing(error: AppError): boolean {
  return error.status === 429 || error.status === 503
}
