/** The bytes of a user are bounded, however many uploads race, in one process or several. */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { readSettings } from '#platform/config.ts'
import { isAppError } from '#platform/errors.ts'
import { uuidv7 } from '#platform/ids.ts'
import { makeRandom } from '#platform/random.ts'
import { makeTestApp, type TestApp } from '../../../test/support/app.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { makePicture } from '../../../test/support/pictures.ts'
import { until } from '../../../test/support/until.ts'
import { makeImages } from './images.ts'
import type { Received } from './receiving.ts'
import { imagesSettings } from './settings.ts'
import { assertProblem, boundUsage, makeSender } from './test-support.ts'
import type { ImageFacts } from './types.ts'

const folder = await mkdtemp(path.join(tmpdir(), 'capstan-quota-'))
atEnd(() => rm(folder, { recursive: true, force: true }))

const facts: ImageFacts = {
  format: 'jpeg',
  width: 1,
  height: 1,
  orientation: 1,
  frames: 1,
  progressive: false,
  bitsPerSample: 8,
  channels: 3,
}

/** Processes over one database; `discarded` are the files whose blobs they removed. */
async function makeProcesses(count: number, bytesPerUser: number) {
  const { db } = await makeTestDatabase()
  await boundUsage(db, bytesPerUser)
  const discarded = new Set<string>()
  const settings = { ...readSettings(imagesSettings, {}), IMAGE_BYTES_PER_USER: bytesPerUser }
  const jobs = { add: async () => [], depth: () => 0, cancel: async () => undefined as never }
  const receiver = { discard: async ({ fileId }: Pick<Received, 'fileId'>) => void discarded.add(fileId) }
  const live = { wake: () => {} }
  const make = () => makeImages({ db, jobs, live, receiver, settings, clock: Date.now })
  return { db, discarded, processes: Array.from({ length: count }, make) }
}

const ownerOf = (userId: string) => ({ userId, role: 'user' }) as const

function acceptance(owner: string, bytes: number, content = Math.random()) {
  const sha256 = Buffer.alloc(32)
  sha256.writeDoubleBE(content)
  return {
    received: { fileId: uuidv7(), sha256, bytes, facts },
    owner: ownerOf(owner),
    profile: 'presets',
    name: null,
    visibility: 'private',
    key: undefined as string | undefined,
    requestId: undefined,
  } as const
}

test('of uploads that race in several processes those are accepted for which there is room, and nobody else fails', async () => {
  const seed = Number(process.env.MODEL_SEED ?? Date.now() % 2 ** 31)
  const random = makeRandom(seed)
  const bytesMax = 10_000
  const { db, discarded, processes } = await makeProcesses(3, bytesMax)
  const below = (most: number) => Math.floor(random() * most)
  const steps = Array.from({ length: 600 }, () => {
    // Some contents come again and again: those cost once. `dora` has room for all.
    const owner = ['ann', 'bob', 'cem', 'dora'][below(4)]!
    const content = below(40)
    const bytes = owner === 'dora' ? 10 : 100 + content * 50
    return { ...acceptance(owner, bytes, content), process: below(processes.length) }
  })
  const results = await Promise.allSettled(steps.map(({ process, ...given }) => processes[process]!.accept(given)))
  const context = `MODEL_SEED=${seed}`
  let refused = 0
  for (const [index, result] of results.entries()) {
    const { owner, received } = steps[index]!
    if (result.status === 'fulfilled') {
      assert.equal(discarded.has(received.fileId), result.value.fileId !== received.fileId, context)
      continue
    }
    refused++
    assert.ok(isAppError(result.reason), `${context} ${result.reason}`)
    assert.equal(result.reason.code, 'image_quota_exceeded', context)
    assert.notEqual(owner.userId, 'dora', context)
    assert.ok(discarded.has(received.fileId), context)
  }
  assert.ok(refused > 0 && refused < steps.length, context)
  const { rows } = await db.query<{ owner: string; said: number; there: number; images: number }>(
    `select u.owner, u.bytes as said, (select sum(f.bytes) from images.files f where f.owner = u.owner)::bigint as there
     from images.usage u order by u.owner`,
  )
  assert.equal(rows.length, 4)
  for (const { owner, said, there } of rows) {
    assert.equal(said, there, context)
    // Not all of those that were refused would have room now.
    const sizes = steps.flatMap(({ owner: { userId }, received }, index) =>
      userId === owner && results[index]!.status === 'rejected' ? [received.bytes] : [],
    )
    if (owner !== 'dora') assert.ok(Math.max(...sizes) > bytesMax - said, context)
  }
  const { rows: counted } = await db.query<{ images: number }>(`select count(*) as images from images.images`)
  assert.equal(counted[0]!.images, steps.length - refused, context)
})

test('a key whose upload was refused for want of room is free again, and one that was accepted answers the same', async () => {
  const { processes } = await makeProcesses(1, 1000)
  const images = processes[0]!
  const large = { ...acceptance('ann', 900, 1), key: 'large' }
  const other = { ...acceptance('ann', 900, 2), key: 'other' }
  const [one, two] = await Promise.allSettled([images.accept(large), images.accept(other)])
  assert.deepEqual([one.status, two.status], ['fulfilled', 'rejected'])
  const first = (one as PromiseFulfilledResult<{ id: string }>).value
  assert.equal((await images.accept({ ...large, received: { ...large.received, fileId: uuidv7() } })).id, first.id)
  await assert.rejects(images.accept(other), { code: 'image_quota_exceeded' })
  await images.deleteImage(ownerOf('ann'), first.id)
  await images.accept(other)
})

async function blobNames(place: string): Promise<string[]> {
  const entries = await readdir(path.join(place, 'images'), { recursive: true, withFileTypes: true })
  return entries.filter(entry => entry.isFile()).map(entry => `${path.basename(entry.parentPath)}/${entry.name}`)
}

async function usageOf(server: TestApp): Promise<number> {
  const { rows } = await server.db.query<{ bytes: number }>(`select bytes from images.usage`)
  return rows[0]?.bytes ?? 0
}

test('a hundred uploads at once take no more than there is, and leave no blob of those that were refused', async () => {
  const blobs = path.join(folder, 'hundred')
  const pictures = await Promise.all(
    Array.from({ length: 100 }, (_, seed) =>
      makePicture({ width: 120, height: 80, format: 'jpeg', kind: 'photo', seed: seed + 1 }),
    ),
  )
  const bytesMax = pictures.slice(0, 10).reduce((sum, picture) => sum + picture.length, 0)
  const server = await makeTestApp({
    env: { BLOB_URL: `file:${blobs}`, IMAGE_BYTES_PER_USER: String(bytesMax) },
    roles: ['api'],
  })
  await boundUsage(server.db, bytesMax)
  const ann = await makeSender(server, 'ann')
  const answers = await Promise.all(pictures.map(bytes => ann.raw(bytes)))
  const accepted = answers.filter(answer => answer.status === 202)
  assert.ok(accepted.length >= 5 && accepted.length <= 20, String(accepted.length))
  for (const answer of answers) if (answer.status !== 202) assertProblem(answer, 403, 'image_quota_exceeded')
  assert.deepEqual((await blobNames(blobs)).sort(), accepted.map(answer => `${answer.body.job_id}/original`).sort())
  assert.deepEqual(server.complaints, [])
})

test('variants for which there is no room are made when they are asked for, and are not kept', async () => {
  const blobs = path.join(folder, 'variants')
  const bytes = await makePicture({ width: 900, height: 600, format: 'jpeg', kind: 'photo', seed: 1 })
  // Room for the small ones, but not for `full`: without loss it is several times the original.
  const bytesMax = Math.round(bytes.length * 1.9)
  const env = {
    BLOB_URL: `file:${blobs}`,
    IMAGE_BYTES_PER_USER: String(bytesMax),
    IMAGE_PRESETS: 'one:width=64,format=webp;full:width=2048,height=2048,format=png;two:width=65,format=webp',
  }
  const server = await makeTestApp({ env })
  await boundUsage(server.db, bytesMax)
  const ann = await makeSender(server, 'ann')
  const { body } = await ann.raw(bytes, '?wait=60')
  const names = body.variants.map((variant: { name: string }) => variant.name)
  assert.deepEqual([body.status, names], ['ready', ['one', 'two']], JSON.stringify(body))
  const sum = body.variants.reduce((all: number, variant: { bytes: number }) => all + variant.bytes, bytes.length)
  assert.equal(await usageOf(server), sum)
  await until(async () => (await blobNames(blobs)).length === 3)
  const answer = await ann.fetch(`/v1/images/${body.id}/full`)
  assert.deepEqual([answer.status, answer.headers.get('content-type')], [200, 'image/png'])
  await answer.arrayBuffer()
  assert.deepEqual(server.complaints, [])
})
