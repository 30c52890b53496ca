/**
 * What users are said to have, against what is there: after any sequence of uploads, deletions, transforms, cancels and
 * retries, many of them at once, the sums agree, no user has more than the bound, and no blob and no file of BASE_PATH is left that belongs to nobody.
 * MODEL_SEED is set to the seed that a failure prints, to have the same calls again.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { type TestContext, test } from 'node:test'
import type { Database } from '#platform/database/pool.ts'
import { makeRandom } from '#platform/random.ts'
import { makeTestApp, type TestApp } from '../../../test/support/app.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makePicture } from '../../../test/support/pictures.ts'
import { until } from '../../../test/support/until.ts'
import { originalKey } from './keys.ts'
import { boundUsage, makeSender, postForm, type Sender } from './test-support.ts'

const stepsMax = 250
const atOnce = 6
const folder = await mkdtemp(path.join(tmpdir(), 'capstan-usage-'))
atEnd(() => rm(folder, { recursive: true, force: true }))

/** A server with its two users and its folders. */
interface Place {
  server: TestApp
  senders: Sender[]
  blobs: string
  published: string
}

async function makePlace(name: string, env: Record<string, string>): Promise<Place> {
  const [blobs, published] = [path.join(folder, name, 'blobs'), path.join(folder, name, 'published')]
  const server = await makeTestApp({
    env: { BLOB_URL: `file:${blobs}`, BASE_PATH: published, N_WORKERS: '2', ...env },
  })
  return { server, senders: [await makeSender(server, 'ann'), await makeSender(server, 'bob')], blobs, published }
}

const whole = await Promise.all(
  [1, 2, 3, 4].map(seed => makePicture({ width: 300 + seed, height: 200, format: 'jpeg', kind: 'photo', seed })),
)
/** Its header is right, and its end is; what lies between is not to be decoded. */
const broken = await makePicture({ width: 400, height: 300, format: 'png', kind: 'photo', seed: 5 })
broken.fill(0xa5, Math.floor(broken.length / 3), Math.floor(broken.length / 2))
const pictures = [...whole, broken]

interface Known {
  sender: Sender
  id: string
  jobId: string
}

/** @param isBounded whether users may come to the end of what they have */
function makeSteps({ server, senders }: Place, random: () => number, isBounded: boolean) {
  let refusals = 0
  const known: Known[] = []
  const pick = <T>(all: readonly T[]): T => all[Math.floor(random() * all.length)]!

  async function upload() {
    const sender = pick(senders)
    const { status, body } = await sender.raw(pick(pictures))
    // A PNG that is broken in the middle may be seen to be so at once.
    if (status === 403 && isBounded) refusals++
    else if (status === 202) known.push({ sender, id: body.id, jobId: body.job_id })
    else assert.ok(status === 400 || status === 422, JSON.stringify(body))
  }

  async function uploadAsOfOld() {
    const sender = pick(senders)
    const headers = { authorization: `Bearer ${sender.user.token}` }
    const { status, body } = await postForm(server, '/upload', { bytes: pick(whole), headers })
    if (status === 403 && isBounded) return refusals++
    if (status !== 200) return assert.equal(status, 429)
    const { job_id: jobId } = (await sender.get(`/v1/images/${body.image_id}`)).body
    known.push({ sender, id: body.image_id, jobId })
  }

  async function remove() {
    if (known.length === 0) return
    const { sender, id } = pick(known)
    const { status } = await sender.delete(`/v1/images/${id}`)
    assert.ok(status === 204 || status === 404)
  }

  async function transform() {
    if (known.length === 0) return
    const { sender, id } = pick(known)
    const answer = await sender.fetch(`/v1/images/${id}/width=${pick([20, 30, 40, 50])},format=jpeg`)
    await answer.arrayBuffer()
    assert.ok([200, 404, 409].includes(answer.status))
  }

  async function steer() {
    if (known.length === 0) return
    const { sender, jobId } = pick(known)
    const { status } = await sender.user.post(server, `/v1/jobs/${jobId}/${pick(['cancel', 'retry'])}`, {})
    assert.ok([202, 404, 409].includes(status))
  }

  const steps = [upload, upload, upload, uploadAsOfOld, uploadAsOfOld, remove, remove, transform, transform, steer]
  return {
    step: () => pick(steps)(),
    get refusals() {
      return refusals
    },
  }
}

async function countJobs(given: TestApp): Promise<number> {
  const { rows } = await given.db.query<{ count: number }>(
    `select count(*) from jobs.active where queue in ('images', 'images.erase')`,
  )
  return rows[0]!.count
}

/** Whatever does not agree. */
async function findDrift({ server, blobs: folderOfBlobs, published }: Place): Promise<unknown[]> {
  const { db } = server
  const { rows } = await db.query<{ owner: string; said: number; there: number }>(
    `select u.owner, u.bytes as said,
            coalesce((select sum(f.bytes
                + (select coalesce(sum((v->>'bytes')::bigint), 0) from jsonb_array_elements(f.variants) v)
                + (select coalesce(sum(t.bytes), 0) from images.transforms t where t.file_id = f.id))
              from images.files f where f.owner = u.owner), 0)::bigint as there
     from images.usage u`,
  )
  const [known, there] = [await blobsKnown(db), await blobsThere(folderOfBlobs)]
  // A job that was cancelled half-way leaves variants to the sweep, beside the original that stays.
  const isLeft = (name: string) => name.includes('/variant-') && known.includes(name.replace(/\/.*/, '/original'))
  const blobs = differ(
    known,
    there.filter(name => known.includes(name) || !isLeft(name)),
  )
  const files = differ(await publishedKnown(db), await readdir(published))
  return [...rows.filter(({ said, there }) => said !== there), ...blobs, ...files]
}

function differ(known: string[], there: string[]): string[] {
  const both = new Set(known).intersection(new Set(there))
  return [
    ...known.filter(name => !both.has(name)).map(name => `${name} is gone`),
    ...there.filter(name => !both.has(name)).map(name => `${name} belongs to nobody`),
  ]
}

async function publishedKnown(db: Database): Promise<string[]> {
  const { rows } = await db.query<{ name: string }>(
    `select i.id || '.jpg' as name from images.images i join images.files f on f.id = i.file_id
     where f.profile = 'upload' and f.status = 'ready'`,
  )
  return rows.map(row => row.name)
}

async function blobsThere(blobs: string): Promise<string[]> {
  const entries = await readdir(path.join(blobs, 'images'), { recursive: true, withFileTypes: true })
  return entries.filter(entry => entry.isFile()).map(entry => `${path.basename(entry.parentPath)}/${entry.name}`)
}

async function blobsKnown(db: Database): Promise<string[]> {
  const { rows } = await db.query<{ name: string }>(
    `select f.id || '/original' as name from images.files f
     union all select f.id || '/variant-' || (v->>'name') || '.' || (v->>'format')
       from images.files f, jsonb_array_elements(f.variants) v
     union all select t.file_id || '/transform-' || t.name from images.transforms t`,
  )
  return rows.map(row => row.name)
}

/** Lets many users' steps loose at once, and compares when all work is done. Answers how often somebody had no room. */
async function runModel(place: Place, given: { seed: number; isBounded: boolean }): Promise<number> {
  const { server } = place
  const model = makeSteps(place, makeRandom(given.seed), given.isBounded)
  let left = stepsMax
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      while (left-- > 0) await model.step()
    }),
  )
  await until(async () => (await countJobs(server)) === 0, 30_000)
  // Transforms are kept behind their answers.
  await until(async () => (await findDrift(place)).length === 0, 10_000).catch(() => {})
  assert.deepEqual(await findDrift(place), [], `MODEL_SEED=${given.seed}`)
  const { rows } = await server.db.query<{ files: number }>(`select count(*) as files from images.files`)
  assert.ok(rows[0]!.files > 0)
  return model.refusals
}

function seedOf(t: TestContext): number {
  const seed = Number(process.env.MODEL_SEED ?? Date.now() % 2 ** 31)
  t.diagnostic(`MODEL_SEED=${seed}`)
  return seed
}

test('what users are said to have is what is there, whatever they did', async t => {
  await runModel(await makePlace('free', { IMAGE_TRANSFORMS_MAX: '2' }), { seed: seedOf(t), isBounded: false })
})

test('nobody ever has more than the bound, and what is refused leaves nothing', async t => {
  const seed = seedOf(t)
  // Room for two of the pictures with what is made of them, or so.
  const bytesMax = 2 * whole[0]!.length + whole[1]!.length
  const env = { IMAGE_TRANSFORMS_MAX: '0', IMAGE_BYTES_PER_USER: String(bytesMax) }
  const place = await makePlace('bounded', env)
  await boundUsage(place.server.db, bytesMax)
  const refusals = await runModel(place, { seed, isBounded: true })
  assert.ok(refusals > 0, `MODEL_SEED=${seed}`)
  assert.deepEqual(place.server.complaints, [], `MODEL_SEED=${seed}`)
})

test('what an attempt leaves behind whose image was deleted meanwhile goes with the next attempt', async () => {
  const [started, go] = [path.join(folder, 'started'), path.join(folder, 'go')]
  const script = path.join(folder, 'scan')
  await writeFile(script, `#!/bin/sh\ntouch ${started}\nuntil [ -e ${go} ]; do sleep 0.05; done\nexit 3\n`, {
    mode: 0o700,
  })
  const own = await makeTestApp({
    env: { BLOB_URL: `file:${folder}/own`, BASE_PATH: `${folder}/own-published`, IMAGE_SCAN_COMMAND: script },
  })
  const dan = await makeSender(own, 'dan')
  const headers = { authorization: `Bearer ${dan.user.token}` }
  const { body } = await postForm(own, '/upload', { bytes: whole[0]!, headers })
  const { job_id: fileId } = (await dan.get(`/v1/images/${body.image_id}`)).body
  await until(() => existsSync(started))
  assert.equal((await dan.delete(`/v1/images/${body.image_id}`)).status, 204)
  await until(async () => (await countJobs(own)) === 1)

  const left = [
    path.join(folder, 'own', originalKey(fileId)),
    path.join(folder, 'own-published', `${body.image_id}.jpg`),
    path.join(folder, 'own-published', `${body.image_id}.jpg.part`),
  ]
  for (const file of left) {
    await mkdir(path.dirname(file), { recursive: true })
    await writeFile(file, 'x')
  }
  await writeFile(go, '')
  await until(async () => (await countJobs(own)) === 0, 10_000)
  assert.deepEqual(left.filter(existsSync), [])
})
