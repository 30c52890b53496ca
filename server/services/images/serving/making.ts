/**
 * Makes transforms that nobody keeps. Requests for the same one wait for one making, which is aborted when the last of
 * them has gone. What was made is in memory, or else, where it is large, a file of the work folder: it is answered from
 * there at once, and kept in the blob store behind the answer, where there is room. So a flight is: waiting for a turn,
 * being made, answered, kept.
 */
import { randomUUID } from 'node:crypto'
import { type FileHandle, open, rm } from 'node:fs/promises'
import path from 'node:path'
import { Readable } from 'node:stream'
import type { BlobStore, ByteRange } from '#platform/blobs/types.ts'
import type { Database } from '#platform/database/pool.ts'
import { isAppError } from '#platform/errors.ts'
import type { Log } from '#platform/log.ts'
import { originalKey } from '../keys.ts'
import { type FixedTransform, type Made as MadeFile, PictureBroken, type Processor } from '../processing/types.ts'
import type { ImagesSettings } from '../settings.ts'
import type { ImageFacts } from '../types.ts'
import { errors } from './errors.ts'
import { makeKeeper } from './keeping.ts'
import { makeShares, type Share } from './shares.ts'

export interface Wanted {
  fileId: string
  facts: ImageFacts
  /** See `transformName`. */
  name: string
  transform: FixedTransform
  /** Who asks, among whom places are shared out: a user, or the address of somebody unknown. */
  holder: string
  /** Aborted when the client has gone. */
  signal: AbortSignal
}

/** Something made. Whoever has it must read or release it, once. */
export interface Made {
  bytes: number
  read(range: ByteRange | undefined): Buffer | Readable
  release(): void
}

export interface Maker {
  /**
   * Undefined where the original is not in the blob store.
   *
   * @throws transform_failed where the file is to blame, image_makers_full, too_many_transforms, image_makers_away,
   * client_gone, blob_store_unavailable
   */
  make(wanted: Wanted): Promise<Made | undefined>
  /** Being made, waiting for it, or being kept. */
  readonly making: number
  /** Resolves when all that was begun is answered and kept. */
  stop(): Promise<void>
}

export interface MakerDeps {
  db: Database
  blobs: BlobStore
  processor: Pick<Processor, 'work'>
  settings: Pick<ImagesSettings, 'IMAGE_BYTES_PER_USER' | 'IMAGE_TRANSFORMS_MAX' | 'N_WORKERS'>
  log: Log
  workFolder: string
}

interface Flight {
  waiters: Set<PromiseWithResolvers<Made | undefined>>
  controller: AbortController
  /** From when it is made until it is kept: whoever comes then is answered from it too. */
  shared: Shared | undefined
}

/** What several requests are answered from. */
interface Shared {
  bytes: number
  /** All of it, where it is in memory. */
  body: Buffer | undefined
  hold(): Made
  release(): void
}

/** Makings that are not answered yet, those of all who ask. */
const flightsMax = 256
/** Originals at hand, for each process that decodes: one is fetched while another is worked on. */
const originalsPerWorker = 2
/** Written at once: not more, so that `endWhenSlow` sees what is taken. */
const chunkBytes = 256 * 1024

export function makeMaker(deps: MakerDeps): Maker {
  /** Those that can be joined. */
  const flights = new Map<string, Flight>()
  /** Those too that were given up and have not ended yet. Never reject. */
  const running = new Set<Promise<void>>()
  const shares = makeShares({ places: flightsMax, abreast: deps.settings.N_WORKERS * originalsPerWorker })
  const keeper = makeKeeper(deps)

  function begin(id: string, wanted: Wanted): Flight {
    const share = shares.take(wanted.holder)
    const flight: Flight = { waiters: new Set(), controller: new AbortController(), shared: undefined }
    flights.set(id, flight)
    const done = fly(id, flight, { wanted, share })
    running.add(done)
    void done.finally(() => running.delete(done))
    return flight
  }

  async function fly(id: string, flight: Flight, { wanted, share }: { wanted: Wanted; share: Share }) {
    const { fileId, name, transform } = wanted
    const file = path.join(deps.workFolder, `${randomUUID()}.${transform.format}`)
    try {
      flight.shared = await make(wanted, { file, share, signal: flight.controller.signal })
      for (const waiter of flight.waiters) waiter.resolve(flight.shared?.hold())
    } catch (error) {
      for (const waiter of flight.waiters) waiter.reject(error)
    }
    const { shared } = flight
    const kept = shared && keeper.keep({ fileId, name, bytes: shared.bytes, content: shared.body ?? { file } })
    share.end()
    if (shares.taken === 0) keeper.hurry()
    await kept
    forget(id, flight)
    shared?.release()
    if (shared?.body) return
    await rm(file, { force: true }).catch(error => deps.log.warn({ err: error }, 'a made file was not removed'))
  }

  /** Whoever comes from now on begins another. */
  function forget(id: string, flight: Flight) {
    if (flights.get(id) === flight) flights.delete(id)
  }

  /** Undefined where the original is gone. */
  async function make(wanted: Wanted, given: { file: string; share: Share; signal: AbortSignal }) {
    const { file, share, signal } = given
    try {
      const made = await share.run(() => makeFile(deps, { wanted, file, signal }))
      return made && (made.body ? shareBody(made.body) : shareFile(await open(file), made.bytes))
    } catch (error) {
      throw signal.aborted ? errors.clientGone() : translate(error, wanted, deps.log)
    }
  }

  function join(id: string, flight: Flight, signal: AbortSignal): Promise<Made | undefined> {
    const waiter = Promise.withResolvers<Made | undefined>()
    const leave = () => {
      flight.waiters.delete(waiter)
      waiter.reject(errors.clientGone())
      if (flight.waiters.size > 0) return
      forget(id, flight)
      flight.controller.abort()
    }
    flight.waiters.add(waiter)
    signal.addEventListener('abort', leave, { once: true })
    return waiter.promise.finally(() => signal.removeEventListener('abort', leave))
  }

  return {
    async make(wanted) {
      if (wanted.signal.aborted) throw errors.clientGone()
      const id = idOf(wanted)
      const flight = flights.get(id) ?? begin(id, wanted)
      return flight.shared ? flight.shared.hold() : join(id, flight, wanted.signal)
    },
    get making() {
      return running.size
    },
    async stop() {
      await Promise.all(running)
    },
  }
}

function idOf({ fileId, name }: Wanted): string {
  return `${fileId}/${name}`
}

async function makeFile(
  { blobs, processor }: MakerDeps,
  { wanted, file, signal }: { wanted: Wanted; file: string; signal: AbortSignal },
): Promise<MadeFile | undefined> {
  signal.throwIfAborted()
  const { facts, transform } = wanted
  const outputs = [{ transform, path: file, inline: true }]
  const id = idOf(wanted)
  const work = (original: string) => processor.work({ id, path: original, facts, outputs, urgent: true, signal })
  // An image that is ready has its original.
  const done = await blobs.withFile(originalKey(wanted.fileId), work, { trusting: true })
  return done?.made[0]
}

function translate(error: unknown, { fileId }: Wanted, log: Log): unknown {
  if (isAppError(error)) return error
  if (error instanceof PictureBroken) return errors.transformFailed(error.message)
  log.error({ err: error, file: fileId }, 'a transform could not be made')
  return errors.makersAway()
}

function shareBody(body: Buffer): Shared {
  return { bytes: body.length, body, hold: () => madeOf(body), release: () => {} }
}

function madeOf(body: Buffer): Made {
  return {
    bytes: body.length,
    read(range) {
      const part = range ? body.subarray(range.start, range.end + 1) : body
      return part.length > chunkBytes ? Readable.from(piecesOf(part), { objectMode: false }) : part
    },
    release: () => {},
  }
}

function* piecesOf(body: Buffer) {
  for (let at = 0; at < body.length; at += chunkBytes) yield body.subarray(at, at + chunkBytes)
}

/** The open file outlives its name; the last to release it closes it. */
function shareFile(handle: FileHandle, bytes: number): Shared {
  let holders = 1
  const release = () => {
    if (--holders === 0) handle.close().catch(() => {})
  }
  return {
    bytes,
    body: undefined,
    release,
    hold() {
      holders++
      return {
        bytes,
        release,
        read: range =>
          Readable.from(chunksOf(handle, range ?? { start: 0, end: bytes - 1 }), { objectMode: false }).once(
            'close',
            release,
          ),
      }
    },
  }
}

async function* chunksOf(handle: FileHandle, { start, end }: ByteRange) {
  for (let at = start; at <= end; ) {
    const { buffer, bytesRead } = await handle.read(
      Buffer.allocUnsafe(chunkBytes),
      0,
      Math.min(chunkBytes, end + 1 - at),
      at,
    )
    if (bytesRead === 0) throw new Error('The file is shorter than it was.')
    yield buffer.subarray(0, bytesRead)
    at += bytesRead
  }
}
