/** `/v1/uploads`: uploads in pieces by the tus protocol 1.0, and what became of each. */
import { Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { type Static, Type } from 'typebox'
import { errors as platformErrors } from '#platform/errors.ts'
import { callerOf } from '#platform/http/guard.ts'
import { nullable, time } from '#platform/http/schema.ts'
import type { HttpApp } from '#platform/http/server.ts'
import { uuidv7 } from '#platform/ids.ts'
import { letGoOf } from '../bodies.ts'
import { errors as imageErrors } from '../errors.ts'
import type { ImagesSettings } from '../settings.ts'
import { leaveBodies } from '../upload-routes.ts'
import { type Body, openBody } from './body.ts'
import { extensions, UploadStore } from './data-store.ts'
import { errors } from './errors.ts'
import type { Finishing } from './finishing.ts'
import { makeLocker } from './locker.ts'
import type { UploadRow } from './store.ts'
import { answerTus, pieceType, tusVersion, uploadsPath } from './tus.ts'
import type { Uploads } from './uploads.ts'

const UploadShape = Type.Object({
  id: Type.String({ format: 'uuid' }),
  offset: Type.Integer({ description: 'Bytes that came and are durable.' }),
  length: nullable(Type.Integer({ description: 'Of the whole file, in bytes; null until you say it.' })),
  status: Type.Enum(['receiving', 'finished', 'refused']),
  image_id: nullable(Type.String({ description: 'At `/v1/images/:id`, once it is finished.' })),
  error: nullable(Type.Object({ code: Type.String(), message: Type.String() }, { description: 'Why it was refused.' })),
  expires_at: time,
})

export interface ResumableRoutesDeps {
  uploads: Uploads
  finishing: Finishing
  settings: Pick<ImagesSettings, 'IMAGE_BYTES_MAX' | 'IMAGE_IDLE_MS' | 'IMAGE_UPLOAD_MS' | 'IMAGE_UPLOADS_MAX'>
  hours: number
  clock: () => number
}

export interface ResumableRoutes {
  add(app: HttpApp): Promise<void>
  /** Ends the bodies that are coming in, keeps what came, and resolves when their senders have been answered. */
  stop(): Promise<void>
}

type Params = { id?: string }

const hourMs = 3_600_000
/** How long a request may wait for another one at the same upload to end. */
const turnMs = 10_000
/** Names the image that an upload has become. */
const imageHeader = 'capstan-image'

export function makeRoutes(deps: ResumableRoutesDeps): ResumableRoutes {
  const { uploads, finishing, settings, clock, hours } = deps
  const locker = makeLocker({ waitMs: turnMs })
  const bodies = new Set<Body>()
  const answering = new Set<Promise<unknown>>()
  let stopping = false

  async function answer(request: FastifyRequest, reply: FastifyReply) {
    const work = answerOrLetGo(request, reply)
    answering.add(work)
    return work.finally(() => answering.delete(work))
  }

  async function answerOrLetGo(request: FastifyRequest, reply: FastifyReply) {
    const response = await ask(request).finally(() => leaveBody(request, reply))
    return send(reply, response)
  }

  async function ask(request: FastifyRequest): Promise<Response> {
    const method = methodOf(request)
    checkProtocol(request, method)
    const caller = callerOf(request)
    const { id } = request.params as Params
    const finish = async (uploadId: string) => {
      await finishing.finish({ id: uploadId, caller, requestId: request.id })
      return { [imageHeader]: `/v1/images/${uploadId}` }
    }
    // A sender whose last answer was lost asks where it stands, and takes a whole file for a finished one.
    const upload = method === 'HEAD' ? await uploads.getUpload(caller, id!) : undefined
    const headers: Record<string, string> = upload && upload.at === upload.length ? await finish(upload.id) : {}
    const store = new UploadStore({
      uploads,
      caller,
      metadata: headerOf(request, 'upload-metadata'),
      lifeMs: hours * hourMs,
    })
    // By user too: nobody's requests wait for a stranger's, or end one.
    const own = { newLock: (uploadId: string) => locker.newLock(`${caller.userId}/${uploadId}`) }
    const options = { store, locker: own, bytesMax: settings.IMAGE_BYTES_MAX, makeId: () => uuidv7(clock()) }
    const given = { method, headers: request.headers, id }
    const response = await withBody(request, method, body =>
      answerTus({ ...given, body }, { ...options, onWhole: finish }),
    )
    for (const [name, value] of Object.entries(headers)) response.headers.set(name, value)
    return response
  }

  async function withBody<T>(
    request: FastifyRequest,
    method: string,
    use: (body: ReadableStream | undefined) => Promise<T>,
  ): Promise<T> {
    if (method !== 'PATCH' && !(method === 'POST' && isPiece(request))) return use(undefined)
    if (stopping)
      throw platformErrors.unavailable('This process stops just now. Try again; another one will answer.', 1)
    if (bodies.size >= settings.IMAGE_UPLOADS_MAX) throw imageErrors.uploadsFull()
    const body = openBody(request.raw, settings)
    bodies.add(body)
    try {
      return await use(Readable.toWeb(body.stream) as ReadableStream)
    } finally {
      bodies.delete(body)
      body.end()
    }
  }

  return {
    async add(app) {
      await app.register(async scope => {
        leaveBodies(scope as HttpApp)
        scope.addHook('onSend', async (request, reply) => {
          reply.header('tus-resumable', tusVersion)
          if (reply.statusCode === errors.versionUnsupported().status) reply.header('tus-version', tusVersion)
          if (request.method === 'GET') reply.header('cache-control', 'no-store')
        })
        addRoutes(scope as HttpApp, { answer, uploads, bytesMax: settings.IMAGE_BYTES_MAX })
      })
    },
    async stop() {
      stopping = true
      for (const body of bodies) body.end()
      await Promise.allSettled(answering)
    },
  }
}

function addRoutes(
  app: HttpApp,
  given: {
    answer: (request: FastifyRequest, reply: FastifyReply) => Promise<unknown>
    uploads: Uploads
    bytesMax: number
  },
) {
  const { answer, uploads } = given
  const config = { access: 'user', scope: 'images:write' } as const
  const tags = ['images']
  const onePath = `${uploadsPath}/:id`
  const summaries = {
    HEAD: 'How far an upload is',
    PATCH: 'Send a piece of a file',
    DELETE: 'Give up an upload',
    POST: 'PATCH or DELETE, where X-HTTP-Method-Override says so',
  } as const

  app.post(
    uploadsPath,
    {
      config,
      schema: {
        tags,
        summary: 'Begin an upload in pieces',
        description:
          'The tus protocol 1.0 (tus.io), with creation-with-upload, creation-defer-length, expiration and termination. `Upload-Metadata` may have `filename`, `name` and `visibility`. The answer to the last piece names the image in `Capstan-Image`.',
      },
    },
    answer,
  )
  for (const [method, summary] of Object.entries(summaries)) {
    app.route({ method, url: onePath, config, schema: { tags, summary }, handler: answer })
  }
  app.get(
    onePath,
    {
      config,
      exposeHeadRoute: false,
      schema: { tags, summary: 'An upload, and what became of it', response: { 200: UploadShape } },
    },
    async request => showUpload(await uploads.getUpload(callerOf(request), (request.params as { id: string }).id)),
  )
  for (const url of [uploadsPath, onePath]) {
    app.options(
      url,
      { config: { access: 'public' }, schema: { tags, summary: 'What of tus is spoken here' } },
      (_, reply) =>
        reply
          .status(204)
          .headers({
            'tus-version': tusVersion,
            'tus-extension': extensions.join(','),
            'tus-max-size': String(given.bytesMax),
          })
          .send(),
    )
  }
}

/** Where no more is taken of a body, its sender still has to hear the answer. */
async function leaveBody(request: FastifyRequest, reply: FastifyReply) {
  if (request.raw.complete) request.raw.resume()
  else await letGoOf(request, reply)
}

function methodOf(request: FastifyRequest): string {
  const override = headerOf(request, 'x-http-method-override')?.toUpperCase()
  const isOfUpload = (request.params as Params).id !== undefined
  if (request.method !== 'POST' || !isOfUpload) return request.method
  if (override === 'PATCH' || override === 'DELETE') return override
  throw errors.requestInvalid('a POST to an upload says PATCH or DELETE in X-HTTP-Method-Override.')
}

function checkProtocol(request: FastifyRequest, method: string) {
  if (headerOf(request, 'tus-resumable') !== tusVersion) throw errors.versionUnsupported()
  if (method === 'PATCH' && !isPiece(request)) throw errors.bodyTypeWrong()
}

function isPiece(request: FastifyRequest): boolean {
  return headerOf(request, 'content-type') === pieceType
}

function headerOf(request: FastifyRequest, name: string): string | undefined {
  const value = request.headers[name]
  return typeof value === 'string' ? value : undefined
}

const ofBody = ['content-type', 'content-length']

/** The protocol's answers are their headers. */
function send(reply: FastifyReply, response: Response) {
  for (const [name, value] of response.headers) if (!ofBody.includes(name)) reply.header(name, value)
  return reply.status(response.status).send()
}

function showUpload(row: UploadRow): Static<typeof UploadShape> {
  return {
    id: row.id,
    offset: row.at,
    length: row.length,
    status: row.status,
    image_id: row.status === 'finished' ? row.id : null,
    error: row.error ? { code: row.error.code, message: row.error.message } : null,
    expires_at: row.expires_at.toISOString(),
  }
}
