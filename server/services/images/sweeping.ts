/**
 * The orphan sweep: blobs that belong to nobody, because their upload was cut off, its commit failed, or a process died
 * between writing a blob and saying so. Those younger than an age are left: they may be about to be somebody's.
 */
import { text } from 'node:stream/consumers'
import type { BlobInfo, BlobStore } from '#platform/blobs/types.ts'
import type { Database, Tx } from '#platform/database/pool.ts'
import { ensureSecret } from '#platform/database/secrets.ts'
import { type IdempotencyKey, idempotently } from '#platform/http/idempotency.ts'
import { uuidv7 } from '#platform/ids.ts'
import type { Jobs } from '#platform/jobs/jobs.ts'
import { PermanentFailure, type QueueDefinition } from '#platform/jobs/types.ts'
import { fileOfKey, originalKey, transformKey, variantKey } from './keys.ts'
import type { Resumable } from './resumable/resumable.ts'
import type { ImagesSettings } from './settings.ts'
import * as store from './store.ts'

export interface Swept {
  /** Blobs looked at. */
  seen: number
  /** Of those, deleted. */
  swept: number
  /** Pieces of writes that never ended. */
  unfinished: number
}

export interface Sweeper {
  queue: QueueDefinition
  /** Adds a sweep; answers its job's id. */
  begin(given: { hours: number; owner: string; key: IdempotencyKey | undefined }): Promise<string>
  /** Adds the sweep that is done by itself, unless one waits already. */
  schedule(): Promise<void>
}

const sweepQueue = 'images.sweep'
const pageMax = 1000
const everyHours = 6
const minuteMs = 60_000
const hourMs = 3_600_000
/** Says whose images lie here. */
const ownerKey = 'owner'

export function makeSweeper(deps: {
  db: Database
  jobs: Pick<Jobs, 'add'>
  blobs: BlobStore
  resumable: Pick<Resumable, 'sweep' | 'knownParts'>
  settings: ImagesSettings
  work: boolean
  clock: () => number
}): Sweeper {
  const { db, blobs, jobs, clock } = deps

  async function sweep(hours: number, progress: (swept: Swept) => void, signal: AbortSignal): Promise<Swept> {
    const ageMs = Math.max(hours * hourMs, deps.settings.IMAGE_SWEEP_MINUTES_MIN * minuteMs)
    const before = new Date(clock() - ageMs)
    await claimStore()
    await deps.resumable.sweep(before)
    const swept: Swept = { seen: 0, swept: 0, unfinished: await blobs.sweepUnfinished(before) }
    for (const prefix of ['images/', 'uploads/'] as const) {
      let after: string | undefined
      for (;;) {
        signal.throwIfAborted()
        const page = await blobs.list(prefix, { ...(after === undefined ? {} : { after }), limit: pageMax })
        const old = page.filter(blob => blob.modifiedAt < before)
        const orphans = await (prefix === 'images/' ? findOrphans(db, old) : findOrphanParts(deps.resumable, old))
        await blobs.delete(orphans)
        swept.seen += page.length
        swept.swept += orphans.length
        progress({ ...swept })
        after = page.at(-1)?.key
        if (page.length < pageMax) break
      }
    }
    return swept
  }

  /** Two databases that share a store would take each other's images for nobody's. */
  async function claimStore() {
    const own = (await ensureSecret(db, { name: 'images.store', bytes: 16 })).toString('hex')
    const mark = await blobs.get(ownerKey)
    if (mark === undefined) return void (await blobs.put(ownerKey, Buffer.from(own)))
    if ((await text(mark.stream)) === own) return
    throw new PermanentFailure(
      `Nothing was swept: ${blobs.description} belongs to the images of another database. Give each its own BLOB_URL, ` +
        `or delete the blob \`${ownerKey}\` if that database is no more.`,
    )
  }

  return {
    queue: {
      name: sweepQueue,
      concurrency: 1,
      ...(deps.work && {
        handle: async (job, context) => {
          const { hours } = job.payload as SweepPayload
          return sweep(hours, context.progress, context.signal)
        },
      }),
    },
    async begin({ hours, owner, key }) {
      const answer = await idempotently(db, key, async (tx: Tx) => {
        const id = uuidv7(clock())
        await jobs.add(tx, [{ id, queue: sweepQueue, payload: { hours } satisfies SweepPayload, owner }])
        return { status: 202, body: { id } }
      })
      return answer.body.id
    },
    async schedule() {
      const payload: SweepPayload = { hours: deps.settings.IMAGE_ORPHAN_HOURS }
      const runAt = new Date(clock() + everyHours * hourMs)
      await db.tx(tx => jobs.add(tx, [{ queue: sweepQueue, payload, runAt, key: 'scheduled' }]))
    },
  }
}

interface SweepPayload {
  hours: number
}

/** Blobs of files that are gone, and blobs that their file does not know. */
async function findOrphans(db: Database, found: BlobInfo[]): Promise<string[]> {
  const ids = new Set(found.map(blob => fileOfKey(blob.key)).filter(id => id !== undefined))
  const known = new Set<string>()
  for (const file of await store.findKnownBlobs(db, [...ids])) {
    known.add(originalKey(file.id))
    for (const variant of file.variants) known.add(variantKey(file.id, variant))
    for (const name of file.transforms) known.add(transformKey(file.id, name))
  }
  return found.map(blob => blob.key).filter(key => !known.has(key))
}

async function findOrphanParts(resumable: Pick<Resumable, 'knownParts'>, found: BlobInfo[]): Promise<string[]> {
  const idOf = (key: string) => key.split('/')[2] ?? ''
  const known = await resumable.knownParts([...new Set(found.map(blob => idOf(blob.key)))])
  return found.map(blob => blob.key).filter(key => !known.has(key))
}
