/**
 * Keeps what was made, behind the answers. What goes wrong here costs the next request a making, and nobody an answer.
 *
 * What was made waits until nothing is being made any more, until there is much of it, or for a moment: makings go
 * first, and many together cost little more than one. So it is waiting, being put into the blob store, and kept.
 */
import type { BlobStore } from '#platform/blobs/types.ts'
import type { Database } from '#platform/database/pool.ts'
import { makeGate } from '#platform/live/gate.ts'
import type { Log } from '#platform/log.ts'
import { transformKey } from '../keys.ts'
import type { ImagesSettings } from '../settings.ts'
import { insertTransforms } from '../store.ts'
import { chooseRoomy } from './room.ts'
import * as store from './store.ts'

export interface Keepable {
  fileId: string
  name: string
  bytes: number
  /** All of it, or a file of the work folder, which may be gone afterwards. */
  content: Buffer | { file: string }
}

export interface Keeper {
  /** Resolves when it is kept, or is not. Never rejects. */
  keep(made: Keepable): Promise<void>
  /** Nothing is being made: what waits need wait no more. */
  hurry(): void
}

export interface KeeperDeps {
  db: Database
  blobs: BlobStore
  settings: Pick<ImagesSettings, 'IMAGE_BYTES_PER_USER' | 'IMAGE_TRANSFORMS_MAX'>
  log: Log
}

interface Waiting {
  made: Keepable
  done: PromiseWithResolvers<void>
}

const mib = 1024 * 1024
/** How long something waits while others are being made. */
const waitMs = 1000
/** So many need wait no more. */
const batchSize = 32
/** Waiting or on their way into the store at once; what is made meanwhile is not kept this time. */
const keepingMax = 128
const keepingBytesMax = 32 * mib
const putsAtOnce = 4
/** Nobody was told that it is kept: a commit that is lost costs a sweep of the blob. */
const parameters = { synchronous_commit: 'off' }

export function makeKeeper(deps: KeeperDeps): Keeper {
  const { settings, log } = deps
  let waiting: Waiting[] = []
  let running = 0
  let heldBytes = 0
  let timer: NodeJS.Timeout | undefined
  let isDue = false

  function begin() {
    isDue = true
    if (running > 0 || waiting.length === 0) return
    clearTimeout(timer)
    isDue = false
    const batch = waiting
    waiting = []
    running = batch.length
    keepAll(
      deps,
      batch.map(each => each.made),
    )
      .catch(error => log.warn({ err: error, count: batch.length }, 'transforms were made and could not be kept'))
      .finally(() => end(batch))
  }

  function end(batch: Waiting[]) {
    running = 0
    for (const { made, done } of batch) {
      heldBytes -= heldBytesOf(made)
      done.resolve()
    }
    if (isDue || waiting.length >= batchSize) begin()
  }

  return {
    async keep(made) {
      const held = heldBytesOf(made)
      const isFull = waiting.length + running >= keepingMax || heldBytes + held > keepingBytesMax
      if (isFull || settings.IMAGE_TRANSFORMS_MAX === 0) return
      heldBytes += held
      const done = Promise.withResolvers<void>()
      if (waiting.push({ made, done }) === 1) {
        isDue = false
        timer = setTimeout(begin, waitMs)
      }
      if (waiting.length >= batchSize) begin()
      return done.promise
    },
    hurry() {
      // After the answers, which are on their way.
      setImmediate(begin)
    },
  }
}

function heldBytesOf({ content }: Keepable): number {
  return Buffer.isBuffer(content) ? content.length : 0
}

async function keepAll(deps: KeeperDeps, all: readonly Keepable[]) {
  const { db, blobs, settings } = deps
  const put = await putAll(deps, await chooseRoomy(deps, all))
  if (put.length === 0) return
  const inserted = await db.tx(
    tx => {
      store.lockFiles(
        tx,
        put.map(each => each.fileId),
      )
      return insertTransforms(tx, { transforms: put, max: settings.IMAGE_TRANSFORMS_MAX })
    },
    { parameters },
  )
  const rest = without(put, inserted)
  if (rest.length === 0) return
  // Another process may have kept it meanwhile. Otherwise it belongs to nobody: the file is gone, or has too many now.
  await blobs.delete(without(rest, await store.findKept(db, rest)).map(keyOf))
}

/** Answers those that stand in the store. */
async function putAll({ blobs, log }: KeeperDeps, all: readonly Keepable[]): Promise<Keepable[]> {
  const gate = makeGate(putsAtOnce)
  const put = async (made: Keepable) => {
    const { content } = made
    if (Buffer.isBuffer(content)) await blobs.put(keyOf(made), content, { durable: false })
    else await blobs.putFile(keyOf(made), content.file)
    return made
  }
  const results = await Promise.allSettled(all.map(made => gate(() => put(made))))
  const failed = results.find(each => each.status === 'rejected')
  if (failed) log.warn({ err: failed.reason }, 'a transform was made and could not be kept')
  return results.flatMap(each => (each.status === 'fulfilled' ? [each.value] : []))
}

interface Named {
  fileId: string
  name: string
}

function keyOf({ fileId, name }: Named): string {
  return transformKey(fileId, name)
}

function without<T extends Named>(all: readonly T[], those: readonly Named[]): T[] {
  const keys = new Set(those.map(keyOf))
  return all.filter(each => !keys.has(keyOf(each)))
}
