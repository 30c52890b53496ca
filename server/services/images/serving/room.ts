/** Which of the things that were made may be kept: asked before anything is written. */
import type { BlobStore } from '#platform/blobs/types.ts'
import type { Database } from '#platform/database/pool.ts'
import { transformKey } from '../keys.ts'
import type { ImagesSettings } from '../settings.ts'
import type { NewTransform } from '../store.ts'
import * as store from './store.ts'
import { pipeline } from './words.ts'

export interface RoomDeps {
  db: Database
  blobs: BlobStore
  settings: Pick<ImagesSettings, 'IMAGE_BYTES_PER_USER' | 'IMAGE_TRANSFORMS_MAX'>
}

/**
 * Those for which their file and its owner have room. What an older pipeline made of a file goes when room is needed.
 * What is known and has lost its blob has a place already.
 */
export async function chooseRoomy<T extends NewTransform>(deps: RoomDeps, all: readonly T[]): Promise<T[]> {
  const [fileIds, names] = [[...new Set(all.map(each => each.fileId))], [...new Set(all.map(each => each.name))]]
  const rows = await store.findRoom(deps.db, { fileIds, names, pipeline })
  const files = new Map(rows.map(row => [row.file_id, row]))
  const ownerBytes = new Map(rows.map(row => [row.owner, row.owner_bytes]))
  const chosen: T[] = []
  for (const each of all) {
    const file = files.get(each.fileId)
    if (!file) continue
    const bytes = ownerBytes.get(file.owner)! + each.bytes
    if (bytes > deps.settings.IMAGE_BYTES_PER_USER) continue
    if (!file.known.includes(each.name)) {
      if (!(await makePlace(deps, file))) continue
      file.kept++
    }
    ownerBytes.set(file.owner, bytes)
    chosen.push(each)
  }
  return chosen
}

async function makePlace({ db, blobs, settings }: RoomDeps, file: store.RoomRow): Promise<boolean> {
  const fileId = file.file_id
  if (file.kept < settings.IMAGE_TRANSFORMS_MAX) return true
  if (file.stale === 0) return false
  const names = await db.tx(tx => store.deleteStale(tx, { fileId, pipeline }))
  await blobs.delete(names.map(each => transformKey(fileId, each)))
  file.stale = 0
  file.kept -= names.length
  return file.kept < settings.IMAGE_TRANSFORMS_MAX
}
