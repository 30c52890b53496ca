/** The old image server's route: CONTRACTS say what it takes and answers; its images are images. */
import { randomUUID } from 'node:crypto'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { isAppError } from '#platform/errors.ts'
import { callerUnlessOpen, type OpenRoutes } from '#platform/http/open-routes.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Waits } from '#platform/waits.ts'
import { formBytesMax, letGoOf, readForm } from './bodies.ts'
import { errors } from './errors.ts'
import type { Images } from './images.ts'
import type { Received, Receiver } from './receiving.ts'
import type { ImagesSettings } from './settings.ts'
import { cleanName } from './shapes.ts'
import { filePart, isForm, statedBytes } from './upload-routes.ts'

export interface CompatDeps {
  images: Images
  receiver: Receiver
  /** Of files that a worker has begun. */
  begun: Waits
  openRoutes: OpenRoutes
  settings: ImagesSettings
}

const jpegBytesMax = 8192 * 1024
/** A worker takes the job in this time, or nothing was accepted. */
const takenMs = 100
const profile = 'upload'

/** @param app whose bodies are left alone, see `leaveBodies` */
export function addCompatRoutes(app: HttpApp, deps: CompatDeps) {
  const { images, begun, openRoutes } = deps
  app.post(
    '/upload',
    {
      config: { access: 'optional', scope: 'images:write', errorShape: 'legacy' },
      schema: {
        tags: ['old contract: images'],
        summary: 'Upload a JPEG to be made smaller',
        description: 'A form with one part, `image`, of at most 8192 kB. 429 when no worker takes it within 100 ms.',
        consumes: ['multipart/form-data'],
      },
    },
    async (request, reply) => {
      const caller = callerUnlessOpen(request, openRoutes)
      const form = await receiveOrLetGo(request, reply, deps)
      const accepted = await images.accept({
        received: form.received,
        owner: caller,
        profile,
        id: randomUUID(),
        name: form.name,
        visibility: 'private',
        key: undefined,
        requestId: request.id,
      })
      const isTaken = await begun.waitFor({ id: accepted.fileId, waitMs: takenMs, isNew: true })
      if (!isTaken && (await images.withdraw(accepted))) throw errors.noWorkerFree()
      return reply.status(200).send({ image_id: accepted.id })
    },
  )
}

async function receiveOrLetGo(request: FastifyRequest, reply: FastifyReply, deps: CompatDeps) {
  try {
    await deps.images.assertRoom(request.caller)
    return await receiveJpeg(request, deps)
  } catch (error) {
    await letGoOf(request, reply)
    throw asOldServer(error)
  }
}

async function receiveJpeg(request: FastifyRequest, { receiver, settings }: CompatDeps) {
  if (!isForm(request)) throw errors.partMissing(filePart)
  const bytesKnown = statedBytes(request)
  if (bytesKnown !== undefined && bytesKnown > jpegBytesMax + formBytesMax) throw errors.bytesExceeded(jpegBytesMax)
  const { file: received, fileName } = await readForm<Received>(request, {
    part: filePart,
    fields: [],
    pace: settings,
    onFile: source => receiver.receive({ source, profile, bytesMax: jpegBytesMax, bytesAtMost: bytesKnown }),
  })
  if (received.facts.format === 'jpeg') return { received, name: cleanName(fileName) }
  await receiver.discard(received)
  throw errors.notJpeg()
}

/** The old server knew 400 for whatever is wrong with a file. */
function asOldServer(error: unknown): unknown {
  if (!isAppError(error) || (error.status !== 415 && error.status !== 422)) return error
  return errors.uploadRefused(error.message)
}
