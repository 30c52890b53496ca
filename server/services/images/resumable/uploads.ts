/**
 * What is decided about uploads. An upload is `receiving` from its creation, stands at the bytes that are durable, and
 * ends once: `finished` when it is an image, `refused` when its bytes are none that is taken here. Both are final; the
 * row stays until the upload's time is over, so that a sender whose answer was lost can ask again.
 */
import { Readable } from 'node:stream'
import type { BlobStore } from '#platform/blobs/types.ts'
import type { Database, Tx } from '#platform/database/pool.ts'
import { AppError, isAppError } from '#platform/errors.ts'
import type { Caller } from '#platform/http/guard.ts'
import { isUuid } from '#platform/ids.ts'
import type { Log } from '#platform/log.ts'
import { errors as imageErrors } from '../errors.ts'
import type { Images } from '../images.ts'
import type { ImagesSettings } from '../settings.ts'
import { cleanName } from '../shapes.ts'
import { findUsage } from '../store.ts'
import { visibilities } from '../types.ts'
import { errors } from './errors.ts'
import { nameBlob, partKey } from './keys.ts'
import { eraseBlobs, eraseParts } from './parts.ts'
import * as store from './store.ts'

export interface Uploads {
  /** @throws too_many_uploads_open, visibility_unknown, image_quota_exceeded, and what `assertRoom` of images throws */
  create(given: Creation): Promise<void>
  /** @throws upload_not_found for another's too, upload_expired */
  getUpload(caller: Caller, id: string): Promise<store.UploadRow>
  /** @throws upload_request_invalid, image_quota_exceeded */
  setLength(id: string, length: number): Promise<void>
  /**
   * Keeps bytes that begin at an offset; they are durable when this resolves. Answers where the upload stands then. Of
   * several requests that send the same bytes at once, one does.
   * @throws upload_offset_wrong, upload_in_too_many_parts, and what is wrong with the first bytes of a file
   */
  append(given: { upload: Pick<store.UploadRow, 'id' | 'at' | 'parts'>; source: Readable }): Promise<number>
  /** @throws upload_not_found */
  remove(caller: Caller, id: string): Promise<void>
  /** Ends an upload for good and erases its parts, unless it has ended. */
  end(id: string, refusal: AppError | null): Promise<void>
}

export interface Creation {
  id: string
  caller: Caller
  /** In bytes; undefined where it is said later. */
  length: number | undefined
  /** The header, and what it holds. */
  metadata: { text: string; fields: Record<string, string | null> } | undefined
}

export interface UploadsDeps {
  db: Database
  blobs: BlobStore
  images: Pick<Images, 'assertRoom'>
  settings: Pick<ImagesSettings, 'IMAGE_BYTES_PER_USER'>
  log: Log
  clock: () => number
  hours: number
  /** Is given a file's bytes from its first on. @throws an AppError for one that is not taken */
  makeProbe: () => { write(chunk: Buffer): void }
}

export const openMax = 100
export const partsMax = 10_000
const hourMs = 3_600_000

export function makeUploads(deps: UploadsDeps): Uploads {
  const { db, blobs, clock, log } = deps

  async function create({ id, caller, length, metadata }: Creation) {
    const fields = metadata?.fields ?? {}
    const visibility = visibilities.find(one => one === (fields.visibility ?? 'private'))
    if (visibility === undefined) throw imageErrors.visibilityUnknown()
    await deps.images.assertRoom(caller)
    const now = clock()
    const upload = {
      id,
      owner: caller.userId,
      length: length ?? null,
      metadata: metadata?.text ?? null,
      name: cleanName(fields.name ?? fields.filename ?? undefined),
      visibility,
      createdAt: new Date(now),
      expiresAt: new Date(now + deps.hours * hourMs),
    }
    await db.tx(async tx => {
      const { uploads } = await reserve(tx, { owner: caller.userId, bytes: length ?? 0 })
      if (uploads >= openMax) throw errors.tooManyOpen(openMax)
      await store.insertUpload(tx, upload)
    })
  }

  /**
   * Open uploads count with the length they state, not with what came of it: who was let begin shall be able to end. The
   * image is charged when it is made; until then others of its owner may still take the room.
   */
  async function reserve(tx: Tx, { owner, bytes }: { owner: string; bytes: number }) {
    store.lockOwner(tx, owner)
    const open = await store.sumOpen(tx, { owner, now: new Date(clock()) })
    const bytesMax = deps.settings.IMAGE_BYTES_PER_USER
    if ((await findUsage(tx, owner)) + open.bytes + bytes > bytesMax) throw imageErrors.quotaExceeded(bytesMax)
    return open
  }

  async function setLength(id: string, length: number) {
    const upload = await store.findUpload(db, id)
    const isSet =
      upload?.length === null &&
      (await db.tx(async tx => {
        await reserve(tx, { owner: upload.owner, bytes: length - upload.at })
        return store.setLength(tx, { id, length })
      }))
    if (!isSet) throw errors.requestInvalid('Upload-Length is known already.')
  }

  async function getUpload(caller: Caller, id: string): Promise<store.UploadRow> {
    const upload = isUuid(id) ? await store.findUpload(db, id) : undefined
    if (upload?.owner !== caller.userId) throw errors.uploadNotFound()
    if (upload.expires_at.getTime() <= clock()) throw errors.uploadExpired()
    return upload
  }

  async function append({ upload, source }: Parameters<Uploads['append']>[0]): Promise<number> {
    if (upload.parts >= partsMax) throw errors.tooManyParts(partsMax)
    const look = makeLook(source, upload.at === 0 ? deps.makeProbe() : undefined)
    const blob = nameBlob(upload.at)
    try {
      const first = await look.chunks.next()
      if (first.done) return upload.at
      const body = Readable.from(startWith(first.value, look.chunks), { objectMode: false })
      const { bytes } = await blobs.put(partKey(upload.id, blob), body)
      if (await store.addPart(db, upload.id, { at: upload.at, bytes, blob })) return upload.at + bytes
    } catch (error) {
      // Unless another request was first, with other bytes.
      if (look.refusal) await endAt({ id: upload.id, at: upload.at, refusal: look.refusal })
      throw look.refusal ?? error
    }
    // Another request was first, or the upload is gone.
    await tryToErase(log, () => eraseBlobs(blobs, upload.id, [blob]))
    throw errors.offsetWrong()
  }

  /** @param given.at where the upload must stand, where that matters */
  async function endAt({ id, at, refusal }: { id: string; at?: number; refusal: AppError | null }) {
    const error = refusal ? toStored(refusal) : null
    const hasEnded = await store.endUpload(db, { id, endedAt: new Date(clock()), error, at })
    if (hasEnded) await tryToErase(log, () => eraseParts({ db, blobs }, id))
  }

  return {
    create,
    getUpload,
    append,
    end: (id, refusal) => endAt({ id, refusal }),
    setLength,
    async remove(caller, id) {
      const upload = isUuid(id) ? await store.findUpload(db, id) : undefined
      if (upload?.owner !== caller.userId) throw errors.uploadNotFound()
      const gone = await store.deleteUpload(db, id)
      if (gone) await tryToErase(log, () => eraseBlobs(blobs, id, gone.blobs))
    },
  }
}

/** What cannot be erased now is swept away later. */
async function tryToErase(log: Log, erase: () => Promise<void>) {
  try {
    await erase()
  } catch (error) {
    log.debug({ err: error }, 'pieces of an upload stay until the sweep')
  }
}

/** Passes bytes on. The first of a file are looked at, so that what is no image is refused before the rest is sent. */
function makeLook(source: AsyncIterable<Buffer>, probe: { write(chunk: Buffer): void } | undefined) {
  let refusal: AppError | undefined

  async function* look() {
    for await (const chunk of source) {
      try {
        probe?.write(chunk)
      } catch (error) {
        if (isAppError(error)) refusal = error
        throw error
      }
      yield chunk
    }
  }

  return {
    chunks: look(),
    get refusal() {
      return refusal
    },
  }
}

async function* startWith(first: Buffer, rest: AsyncGenerator<Buffer, void, undefined>) {
  try {
    yield first
    yield* rest
  } finally {
    await rest.return()
  }
}

function toStored({ code, status, message, details }: AppError): store.StoredError {
  return { code, status, message, ...(details ? { details } : {}) }
}

/** The error with which an upload was refused. */
export function refusalOf(upload: Pick<store.UploadRow, 'error'>): AppError | undefined {
  return upload.error ? new AppError(upload.error) : undefined
}
