/** Uploads in one request: the file as the body, or in a form. */
import type { FastifyRequest } from 'fastify'
import { type Static, Type } from 'typebox'
import { closedSignal } from '#platform/http/closed-signal.ts'
import { callerOf } from '#platform/http/guard.ts'
import { checkKey } from '#platform/http/idempotency.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Waits } from '#platform/waits.ts'
import { formBytesMax, inTime, letGoOf, readForm } from './bodies.ts'
import { errors } from './errors.ts'
import type { Images } from './images.ts'
import type { Received, Receiver } from './receiving.ts'
import type { ImagesSettings } from './settings.ts'
import { cleanName, Image, imageNameMax, showImage, Visibility } from './shapes.ts'
import { visibilities } from './types.ts'

export interface UploadDeps {
  images: Images
  receiver: Receiver
  ended: Waits
  settings: ImagesSettings
}

/** The part of a form that holds the file, here and in the old contract. */
export const filePart = 'image'
const fieldNames = ['name', 'visibility'] as const
const waitSecondsMax = 60
const profile = 'presets'

const Query = Type.Object({
  wait: Type.Optional(Type.Number({ minimum: 0, maximum: waitSecondsMax })),
  name: Type.Optional(Type.String({ maxLength: imageNameMax })),
  visibility: Type.Optional(Visibility),
})

/** Bodies are left to the routes: a parser would gather them in memory. */
export function leaveBodies(app: HttpApp) {
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', (_request, payload, done) => done(null, payload))
}

/** @param app whose bodies are left alone, see `leaveBodies` */
export function addUploadRoutes(app: HttpApp, { images, receiver, ended, settings }: UploadDeps) {
  app.post(
    '/v1/images',
    {
      config: { access: 'user', scope: 'images:write' },
      schema: {
        tags: ['images'],
        summary: 'Upload an image',
        description:
          'The file is the body, or the part `image` of a form, which may have the fields `name` and `visibility` too. Answers 202 when the file and its job are durable; with `wait`, 200 when it is ready or failed within that many seconds. `Idempotency-Key` works; an equal file of yours is stored once.',
        consumes: ['image/*', 'application/octet-stream', 'multipart/form-data'],
        querystring: Query,
        response: { 200: Image, 202: Image },
      },
    },
    async (request, reply) => {
      const caller = callerOf(request)
      const { received, name, visibility } = await receiveOrLetGo(request, reply)
      const accepted = await images.accept({
        received,
        owner: caller,
        profile,
        name,
        visibility,
        key: keyOf(request),
        requestId: request.id,
      })
      reply.header('location', `/v1/images/${accepted.id}`)
      const { wait } = request.query
      const isOver =
        wait !== undefined &&
        (await ended.waitFor({
          id: accepted.fileId,
          waitMs: wait * 1000,
          signal: closedSignal(reply),
          isNew: accepted.isNew,
        }))
      return reply.status(isOver ? 200 : 202).send(showImage(await images.getImage(caller, accepted.id)))
    },
  )

  async function receiveOrLetGo(request: FastifyRequest, reply: Parameters<typeof letGoOf>[1]) {
    try {
      keyOf(request)
      await images.assertRoom(callerOf(request))
      return await receiveFile(request, { receiver, settings })
    } catch (error) {
      await letGoOf(request, reply)
      throw error
    }
  }
}

interface Upload {
  received: Received
  name: string | null
  visibility: (typeof visibilities)[number]
}

async function receiveFile(
  request: FastifyRequest,
  { receiver, settings }: Pick<UploadDeps, 'receiver' | 'settings'>,
): Promise<Upload> {
  const query = request.query as Static<typeof Query>
  const bytesMax = settings.IMAGE_BYTES_MAX
  const bytesKnown = statedBytes(request)
  if (!isForm(request)) {
    if (!isFile(request)) throw errors.notAnImageBody()
    const received = await receiver.receive({ source: inTime(request.raw, settings), profile, bytesMax, bytesKnown })
    return { received, name: cleanName(query.name), visibility: query.visibility ?? 'private' }
  }
  if (bytesKnown !== undefined && bytesKnown > bytesMax + formBytesMax) throw errors.bytesExceeded(bytesMax)
  const form = await readForm(request, {
    part: filePart,
    fields: fieldNames,
    pace: settings,
    onFile: source => receiver.receive({ source, profile, bytesMax, bytesAtMost: bytesKnown }),
  })
  const visibility = visibilities.find(one => one === (form.fields.visibility ?? query.visibility ?? 'private'))
  if (!visibility) {
    await receiver.discard(form.file)
    throw errors.visibilityUnknown()
  }
  return { received: form.file, name: cleanName(form.fields.name ?? query.name ?? form.fileName), visibility }
}

function keyOf(request: FastifyRequest): string | undefined {
  const key = request.headers['idempotency-key']
  return key === undefined ? undefined : checkKey(key)
}

/** Content-Length, where there is one. */
export function statedBytes(request: FastifyRequest): number | undefined {
  const text = request.headers['content-length']
  return text === undefined ? undefined : Number(text)
}

export function isForm(request: FastifyRequest): boolean {
  return /^multipart\/form-data\s*(;|$)/i.test(request.headers['content-type'] ?? '')
}

/** Which image it is, its bytes say; a form field by field or a JSON document is a mistake of its sender. */
function isFile(request: FastifyRequest): boolean {
  return /^(image\/|application\/octet-stream\s*(;|$))/i.test(request.headers['content-type'] ?? 'image/')
}
