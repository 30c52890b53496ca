/** A server of images alone: real HTTP, PostgreSQL, blob store and processor, with people and pictures at hand. */
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readlink, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { LightMyRequestResponse } from 'fastify'
import sharp from 'sharp'
import { makeBlobs } from '#platform/blobs/blobs.ts'
import type { BlobStore } from '#platform/blobs/types.ts'
import { platformSettings, readSettings } from '#platform/config.ts'
import type { Database } from '#platform/database/pool.ts'
import { errors } from '#platform/errors.ts'
import type { Caller } from '#platform/http/guard.ts'
import { makeRateLimiter } from '#platform/http/rate-limit.ts'
import { type HttpApp, makeHttp } from '#platform/http/server.ts'
import { uuidv7 } from '#platform/ids.ts'
import { makeLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { atEnd } from '../../../../test/support/at-end.ts'
import { makeTestDatabase } from '../../../../test/support/database.ts'
import { filePrefix, originalKey, variantKey } from '../keys.ts'
import { makeProcessor } from '../processing/processor.ts'
import type { Processor, Work } from '../processing/types.ts'
import { imagesSettings } from '../settings.ts'
import * as store from '../store.ts'
import type { FileStatus, ImageFacts, Variant, Visibility } from '../types.ts'
import { addServingRoutes } from './routes.ts'
import { makeServing, type Serving } from './serving.ts'

const user = (userId: string, more: Partial<Caller> = {}): Caller => ({
  userId,
  name: userId,
  role: 'user',
  by: 'session',
  credentialId: userId,
  ...more,
})

/** By the word after `Bearer`. */
export const callers = {
  ann: user('ann'),
  bob: user('bob'),
  root: user('root', { role: 'admin' }),
  annsKey: user('ann', { by: 'api_key', scopes: ['images:read'] }),
  annsWriteKey: user('ann', { by: 'api_key', scopes: ['images:write'] }),
  annsSharingKey: user('ann', { by: 'api_key', scopes: ['images:read', 'images:write'] }),
  annsOtherKey: user('ann', { by: 'api_key', scopes: ['chats:read'] }),
} as const
export type Who = keyof typeof callers | undefined

export interface Added {
  id: string
  fileId: string
  original: Buffer
}

export interface ImageServer {
  app: HttpApp
  db: Database
  blobs: BlobStore
  /** Stand instead of the store's own methods, where they are set. */
  faults: Partial<BlobStore>
  serving: Serving
  /** What the processor was given. */
  works: Work[]
  /** Called before each piece of work. */
  hooks: { beforeWork?: ((work: Work) => Promise<void>) | undefined }
  /** Moves the server's clock. */
  clock: { aheadMs: number }
  complaints: string[]
  get(who: Who, path: string, headers?: Record<string, string>): Promise<LightMyRequestResponse>
  head(who: Who, path: string, headers?: Record<string, string>): Promise<LightMyRequestResponse>
  post(who: Who, path: string, body: object): Promise<LightMyRequestResponse>
  add(given?: NewPicture): Promise<Added>
  /** The names of a file's blobs. */
  blobsOf(fileId: string): Promise<string[]>
  keptOf(fileId: string): Promise<string[]>
  /** What lies in the folder of unfinished work. */
  unfinished(): Promise<string[]>
  /** The files of the server that this process has open. */
  openFiles(): Promise<string[]>
}

export interface NewPicture {
  owner?: string | null
  visibility?: Visibility
  name?: string | null
  format?: 'jpeg' | 'png'
  width?: number
  height?: number
  status?: FileStatus
  error?: string
  /** Made by a worker: the name, and how wide. */
  variants?: { name: string; width: number }[]
}

export async function makeImageServer(env: Record<string, string> = {}): Promise<ImageServer> {
  const { db } = await makeTestDatabase()
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-serving-'))
  const workFolder = path.join(folder, 'work')
  await mkdir(workFolder)
  const complaints: string[] = []
  const log = makeLog('warn', { write: line => void complaints.push(line) })
  const settings = {
    ...readSettings(platformSettings, { DATA_DIR: folder, BLOB_URL: `file:${folder}/blobs`, ...env }),
    ...readSettings(imagesSettings, { N_WORKERS: '2', ...env }),
  }
  const real = await makeBlobs({ settings, log })
  const faults: Partial<BlobStore> = {}
  const blobs = new Proxy(real, {
    get: (target, name: keyof BlobStore) => faults[name] ?? Reflect.get(target, name),
  })
  const decoder = makeProcessor({
    workers: settings.N_WORKERS,
    memoryBytes: settings.IMAGE_MEMORY_BYTES,
    timeoutMs: settings.IMAGE_MS_MAX,
    log,
  })
  const works: Work[] = []
  const hooks: ImageServer['hooks'] = {}
  const processor: Pick<Processor, 'work'> = {
    async work(work) {
      works.push(work)
      await hooks.beforeWork?.(work)
      return decoder.work(work)
    },
  }
  const clock = { aheadMs: 0 }
  const serving = makeServing({
    db,
    blobs,
    processor,
    settings,
    log,
    clock: () => Date.now() + clock.aheadMs,
    workFolder,
  })
  const app = await makeHttp({
    settings,
    log,
    metrics: makeMetrics({ processMetrics: false }),
    async authenticate({ headers }) {
      const token = /^Bearer (\w+)$/.exec(headers.authorization ?? '')?.[1]
      if (token === undefined) return undefined
      const caller = callers[token as keyof typeof callers]
      if (!caller) throw errors.unauthenticated()
      return caller
    },
    rateLimiter: makeRateLimiter({ name: 'test', points: 0, windowSeconds: 1, redis: undefined }),
    version: '0',
  })
  await addServingRoutes(app, { serving, settings })
  await app.ready()
  atEnd(async () => {
    await app.close()
    await serving.stop()
    await decoder.close()
    await real.close()
    await rm(folder, { recursive: true, force: true })
  })
  const send =
    (method: 'GET' | 'HEAD' | 'POST') =>
    (who: Who, url: string, headers = {}, payload?: object) =>
      app.inject({
        method,
        url,
        headers: { ...(who ? { authorization: `Bearer ${who}` } : {}), ...headers },
        ...(payload ? { payload } : {}),
      })
  return {
    app,
    db,
    blobs: real,
    faults,
    serving,
    works,
    hooks,
    clock,
    complaints,
    get: send('GET'),
    head: send('HEAD'),
    post: (who, url, body) => send('POST')(who, url, {}, body),
    add: given => add({ db, blobs: real }, given),
    async blobsOf(fileId) {
      const found = await real.list(filePrefix(fileId), { limit: 1000 })
      return found.map(blob => blob.key.slice(filePrefix(fileId).length))
    },
    async keptOf(fileId) {
      const { rows } = await db.query<{ name: string }>(`select name from images.transforms where file_id = $1`, [
        fileId,
      ])
      return rows.map(row => row.name)
    },
    unfinished: () => readdir(workFolder),
    async openFiles() {
      const descriptors = await readdir('/proc/self/fd')
      const links = await Promise.all(descriptors.map(each => readlink(`/proc/self/fd/${each}`).catch(() => '')))
      return links.filter(link => link.startsWith(folder))
    },
  }
}

/** An image as uploads and workers leave it behind. */
async function add({ db, blobs }: { db: Database; blobs: BlobStore }, given: NewPicture = {}): Promise<Added> {
  const { owner = 'ann', width = 300, height = 200, format = 'jpeg', status = 'ready' } = given
  const original = await draw({ width, height, format })
  const [id, fileId] = [uuidv7(), uuidv7()]
  const facts: ImageFacts = {
    format,
    width,
    height,
    orientation: 1,
    frames: 1,
    progressive: false,
    bitsPerSample: 8,
    channels: 3,
  }
  await blobs.put(originalKey(fileId), original)
  const variants: Variant[] = []
  for (const { name, width } of given.variants ?? []) {
    const made = await sharp(original).resize({ width }).webp().toBuffer({ resolveWithObject: true })
    const variant = { name, format: 'webp', width, height: made.info.height, bytes: made.data.length } as const
    await blobs.put(variantKey(fileId, variant), made.data)
    variants.push(variant)
  }
  const createdAt = new Date()
  await db.tx(async tx => {
    const file = { id: fileId, owner, profile: 'presets', sha256: randomBytes(32), bytes: original.length } as const
    await store.insertFiles(tx, [{ ...file, facts, shared: owner !== null, createdAt }])
    const { visibility = 'private', name = null } = given
    store.insertImages(tx, [{ id, fileId, owner, name, visibility, createdAt }])
    const ended = { id: fileId, description: null, variants, error: given.error ?? null }
    if (status === 'ready' || status === 'failed' || status === 'refused')
      await store.endFiles(tx, [{ ...ended, status }])
  })
  return { id, fileId, original }
}

function draw({ width, height, format }: { width: number; height: number; format: 'jpeg' | 'png' }): Promise<Buffer> {
  const noise = { type: 'gaussian', mean: 128, sigma: 30 } as const
  return sharp({ create: { width, height, channels: 3, background: '#336699', noise } })
    [format]()
    .toBuffer()
}

/** Deletes an image as its owner does, but for the erasing of blobs, which a job does later. */
export async function forget({ db, blobs }: ImageServer, { id, fileId }: Added) {
  await db.tx(async tx => {
    await store.deleteImage(tx, id)
    await store.deleteUnusedFile(tx, fileId)
  })
  const found = await blobs.list(filePrefix(fileId), { limit: 1000 })
  await blobs.delete(found.map(blob => blob.key))
}
