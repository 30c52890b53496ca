/** Keeps what was made, behind the answer. What goes wrong here costs the next request a making, and nobody an answer. */
import type { BlobStore } from '#platform/blobs/types.ts'
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import { transformKey } from '../keys.ts'
import type { ImagesSettings } from '../settings.ts'
import { insertTransform } from '../store.ts'
import * as store from './store.ts'
import { pipeline } from './words.ts'

export interface Keepable {
  fileId: string
  name: string
  /** Of the work folder; it may be gone afterwards. */
  file: string
  bytes: number
}

export interface Keeper {
  /** Resolves when it is kept, or is not. Never rejects. */
  keep(made: Keepable): Promise<void>
}

export interface KeeperDeps {
  db: Database
  blobs: BlobStore
  settings: Pick<ImagesSettings, 'IMAGE_BYTES_PER_USER' | 'IMAGE_TRANSFORMS_MAX'>
  log: Log
}

/** On their way into the store at once; what is made meanwhile is not kept this time. */
const keepingMax = 32
/** Nobody was told that it is kept: a commit that is lost costs a sweep of the blob. */
const parameters = { synchronous_commit: 'off' }

export function makeKeeper(deps: KeeperDeps): Keeper {
  const { db, blobs, settings, log } = deps
  const max = settings.IMAGE_TRANSFORMS_MAX
  let keeping = 0

  async function keep({ fileId, name, file, bytes }: Keepable) {
    if (!(await hasRoom(deps, { fileId, name, bytes }))) return
    const key = transformKey(fileId, name)
    await blobs.putFile(key, file)
    const isNew = await db.tx(
      tx => {
        store.lockFile(tx, fileId)
        return insertTransform(tx, { fileId, name, bytes, max })
      },
      { parameters },
    )
    // Another process may have kept it meanwhile. Otherwise it belongs to nobody: the file is gone, or has too many now.
    if (!isNew && !(await store.isKept(db, { fileId, name }))) await blobs.delete([key])
  }

  return {
    async keep(made) {
      if (keeping >= keepingMax || max === 0) return
      keeping++
      try {
        await keep(made)
      } catch (error) {
        log.warn({ err: error, file: made.fileId }, 'a transform was made and could not be kept')
      } finally {
        keeping--
      }
    },
  }
}

/**
 * Asked before anything is written. What an older pipeline made goes when room is needed. One that is known and has lost
 * its blob has a place already.
 */
async function hasRoom(
  { db, blobs, settings }: KeeperDeps,
  { fileId, name, bytes }: Omit<Keepable, 'file'>,
): Promise<boolean> {
  const count = await store.countKept(db, { fileId, name, pipeline })
  if (!count || count.owner_bytes + bytes > settings.IMAGE_BYTES_PER_USER) return false
  if (count.others < settings.IMAGE_TRANSFORMS_MAX) return true
  if (count.stale === 0) return false
  const names = await db.tx(tx => store.deleteStale(tx, { fileId, pipeline }))
  await blobs.delete(names.map(each => transformKey(fileId, each)))
  return names.length > 0
}
