/** What is decided about images: who has which, what an upload becomes, what goes with a deletion. */
import { createHash } from 'node:crypto'
import { makeBatcher, type Outcome } from '#platform/batch.ts'
import { byIdsParameters, type Database, isConnectionLoss, type Tx } from '#platform/database/pool.ts'
import { isAppError, errors as platformErrors } from '#platform/errors.ts'
import { assertScope, type Caller } from '#platform/http/guard.ts'
import { type Claim, claimKeys, type IdempotencyKey } from '#platform/http/idempotency.ts'
import { isUuid, uuidv7 } from '#platform/ids.ts'
import type { Jobs } from '#platform/jobs/jobs.ts'
import type { Live, LiveEvent, TopicSource } from '#platform/live/live.ts'
import { errors } from './errors.ts'
import { eraseJob, type ImagePayload, imagesQueue, topicOf } from './jobs.ts'
import type { Received, Receiver } from './receiving.ts'
import type { ImagesSettings } from './settings.ts'
import * as store from './store.ts'
import type { Profile, Visibility } from './types.ts'

/** Who an image belongs to; undefined for the old contract's open route. */
export type ImageOwner = Pick<Caller, 'userId' | 'role'>

export interface Acceptance {
  received: Received
  owner: ImageOwner | undefined
  profile: Profile
  /** Given where a contract says what an id looks like. */
  id?: string
  name: string | null
  visibility: Visibility
  /** The header's key; the file's hash is part of what makes two requests the same. */
  key: string | undefined
  requestId: string | undefined
}

export interface Accepted {
  id: string
  fileId: string
  /** False where an equal file of the owner was there, or an earlier request with the same key made the image. */
  isNew: boolean
}

export interface Images {
  /** Before a body is read. @throws image_queue_full, image_quota_exceeded */
  assertRoom(owner: ImageOwner | undefined): Promise<void>
  /**
   * Makes a received file an image; it is durable when this resolves. Concurrent calls share a commit.
   * @throws image_quota_exceeded, however many calls race
   */
  accept(given: Acceptance): Promise<Accepted>
  /** Takes back an image whose file no worker has begun. Answers false when one has. */
  withdraw(accepted: { id: string; fileId: string }): Promise<boolean>
  /** @throws image_not_found for another's too */
  getImage(caller: ImageOwner, id: string): Promise<store.ImageRow>
  listImages(filter: store.ImageFilter): Promise<store.ImageRow[]>
  /** @throws image_not_found */
  deleteImage(caller: ImageOwner, id: string): Promise<void>
  readonly source: TopicSource
}

export interface ImagesDeps {
  db: Database
  jobs: Pick<Jobs, 'add' | 'depth' | 'cancel'>
  live: Pick<Live, 'wake'>
  receiver: Pick<Receiver, 'discard'>
  settings: ImagesSettings
  clock: () => number
}

interface Waiting extends Acceptance {
  id: string
  createdAt: Date
}

const acceptMax = 256
const acceptWaitingMax = 10_000
const uploadPath = '/v1/images'

export function makeImages(deps: ImagesDeps): Images {
  const { db, jobs, receiver, settings } = deps

  const acceptances = makeBatcher<Waiting, Accepted>({
    name: 'new images',
    size: acceptMax,
    waitingMax: acceptWaitingMax,
    isCommon: isConnectionLoss,
    run: acceptAll,
  })

  async function accept(given: Acceptance): Promise<Accepted> {
    const item = { ...given, id: given.id ?? uuidv7(deps.clock()), createdAt: new Date(deps.clock()) }
    let accepted: Accepted
    try {
      accepted = await acceptances.push(item)
    } catch (error) {
      // Whether a failed commit was one is not known: what was received stays then, and the sweep decides.
      if (isAppError(error) && error.status < 500) await receiver.discard(given.received)
      throw error
    }
    if (accepted.fileId !== given.received.fileId) await receiver.discard(given.received)
    return accepted
  }

  /** Without those for which there is no room, of which nothing is kept, not even their keys. */
  async function acceptAll(items: Waiting[]): Promise<Outcome<Accepted>[]> {
    const refused = new Set<Waiting>()
    for (;;) {
      const rest = items.filter(item => !refused.has(item))
      try {
        const outcomes = await db.tx(tx => acceptRoomy(tx, rest), { parameters: byIdsParameters })
        const accepted = new Map(rest.map((item, index) => [item, outcomes[index]!]))
        return items.map(item => accepted.get(item) ?? { error: errors.quotaExceeded(settings.IMAGE_BYTES_PER_USER) })
      } catch (error) {
        if (!(error instanceof NoRoom)) throw error
        for (const item of error.items) refused.add(item)
      }
    }
  }

  /** @throws NoRoom for all of it, where one of them has none */
  async function acceptRoomy(tx: Tx, items: Waiting[]): Promise<Outcome<Accepted>[]> {
    const claims = await claimKeys<Accepted>(
      tx,
      items.map(item => ({
        key: keyOf(item),
        answer: { status: 202, body: { id: item.id, fileId: item.received.fileId, isNew: false } },
      })),
    )
    const fresh = items.filter((_, index) => claims[index] === 'fresh')
    const files = fresh.length > 0 ? await insertAll(tx, fresh) : new Map<Waiting, string>()
    return items.map((item, index) => outcomeOf(item, claims[index]!, files.get(item)))
  }

  /** Answers the file of each. */
  async function insertAll(tx: Tx, items: Waiting[]): Promise<Map<Waiting, string>> {
    const inserted = await store.insertFiles(tx, items.map(toFile))
    const isNew = (item: Waiting) => inserted.has(item.received.fileId)
    const rest = items.filter(item => !isNew(item))
    const equal = rest.length > 0 ? await store.lockEqualFiles(tx, rest.map(toFile)) : []
    const byContent = new Map(equal.map(file => [contentOf(file), file.id]))
    const files = new Map(
      items.map(item => [item, isNew(item) ? item.received.fileId : byContent.get(contentOf(toFile(item)))]),
    )
    // It was deleted between the two statements: everything is tried again, alone.
    if ([...files.values()].includes(undefined)) {
      throw platformErrors.unavailable('An equal image is being deleted just now; try again.', 1)
    }
    const fresh = items.filter(isNew)
    await charge(tx, { items, fresh, files: files as Map<Waiting, string> })
    store.insertImages(
      tx,
      items.map(item => toImage(item, files.get(item)!)),
    )
    await jobs.add(tx, fresh.map(toJob))
    return files as Map<Waiting, string>
  }

  /** From then on to the commit nobody else's files are charged to their owners. */
  async function charge(tx: Tx, given: { items: Waiting[]; fresh: Waiting[]; files: Map<Waiting, string> }) {
    const charges = given.fresh.map(item => ({
      id: item.received.fileId,
      owner: item.owner?.userId ?? null,
      bytes: item.received.bytes,
    }))
    const totals = await store.chargeUsage(tx, charges)
    const bytesMax = settings.IMAGE_BYTES_PER_USER
    const over = findOver({ charges, totals, bytesMax })
    if (over.size > 0) throw new NoRoom(given.items.filter(item => over.has(given.files.get(item)!)))
  }

  async function withdraw({ id: imageId, fileId }: { id: string; fileId: string }): Promise<boolean> {
    return db.tx(async tx => {
      const gone = await store.withdrawFile(tx, fileId)
      if (!gone) return false
      store.addUsage(tx, [{ owner: gone.owner, bytes: -gone.bytes }])
      await jobs.add(tx, [eraseJob({ fileId, imageId })])
      await jobs.cancel(tx, fileId)
      return true
    })
  }

  async function getImage(caller: ImageOwner, id: string): Promise<store.ImageRow> {
    const image = isUuid(id) ? await store.findImage(db, id) : undefined
    if (!image || !mayOwn(caller, image.owner)) throw errors.imageNotFound()
    return image
  }

  return {
    async assertRoom(owner) {
      if (jobs.depth(imagesQueue) >= settings.IMAGE_WAITING_MAX) throw errors.queueFull()
      if (owner === undefined) return
      if ((await store.findUsage(db, owner.userId)) >= settings.IMAGE_BYTES_PER_USER) {
        throw errors.quotaExceeded(settings.IMAGE_BYTES_PER_USER)
      }
    },
    accept,
    withdraw,
    getImage,
    listImages: filter => store.listImages(db, filter),
    async deleteImage(caller, id) {
      await getImage(caller, id)
      await db.tx(async tx => {
        const fileId = await store.deleteImage(tx, id)
        if (fileId === undefined) throw errors.imageNotFound()
        tx.afterCommit(() => deps.live.wake([topicOf(id)]))
        const gone = await store.deleteUnusedFile(tx, fileId)
        if (!gone) return
        store.addUsage(tx, [{ owner: gone.owner, bytes: -gone.bytes }])
        await jobs.add(tx, [eraseJob({ fileId, imageId: id })])
      })
    },
    source: {
      kind: 'images',
      async authorize(caller, id) {
        assertScope(caller, 'images:read')
        await getImage(caller, id)
      },
      async read(id, after, limit) {
        const rows = await store.listEvents(db, { imageId: id, after, limit })
        if (rows.length > 0) return rows.map(toLiveEvent)
        // Whoever follows was let in while it was there. There is no row for it: nobody else may begin to follow.
        const isGone = (await store.listHeads(db, [id])).size === 0
        return isGone ? [{ seq: after + 1, type: 'deleted', data: null, final: true }] : []
      },
      async heads(ids) {
        const heads = await store.listHeads(db, ids)
        // One that was deleted before its first reader was there has that event alone.
        return new Map(ids.map(id => [id, heads.get(id) ?? 1]))
      },
    },
  }
}

/** Of a batch whose transaction is rolled back. */
class NoRoom extends Error {
  readonly items: readonly Waiting[]

  constructor(items: readonly Waiting[]) {
    super('There is no room for some images.')
    this.items = items
  }
}

/** The ids of those for which their owner has no room, first come, first served. `totals` are with all of them. */
function findOver(given: {
  charges: readonly { id: string; owner: string | null; bytes: number }[]
  totals: ReadonlyMap<string, number>
  bytesMax: number
}): Set<string> {
  const over = new Set<string>()
  const left = new Map([...given.totals].map(([owner, total]) => [owner, given.bytesMax - total]))
  for (const { owner, bytes } of given.charges) if (owner !== null) left.set(owner, left.get(owner)! + bytes)
  for (const { id, owner, bytes } of given.charges) {
    if (owner === null) continue
    const rest = left.get(owner)! - bytes
    if (rest < 0) over.add(id)
    else left.set(owner, rest)
  }
  return over
}

/** An image without an owner is an admin's. */
export function mayOwn(caller: ImageOwner, owner: string | null): boolean {
  return caller.role === 'admin' || (owner !== null && owner === caller.userId)
}

function outcomeOf(item: Waiting, claim: Claim<Accepted>, fileId: string | undefined): Outcome<Accepted> {
  if (claim === 'fresh') {
    return { value: { id: item.id, fileId: fileId!, isNew: fileId === item.received.fileId } }
  }
  return 'error' in claim ? claim : { value: { ...claim.answer.body, isNew: false } }
}

/** The body is no JSON and long gone, so its hash stands for it. */
function keyOf(item: Waiting): IdempotencyKey | undefined {
  if (item.key === undefined) return undefined
  const fingerprint = createHash('sha256')
    .update(`POST ${uploadPath}\n`)
    .update(item.received.sha256)
    .update(JSON.stringify([item.name, item.visibility]))
    .digest()
  return { owner: item.owner?.userId ?? '', key: item.key, fingerprint }
}

function contentOf(file: { owner: string | null; sha256: Buffer }): string {
  return `${file.owner}\n${file.sha256.toString('hex')}`
}

function toFile(item: Waiting): store.NewFile {
  const { fileId, sha256, bytes, facts } = item.received
  const owner = item.owner?.userId ?? null
  // The old contract's files are kept by the image's own name: each has its own.
  const shared = owner !== null && item.profile === 'presets'
  return { id: fileId, owner, profile: item.profile, sha256, bytes, facts, shared, createdAt: item.createdAt }
}

function toImage(item: Waiting, fileId: string): store.NewImage {
  const { id, name, visibility, createdAt } = item
  return { id, fileId, owner: item.owner?.userId ?? null, name, visibility, createdAt }
}

function toJob({ id, received, owner, profile, requestId }: Waiting) {
  return {
    id: received.fileId,
    queue: imagesQueue,
    payload: { image_id: id } satisfies ImagePayload,
    owner: owner?.userId,
    // Somebody waits a tenth of a second for it.
    priority: profile === 'upload' ? 1 : 0,
    requestId,
  }
}

function toLiveEvent(row: store.EventRow): LiveEvent {
  const { status } = row.data
  return { seq: row.seq, type: 'status', data: row.data, final: status !== 'waiting' && status !== 'processing' }
}
