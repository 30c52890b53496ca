/**
 * Receives a file: while its bytes go to the blob store they are counted, hashed and looked at, and the first of them
 * that is wrong ends it. What was received belongs to nobody until it is accepted; the sweep finds what never was.
 */
import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import type { BlobStore } from '#platform/blobs/types.ts'
import { isAppError } from '#platform/errors.ts'
import { uuidv7 } from '#platform/ids.ts'
import type { Log } from '#platform/log.ts'
import { errors } from './errors.ts'
import { takenFormats } from './formats.ts'
import { originalKey } from './keys.ts'
import { makeWeigher } from './plans.ts'
import { makeProbe } from './probe/probe.ts'
import type { ImagesSettings } from './settings.ts'
import type { ImageFacts, Profile } from './types.ts'

/** A whole file in the blob store that passed every check of its header. */
export interface Received {
  /** The original lies under `originalKey(fileId)`. */
  fileId: string
  sha256: Buffer
  bytes: number
  facts: ImageFacts
}

export interface Receiver {
  /**
   * @param profile what is to be made of it
   * @param bytesKnown the size the sender states, where it does
   * @param bytesAtMost no more can come, where so much is known: a small file is then gathered in memory
   * @throws an AppError that says what is wrong with the file or its sending; nothing is kept then
   */
  receive(given: {
    source: AsyncIterable<Buffer>
    profile: Profile
    bytesMax: number
    bytesKnown?: number | undefined
    bytesAtMost?: number | undefined
  }): Promise<Received>
  /** Removes what was received and not accepted. Never throws: what stays is swept away later. */
  discard(received: Pick<Received, 'fileId'>): Promise<void>
  /** Uploads under way. */
  readonly receiving: number
}

/** A file of at most so many bytes is written in one go. */
const wholeBytesMax = 512 * 1024
const framesMax = 1000

export function makeReceiver(deps: {
  blobs: BlobStore
  log: Log
  settings: ImagesSettings
  clock: () => number
}): Receiver {
  const { blobs, log, settings, clock } = deps
  const weigh = makeWeigher(settings)
  let receiving = 0

  async function receive(given: Parameters<Receiver['receive']>[0]): Promise<Received> {
    const { source, profile, bytesMax, bytesKnown } = given
    if (bytesKnown !== undefined && bytesKnown > bytesMax) throw errors.bytesExceeded(bytesMax)
    if (receiving >= settings.IMAGE_UPLOADS_MAX) throw errors.uploadsFull()
    receiving++
    const fileId = uuidv7(clock())
    const checker = makeChecker({ source, bytesMax, settings, weigh: facts => weigh({ profile, facts }) })
    try {
      const key = originalKey(fileId)
      if ((bytesKnown ?? given.bytesAtMost ?? Number.POSITIVE_INFINITY) <= wholeBytesMax) {
        const body = await Array.fromAsync(checker.chunks)
        const facts = checker.finish()
        await blobs.put(key, Buffer.concat(body))
        return { fileId, ...checker.seal(), facts }
      }
      await blobs.put(key, Readable.from(checker.chunks, { objectMode: false }))
      return { fileId, ...checker.seal(), facts: checker.finish() }
    } catch (error) {
      await discard({ fileId })
      throw checker.refusal ?? error
    } finally {
      receiving--
    }
  }

  async function discard({ fileId }: Pick<Received, 'fileId'>) {
    try {
      await blobs.delete([originalKey(fileId)])
    } catch (error) {
      log.debug({ err: error, file: fileId }, 'a file that was not accepted stays until the sweep')
    }
  }

  return {
    receive,
    discard,
    get receiving() {
      return receiving
    },
  }
}

/** Passes chunks on and looks at them. */
function makeChecker(given: {
  source: AsyncIterable<Buffer>
  bytesMax: number
  settings: ImagesSettings
  weigh: (facts: ImageFacts) => number
}) {
  const { bytesMax, settings } = given
  const hash = createHash('sha256')
  const probe = makeProbe({ pixelsMax: settings.IMAGE_PIXELS_MAX, framesMax, formats: takenFormats() })
  let bytes = 0
  let refusal: unknown

  async function* look() {
    try {
      for await (const chunk of given.source) {
        bytes += chunk.length
        if (bytes > bytesMax) throw errors.bytesExceeded(bytesMax)
        probe.write(chunk)
        hash.update(chunk)
        yield chunk
      }
    } catch (error) {
      refusal = isAppError(error) ? error : errors.bodyCutOff()
      throw refusal
    }
  }

  return {
    chunks: look(),
    get refusal() {
      return refusal
    },
    /** @throws for a file that ends too early or is too heavy */
    finish(): ImageFacts {
      const facts = probe.end()
      const weight = given.weigh(facts)
      if (weight > settings.IMAGE_MEMORY_BYTES) throw errors.tooHeavy(weight, settings.IMAGE_MEMORY_BYTES)
      return facts
    },
    seal: () => ({ sha256: hash.digest(), bytes }),
  }
}
