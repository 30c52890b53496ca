import type { FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import type { PlatformSettings } from '#platform/config.ts'
import { closedSignal } from '#platform/http/closed-signal.ts'
import { callerOf } from '#platform/http/guard.ts'
import { time } from '#platform/http/schema.ts'
import type { HttpApp } from '#platform/http/server.ts'
import { isKnown, rangeOf } from './conditions.ts'
import { cacheControl, contentDisposition, mediaType, resourcePolicy } from './headers.ts'
import type { Content, Picture, Serving } from './serving.ts'
import { endWhenSlow } from './slow.ts'

const wordMax = 200
const linkSecondsMax = 604_800
const linkSecondsUsual = 3600
const queryMax = 100
/** Said of an image, and wrong of the error that took its place. */
const headersOfImages = ['etag', 'vary', 'accept-ranges', 'content-disposition', 'content-security-policy']

export async function addServingRoutes(
  app: HttpApp,
  { serving, settings }: { serving: Serving; settings: Pick<PlatformSettings, 'PUBLIC_URL'> },
) {
  addBytesRoute(app, serving)
  addLinkRoute(app, { serving, origin: settings.PUBLIC_URL?.replace(/\/+$/, '') ?? '' })
}

function addBytesRoute(app: HttpApp, serving: Serving) {
  app.route({
    method: ['GET', 'HEAD'],
    url: '/v1/images/:id/:transform',
    config: { access: 'optional' },
    schema: {
      tags: ['images'],
      summary: 'An image’s bytes',
      description:
        '`transform` is `original`, a preset’s name, or words such as `width=512,height=512,fit=inside,format=auto`; docs/images.md has them all. The owner sees everything, everybody the presets of public images, and whoever has a signed link what it is for. What was not asked for before is made now, and kept.',
      params: Type.Object({
        id: Type.String({ format: 'uuid' }),
        transform: Type.String({ maxLength: wordMax }),
      }),
      querystring: Type.Object({
        expires: Type.Optional(Type.String({ maxLength: queryMax, description: 'Of a signed link.' })),
        signature: Type.Optional(Type.String({ maxLength: queryMax, description: 'Of a signed link.' })),
      }),
      produces: ['image/*'],
    },
    onSend: async (_request, reply) => {
      if (reply.statusCode < 400) return
      for (const name of headersOfImages) reply.removeHeader(name)
      if (reply.statusCode !== 416) reply.removeHeader('content-range')
      // A cache would go on telling of an image that is not ready, or not public, when it is.
      reply.header('cache-control', 'no-store')
    },
    handler: async (request, reply) => {
      const signal = closedSignal(reply)
      const { id, transform: word } = request.params
      const { accept } = request.headers
      const picture = await serving.find({ id, word, caller: request.caller, accept, ...request.query })
      reply.header('cache-control', cacheControl(picture.grant))
      if (picture.dependsOnAccept) reply.header('vary', 'Accept')
      if (isKnown(request.headers['if-none-match'], picture.etag)) {
        return reply.status(304).header('etag', picture.etag).send()
      }
      const isHead = request.method === 'HEAD'
      const content = await picture.open({
        signal,
        holder: request.caller?.userId ?? request.ip,
        bodyless: isHead,
        // A Range means something with GET alone.
        pick: whole => (isHead ? undefined : pickRange(request, reply, whole)),
      })
      return answer(reply, picture, content)
    },
  })
}

function addLinkRoute(app: HttpApp, { serving, origin }: { serving: Serving; origin: string }) {
  app.post(
    '/v1/images/:id/links',
    {
      config: { access: 'user', scope: 'images:write' },
      schema: {
        tags: ['images'],
        summary: 'A link that shows one transform of your image to whoever has it',
        params: Type.Object({ id: Type.String({ format: 'uuid' }) }),
        body: Type.Object(
          {
            transform: Type.String({ maxLength: wordMax, examples: ['card', 'original', 'width=800,format=auto'] }),
            expires_in: Type.Integer({
              minimum: 1,
              maximum: linkSecondsMax,
              default: linkSecondsUsual,
              description: 'Seconds.',
            }),
          },
          { additionalProperties: false },
        ),
        response: {
          201: Type.Object({
            url: Type.String({ description: 'A path on this server unless PUBLIC_URL is set.' }),
            expires_at: time,
          }),
        },
      },
    },
    async (request, reply) => {
      const { transform: word, expires_in: seconds } = request.body
      const link = await serving.createLink({ caller: callerOf(request), id: request.params.id, word, seconds })
      return reply.status(201).send({ url: `${origin}${link.path}`, expires_at: link.expiresAt.toISOString() })
    },
  )
}

function pickRange(request: FastifyRequest, reply: FastifyReply, whole: { bytes: number; etag: string }) {
  // Of an answer with 416 it is the only thing that says how much there is.
  reply.header('content-range', `bytes */${whole.bytes}`)
  const range = rangeOf(request.headers, whole)
  if (range) reply.header('content-range', `bytes ${range.start}-${range.end}/${whole.bytes}`)
  else reply.removeHeader('content-range')
  return range
}

function answer(reply: FastifyReply, picture: Picture, { format, etag, bytes, range, body }: Content) {
  const type = picture.isOriginal ? 'attachment' : 'inline'
  reply.status(range ? 206 : 200).headers({
    etag,
    'content-type': mediaType(format),
    'content-length': range ? range.end - range.start + 1 : bytes,
    'accept-ranges': 'bytes',
    'content-disposition': contentDisposition({ type, name: picture.name, format }),
    'content-security-policy': `default-src 'none'; sandbox`,
    'cross-origin-resource-policy': resourcePolicy(picture.grant),
    'x-content-type-options': 'nosniff',
  })
  endWhenSlow(reply)
  return reply.send(body)
}
