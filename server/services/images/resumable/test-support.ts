/** Uploads over sockets, to one or several processes that share a database and a folder of blobs. */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import http from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { Readable } from 'node:stream'
import sharp from 'sharp'
import { Upload, type UploadOptions } from 'tus-js-client'
import { makeFileStore } from '#platform/blobs/file.ts'
import type { BlobStore } from '#platform/blobs/types.ts'
import { readSettings } from '#platform/config.ts'
import type { Database } from '#platform/database/pool.ts'
import type { Caller } from '#platform/http/guard.ts'
import { makeRateLimiter } from '#platform/http/rate-limit.ts'
import { makeHttp } from '#platform/http/server.ts'
import { silentLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { atEnd } from '../../../../test/support/at-end.ts'
import { makeTestDatabase } from '../../../../test/support/database.ts'
import { type Images, makeImages } from '../images.ts'
import { originalKey } from '../keys.ts'
import { makeReceiver, type Receiver } from '../receiving.ts'
import { type ImagesSettings, imagesSettings } from '../settings.ts'
import { makeResumable, type Resumable } from './resumable.ts'

/** What a test changes of a process. */
interface Options {
  settings?: Partial<ImagesSettings>
  blobs?: (blobs: BlobStore) => BlobStore
  images?: (images: Images) => Images
  receiver?: (receiver: Receiver) => Receiver
}

export interface TestProcess {
  url: string
  resumable: Resumable
}

export type TestUploads = Awaited<ReturnType<typeof makeTestUploads>>

export async function makeTestUploads() {
  const { db } = await makeTestDatabase({ poolMax: 10 })
  const folder = mkdtempSync(path.join(tmpdir(), 'capstan-uploads-'))
  atEnd(() => rmSync(folder, { recursive: true, force: true }))
  const time = { offsetMs: 0 }
  const blobs = await makeFileStore({ folder, log: silentLog })
  return {
    db,
    time,
    blobs,
    start: (options: Options = {}) =>
      startProcess({ ...options, db, store: blobs, clock: () => Date.now() + time.offsetMs }),
    /** Blobs of pieces, and those that uploads know of: where nothing is under way they are the same. */
    async parts(id: string) {
      const prefix = `uploads/${id.slice(-2)}/${id}/`
      const { rows } = await db.query<{ blob: string }>(`select blob from images.upload_parts where upload_id = $1`, [
        id,
      ])
      const present = (await blobs.list(prefix, { limit: 1000 })).map(blob => blob.key)
      return { present, known: rows.map(row => `${prefix}${row.blob}`).sort() }
    },
    /** The originals of all images with that id: exactly one is what everybody wants. */
    async originals(imageId: string): Promise<Buffer[]> {
      const { rows } = await db.query<{ file_id: string }>(`select file_id from images.images where id = $1`, [imageId])
      return Promise.all(rows.map(async row => readAll((await blobs.get(originalKey(row.file_id)))!.stream)))
    },
  }
}

async function startProcess(
  given: Options & { db: Database; store: BlobStore; clock: () => number },
): Promise<TestProcess> {
  const { db, clock } = given
  const settings = { ...readSettings(imagesSettings, {}), ...given.settings }
  const blobs = given.blobs?.(given.store) ?? given.store
  const common = { db, blobs, log: silentLog, settings, clock }
  const receiver = makeReceiver(common)
  // Nobody works on the images here.
  const jobs = { add: async () => [], depth: () => 0, cancel: async () => undefined as never }
  const images = makeImages({ ...common, jobs, live: { wake: () => {} }, receiver })
  const resumable = makeResumable({
    ...common,
    receiver: given.receiver?.(receiver) ?? receiver,
    images: given.images?.(images) ?? images,
    hours: settings.IMAGE_UPLOAD_HOURS,
  })
  const app = await makeHttp({
    settings: { BODY_LIMIT_BYTES: 1000, TRUST_PROXY: false, NODE_ENV: 'test', PUBLIC_URL: undefined },
    log: silentLog,
    metrics: makeMetrics({ processMetrics: false }),
    authenticate: async request => callerNamed(request.headers.authorization?.replace(/^Bearer /, '')),
    rateLimiter: makeRateLimiter({ name: 'requests', points: 0, windowSeconds: 60, redis: undefined }),
    version: 'test',
  })
  await resumable.routes(app)
  await app.listen({ port: 0, host: '127.0.0.1' })
  atEnd(async () => {
    await resumable.stop()
    app.server.closeAllConnections()
    await app.close()
  })
  return { url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`, resumable }
}

/** Whoever says a name is that user; `reader` has an API key that may not write. */
function callerNamed(name: string | undefined): Caller | undefined {
  if (name === undefined) return undefined
  const common = { userId: name, name, role: 'user', credentialId: name } as const
  return name === 'reader' ? { ...common, by: 'api_key', scopes: ['images:read'] } : { ...common, by: 'session' }
}

/** A JPEG like no other. */
export function makeJpeg(width = 400, height = 300): Promise<Buffer> {
  const noise = { type: 'gaussian', mean: 128, sigma: 40 } as const
  return sharp({ create: { width, height, channels: 3, background: '#888888', noise } })
    .withExif({ IFD0: { ImageDescription: randomUUID() } })
    .jpeg({ quality: 95 })
    .toBuffer()
}

export interface TusAnswer {
  status: number
  headers: Headers
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it as they need.
  body: any
}

export const piece = { 'content-type': 'application/offset+octet-stream' }
const answerMs = 20_000

/** One request of the protocol. A header that is undefined is not sent. */
export async function ask(
  server: TestProcess,
  given: {
    method: string
    path?: string
    as?: string
    headers?: Record<string, string | undefined>
    body?: Uint8Array | Readable
  },
): Promise<TusAnswer> {
  const { method, path: at = '', as: name = 'ann', body } = given
  const all = { authorization: `Bearer ${name}`, 'tus-resumable': '1.0.0', ...given.headers }
  const headers = Object.entries(all).filter((entry): entry is [string, string] => entry[1] !== undefined)
  const response = await fetch(`${server.url}/v1/uploads${at}`, {
    method,
    headers,
    signal: AbortSignal.timeout(answerMs),
    ...(body === undefined ? {} : { body, duplex: 'half' }),
  } as unknown as RequestInit)
  const text = await response.text()
  const isJson = response.headers.get('content-type')?.includes('json')
  return { status: response.status, headers: response.headers, body: isJson && text !== '' ? JSON.parse(text) : text }
}

/** Begins an upload; answers its id. */
export async function create(server: TestProcess, length: number, as = 'ann'): Promise<string> {
  const answer = await ask(server, { method: 'POST', as, headers: { 'upload-length': String(length) } })
  if (answer.status !== 201) throw new Error(`No upload was created: ${answer.status} ${JSON.stringify(answer.body)}`)
  return answer.headers.get('location')!.split('/').at(-1)!
}

export function patch(server: TestProcess, id: string, at: number, body: Uint8Array | Readable): Promise<TusAnswer> {
  return ask(server, { method: 'PATCH', path: `/${id}`, headers: { ...piece, 'upload-offset': String(at) }, body })
}

export async function offsetOf(server: TestProcess, id: string): Promise<number> {
  const { headers } = await ask(server, { method: 'HEAD', path: `/${id}` })
  return Number(headers.get('upload-offset') ?? Number.NaN)
}

/** A PATCH that stops in the middle and stays open. */
export async function halfPatch(
  server: TestProcess,
  given: { id: string; at: number; length: number; bytes: Uint8Array },
): Promise<{ request: http.ClientRequest; socket: Socket; answer: Promise<http.IncomingMessage> }> {
  const request = http.request(`${server.url}/v1/uploads/${given.id}`, {
    method: 'PATCH',
    signal: AbortSignal.timeout(answerMs),
    headers: {
      ...piece,
      authorization: 'Bearer ann',
      'tus-resumable': '1.0.0',
      'upload-offset': given.at,
      'content-length': given.length,
    },
  })
  const answer = new Promise<http.IncomingMessage>((resolve, reject) => {
    request.once('response', resolve).once('error', reject)
  })
  answer.catch(() => {})
  const socket = await new Promise<Socket>(resolve => request.once('socket', resolve))
  await new Promise<void>(resolve => request.write(given.bytes, () => resolve()))
  return { request, socket, answer }
}

/** The blobs of an upload's pieces are those it knows of. Answers their keys. */
export async function assertParts(uploads: TestUploads, id: string): Promise<string[]> {
  const { present, known } = await uploads.parts(id)
  assert.deepEqual(present, known)
  return known
}

/** It is an image with these bytes, once, and nothing is left of its pieces. */
export async function assertFinished(uploads: TestUploads, id: string, bytes: Buffer) {
  const { rows } = await uploads.db.query(`select at, length, status, error from images.uploads where id = $1`, [id])
  assert.deepEqual(rows, [{ at: bytes.length, length: bytes.length, status: 'finished', error: null }])
  const originals = await uploads.originals(id)
  assert.equal(originals.length, 1)
  assert.ok(originals[0]!.equals(bytes))
  assert.deepEqual(await assertParts(uploads, id), [])
}

/** A whole upload by tus-js-client; answers the last answer's header that names the image, and the upload's id. */
export function uploadWithTus(
  server: Pick<TestProcess, 'url'>,
  bytes: Buffer,
  options: Partial<UploadOptions> = {},
): Promise<{ id: string; image: string | undefined }> {
  return new Promise((resolve, reject) => {
    const upload = new Upload(bytes, {
      endpoint: `${server.url}/v1/uploads`,
      headers: { authorization: 'Bearer ann' },
      retryDelays: [10, 50, 100, 200],
      onError: reject,
      onSuccess: ({ lastResponse }) =>
        resolve({ id: upload.url!.split('/').at(-1)!, image: lastResponse.getHeader('Capstan-Image') }),
      ...options,
    })
    upload.start()
  })
}

export async function readAll(stream: Readable): Promise<Buffer> {
  return Buffer.concat(await stream.toArray())
}
