/** What uploads leave behind: those nobody finished in time, and pieces that could not be erased when theirs ended. */
import type { BlobStore } from '#platform/blobs/types.ts'
import type { Database } from '#platform/database/pool.ts'
import { isUuid } from '#platform/ids.ts'
import { partKey } from './keys.ts'
import { eraseBlobs, eraseParts } from './parts.ts'
import * as store from './store.ts'

interface SweepDeps {
  db: Database
  blobs: Pick<BlobStore, 'delete'>
}

/** Each may have thousands of parts. */
const sweepMax = 20

/** Deletes uploads that expired before then, and the parts of those that ended before then. Answers how many uploads. */
export async function sweepUploads(deps: SweepDeps, { before }: { before: Date }): Promise<number> {
  return (await sweepExpired(deps, before)) + (await sweepLeftParts(deps, before))
}

async function sweepExpired({ db, blobs }: SweepDeps, before: Date): Promise<number> {
  let swept = 0
  for (;;) {
    const gone = await store.deleteExpired(db, { before, limit: sweepMax })
    for (const upload of gone) await eraseBlobs(blobs, upload.id, upload.blobs)
    swept += gone.length
    if (gone.length < sweepMax) return swept
  }
}

async function sweepLeftParts(deps: SweepDeps, before: Date): Promise<number> {
  let swept = 0
  for (;;) {
    const ids = await store.findLeftParts(deps.db, { before, limit: sweepMax })
    for (const id of ids) await eraseParts(deps, id)
    swept += ids.length
    if (ids.length < sweepMax) return swept
  }
}

/** The keys of those uploads' parts that are needed. Words that are no id have none. */
export async function findKnownParts(db: Database, uploadIds: readonly string[]): Promise<Set<string>> {
  const rows = await store.findKnownParts(db, uploadIds.filter(isUuid))
  return new Set(rows.map(row => partKey(row.upload_id, row.blob)))
}
