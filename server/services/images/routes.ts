import { Type } from 'typebox'
import { decodeCursor, encodeCursor } from '#platform/http/cursor.ts'
import { callerOf } from '#platform/http/guard.ts'
import { idempotencyKeyOf } from '#platform/http/idempotency.ts'
import type { HttpApp } from '#platform/http/server.ts'
import { isUuid } from '#platform/ids.ts'
import type { Formats } from './formats.ts'
import type { Images } from './images.ts'
import type { ImagesSettings } from './settings.ts'
import { Image, ImageList, Status, showImage } from './shapes.ts'
import type { Sweeper } from './sweeping.ts'

const idParams = Type.Object({ id: Type.String({ format: 'uuid' }) })
const sweepHoursMax = 8760
/** Of a Date, in ms. */
const latestMs = 8.64e15

export interface ImageRoutesDeps {
  images: Images
  formats: Formats
  sweeper: Pick<Sweeper, 'begin'>
  settings: ImagesSettings
}

export function addRoutes(app: HttpApp, { images, formats, sweeper, settings }: ImageRoutesDeps) {
  const tags = ['images']
  const read = { access: 'user', scope: 'images:read' } as const
  const write = { access: 'user', scope: 'images:write' } as const

  app.get(
    '/v1/images',
    {
      config: read,
      schema: {
        tags,
        summary: 'Your images, newest first',
        querystring: Type.Object({
          cursor: Type.Optional(Type.String({ maxLength: 200 })),
          limit: Type.Integer({ minimum: 1, maximum: 100, default: 20 }),
          status: Type.Optional(Status),
        }),
        response: { 200: ImageList },
      },
    },
    async request => {
      const { cursor, limit, status } = request.query
      const last = decodeCursor(cursor, isImageCursor)
      const before = last && { createdAt: new Date(last[0]), id: last[1] }
      const rows = await images.listImages({ owner: callerOf(request).userId, status, before, limit })
      const end = rows.length === limit ? rows.at(-1) : undefined
      return {
        images: rows.map(showImage),
        next_cursor: end ? encodeCursor([end.created_at.getTime(), end.id]) : null,
      }
    },
  )

  app.get(
    '/v1/images/:id',
    { config: read, schema: { tags, summary: 'An image', params: idParams, response: { 200: Image } } },
    async request => showImage(await images.getImage(callerOf(request), request.params.id)),
  )

  app.delete(
    '/v1/images/:id',
    {
      config: write,
      schema: {
        tags,
        summary: 'Delete an image',
        description: 'With all that was made of it, unless another image of yours is the same file.',
        params: idParams,
        response: { 204: Type.Null() },
      },
    },
    async (request, reply) => {
      await images.deleteImage(callerOf(request), request.params.id)
      return reply.status(204).send(null)
    },
  )

  app.get(
    '/v1/images/formats',
    {
      config: { access: 'public' },
      schema: {
        tags,
        summary: 'What can be uploaded and made here, and within which limits',
        response: {
          200: Type.Object({
            input: Type.Array(Type.String()),
            output: Type.Array(Type.String()),
            presets: Type.Record(Type.String(), Type.String()),
            limits: Type.Object({ bytes: Type.Integer(), pixels: Type.Integer(), memory_bytes: Type.Integer() }),
          }),
        },
      },
    },
    async () => ({
      ...formats,
      limits: {
        bytes: settings.IMAGE_BYTES_MAX,
        pixels: settings.IMAGE_PIXELS_MAX,
        memory_bytes: settings.IMAGE_MEMORY_BYTES,
      },
    }),
  )

  app.post(
    '/v1/images/sweeps',
    {
      config: { access: 'admin', scope: 'images:sweep' },
      schema: {
        tags,
        summary: 'Sweep away blobs that belong to no image',
        description: 'Done by itself now and then. Those younger than `older_than_hours` may be uploads under way.',
        body: Type.Object(
          { older_than_hours: Type.Optional(Type.Number({ minimum: 0, maximum: sweepHoursMax })) },
          { additionalProperties: false },
        ),
        response: { 202: Type.Object({ job_id: Type.String({ format: 'uuid' }) }) },
      },
    },
    async (request, reply) => {
      const hours = request.body.older_than_hours ?? settings.IMAGE_ORPHAN_HOURS
      const jobId = await sweeper.begin({ hours, owner: callerOf(request).userId, key: idempotencyKeyOf(request) })
      return reply.status(202).send({ job_id: jobId })
    },
  )
}

/** When the last image came, in ms, and its id: ids alone are in no order, as those of the old contract are random. */
function isImageCursor(values: readonly unknown[]): values is [number, string] {
  const [at, id] = values
  return values.length === 2 && isInstant(at) && typeof id === 'string' && isUuid(id)
}

function isInstant(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= latestMs
}
