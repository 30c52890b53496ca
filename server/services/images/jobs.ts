/**
 * What workers do with a file: mark it, have it scanned, make its variants, and hand the result to `settle`, which
 * writes it in the transaction that ends the job. Blobs have names that follow from the file, so a job that begins
 * twice writes the same ones; those of a file that is gone meanwhile are erased.
 */
import { mkdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { makeBatcher } from '#platform/batch.ts'
import type { BlobStore } from '#platform/blobs/types.ts'
import type { Bus } from '#platform/bus.ts'
import { type Database, isConnectionLoss, type Tx } from '#platform/database/pool.ts'
import type { Jobs } from '#platform/jobs/jobs.ts'
import {
  type ClaimedJob,
  JobCancelled,
  type JobContext,
  type NewJob,
  PermanentFailure,
  type QueueDefinition,
  type Settled,
} from '#platform/jobs/types.ts'
import type { Live } from '#platform/live/live.ts'
import { filePrefix, originalKey, variantKey } from './keys.ts'
import type { Plan, Planner } from './plans.ts'
import { PictureBroken, type Processor, type WorkDone } from './processing/types.ts'
import type { Publisher } from './publishing.ts'
import { FileRefused, type Scan } from './scanning.ts'
import type { ImagesSettings } from './settings.ts'
import * as store from './store.ts'
import type { StoredDescription, Variant } from './types.ts'

export const imagesQueue = 'images'
const eraseQueue = 'images.erase'
/** Ids of files that a worker has begun, and of those that it has ended. Requests wait for both. */
export const begunChannel = 'images.begun'
export const endedChannel = 'images.ended'

const batchMax = 256
const eraseMax = 1000
const eraseConcurrency = 4
/** How often an original is looked for. */
const missingMax = 5

export function topicOf(imageId: string): string {
  return `images/${imageId}`
}

export interface ImagePayload {
  /** The image that brought the file. */
  image_id: string
}

/** What is kept in the job's row, and what `settle` writes. */
type Ending = Omit<store.EndedFile, 'id'>

export interface QueueDeps {
  db: Database
  jobs: Pick<Jobs, 'add'>
  live: Pick<Live, 'wake'>
  bus: Pick<Bus, 'publish'>
  blobs: BlobStore
  settings: ImagesSettings
  /** Undefined in a process that works no images. */
  processor: Processor | undefined
  plan: Planner
  scan: Scan
  workFolder: string
}

export function makeImageQueue(deps: QueueDeps): QueueDefinition {
  const { db, live, bus, settings } = deps
  const begins = makeBatcher<{ id: string; attempt: number }, store.BegunRow | undefined>({
    name: 'beginning images',
    size: batchMax,
    waitingMax: Number.POSITIVE_INFINITY,
    isCommon: isConnectionLoss,
    run: async items => {
      const begun = new Map((await store.beginFiles(db, items)).map(row => [row.id, row]))
      bus.publish(begunChannel, [...begun.keys()])
      live.wake([...begun.values()].flatMap(row => row.image_ids.map(topicOf)))
      return items.map(item => ({ value: begun.get(item.id) }))
    },
  })

  async function handle(job: ClaimedJob, context: JobContext): Promise<Ending | null> {
    const file = await begins.push({ id: job.id, attempt: job.attempt })
    // It was deleted, or withdrawn because nobody took it in time. An attempt before may have written something.
    if (!file) return job.attempt > 1 ? deleted : null
    try {
      return await make(deps, file, { job, context })
    } catch (error) {
      if (context.signal.reason === 'cancelled') throw new JobCancelled()
      if (error instanceof FileRefused) return { ...nothingMade, status: 'refused', error: error.message }
      // Trying again would end the same.
      if (error instanceof PictureBroken) throw new PermanentFailure(error.message)
      throw error
    }
  }

  async function settle(tx: Tx, settled: Settled[]) {
    const ends = settled.map(one => ({ id: one.id, ...endingOf(one) }))
    const left = await leaveOut(tx, ends, settings.IMAGE_BYTES_PER_USER)
    const there = await store.endFiles(tx, ends)
    const byId = new Map(there.map(row => [row.id, row]))
    const bytesOf = (end: store.EndedFile) => end.variants.reduce((sum, variant) => sum + variant.bytes, 0)
    store.addUsage(
      tx,
      ends.flatMap(end => {
        const row = byId.get(end.id)
        return row && end.variants.length > 0 ? [{ owner: row.owner, bytes: bytesOf(end) }] : []
      }),
    )
    // What was made of it may have been written after it had been erased.
    const gone = settled.filter(one => !byId.has(one.id) && (one.result !== null || one.state === 'dead'))
    await deps.jobs.add(tx, [
      ...left.map(eraseLeftOut),
      ...gone.map(one => eraseJob({ fileId: one.id, imageId: (one.payload as ImagePayload).image_id })),
    ])
    tx.afterCommit(() => live.wake(there.flatMap(row => row.image_ids.map(topicOf))))
  }

  return {
    name: imagesQueue,
    concurrency: settings.N_WORKERS,
    // A file that is to blame fails at once. The rest passes: a store or a scanner that is away for an hour comes back.
    attemptsMax: 1000,
    backoffMs: 500,
    backoffMaxMs: 30_000,
    ...(deps.processor ? { handle } : {}),
    settle,
    settled: settled => {
      bus.publish(
        endedChannel,
        settled.map(one => one.id),
      )
    },
    async retried(tx, id) {
      await store.requeueFile(tx, id)
    },
  }
}

type LeftOut = Pick<store.EndedFile, 'id' | 'variants'>

/** Takes out the variants for which there is no room: they are made when somebody asks. Answers those. */
async function leaveOut(tx: Tx, ends: store.EndedFile[], bytesMax: number): Promise<LeftOut[]> {
  const made = ends.filter(end => end.variants.length > 0).map(end => end.id)
  const rows = await store.lockUsage(tx, made)
  const owners = new Map(rows.map(row => [row.id, row.owner]))
  const room = new Map(rows.map(row => [row.owner, bytesMax - row.bytes]))
  return ends.flatMap(end => {
    const owner = owners.get(end.id)
    if (owner === undefined) return []
    const { fitting, others, rest } = fit(end.variants, room.get(owner)!)
    room.set(owner, rest)
    end.variants = fitting
    return others.length > 0 ? [{ id: end.id, variants: others }] : []
  })
}

/** Those that fit, one after the other. */
function fit(variants: readonly Variant[], bytes: number) {
  let rest = bytes
  const fitting: Variant[] = []
  const others: Variant[] = []
  for (const variant of variants) {
    const fits = variant.bytes <= rest
    if (fits) rest -= variant.bytes
    ;(fits ? fitting : others).push(variant)
  }
  return { fitting, others, rest }
}

function eraseLeftOut({ id, variants }: LeftOut): NewJob {
  return eraseJob({ fileId: id, keys: variants.map(variant => variantKey(id, variant)) })
}

const nothingMade = { description: null, variants: [], error: null }
const deleted: Ending = { ...nothingMade, status: 'failed', error: 'It was deleted.' }

function endingOf(settled: Settled): Ending {
  const result = settled.result as Ending | null
  if (settled.state === 'succeeded' && result !== null) return result
  const error =
    settled.state === 'cancelled' ? 'Its job was cancelled.' : (settled.error ?? 'It could not be worked on.')
  return { ...nothingMade, status: 'failed', error }
}

async function make(
  deps: QueueDeps,
  file: store.BegunRow,
  { job, context }: { job: ClaimedJob; context: JobContext },
): Promise<Ending> {
  const plan = deps.plan(file, (job.payload as ImagePayload).image_id)
  const folder = path.join(deps.workFolder, `${file.id}-${job.attempt}`)
  const ending = await deps.blobs.withFile(originalKey(file.id), async original => {
    await deps.scan({ path: original, signal: context.signal })
    await mkdir(folder, { recursive: true, mode: 0o700 })
    try {
      const outputs = plan.outputs.map(output => ({
        transform: output.transform,
        path: path.join(folder, output.name),
      }))
      const done = await deps.processor!.work({
        id: file.id,
        path: original,
        facts: file.facts,
        outputs,
        describe: true,
        signal: context.signal,
      })
      await plan.publish?.(outputs[0]?.path ?? original)
      const variants = await keepVariants(deps, { file, plan, paths: outputs.map(output => output.path), done })
      return { status: 'ready', description: describe(done), variants, error: null } as const
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  })
  if (ending) return ending
  const Failure = job.attempt < missingMax ? Error : PermanentFailure
  throw new Failure('The original is not in the blob store.')
}

async function keepVariants(
  { blobs }: QueueDeps,
  given: { file: store.BegunRow; plan: Plan; paths: string[]; done: WorkDone },
): Promise<Variant[]> {
  const variants = given.plan.outputs.map(({ name }, index) => {
    const { format, width, height, bytes } = given.done.made[index]!
    return { name, format, width, height, bytes }
  })
  await Promise.all(
    variants.map((variant, index) => blobs.putFile(variantKey(given.file.id, variant), given.paths[index]!)),
  )
  return variants
}

function describe({ description }: WorkDone): StoredDescription {
  const { width, height, thumbhash, dominantColour, hasAlpha } = description!
  return {
    width,
    height,
    thumbhash: thumbhash.toString('base64'),
    dominant_colour: dominantColour,
    has_alpha: hasAlpha,
  }
}

/** Added in the transaction that deletes the file, or says that these blobs of it are none of its. */
export function eraseJob(payload: ErasePayload): NewJob {
  return { queue: eraseQueue, payload }
}

/** A file that is gone, with the image that brought it; or some blobs of one that stays. */
type ErasePayload = { fileId: string; imageId: string } | { fileId: string; keys: string[] }

/** Erases what is kept of a file that is gone, or some of it, however often it takes. */
export function makeEraseQueue(deps: { blobs: BlobStore; publisher: Publisher; work: boolean }): QueueDefinition {
  const { blobs } = deps
  return {
    name: eraseQueue,
    concurrency: eraseConcurrency,
    attemptsMax: 1000,
    backoffMs: 500,
    backoffMaxMs: 60_000,
    ...(deps.work && {
      async handle(job: ClaimedJob) {
        const payload = job.payload as ErasePayload
        if ('keys' in payload) {
          await blobs.delete(payload.keys)
          return null
        }
        const { fileId, imageId } = payload
        for (;;) {
          const found = await blobs.list(filePrefix(fileId), { limit: eraseMax })
          await blobs.delete(found.map(blob => blob.key))
          if (found.length < eraseMax) break
        }
        await deps.publisher.erase(imageId)
        return null
      },
    }),
  }
}
