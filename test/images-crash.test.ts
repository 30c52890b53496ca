/**
 * Images while things are killed: a hundred uploads, each with an Idempotency-Key, and Capstan gets SIGKILL ten times
 * meanwhile. Who got no answer asks again with the same key; some give up.
 */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { originalKey, variantKey } from '../server/services/images/keys.ts'
import { type Sender, senderOf } from '../server/services/images/test-support.ts'
import {
  type Capstan,
  makeDataDir,
  processesWith,
  queryIn,
  runCapstan,
  startCapstan,
  stopAll,
} from './support/capstan.ts'
import { makeUser, send, type User } from './support/http.ts'
import { makeJpegOfSize } from './support/pictures.ts'
import { until } from './support/until.ts'

const uploads = 100
const senders = 8
const kills = 10
const bytesEach = 150_000
const services = 'images'
const env = { IMAGE_SWEEP_MINUTES_MIN: '0' }
/** One of so many gives up when it gets no answer. */
const quitters = 5

interface Scene {
  capstan: Capstan
  users: User[]
  /** Answered so far, by name. */
  acknowledged: Map<string, string>
  abandoned: Set<string>
  lost: number
  /** Resolved while nothing is known to be dead. */
  up: Promise<void>
}

async function uploadAll(scene: Scene) {
  let next = 0
  await Promise.all(
    Array.from({ length: senders }, async (_, index) => {
      while (next < uploads) {
        const n = next++
        await uploadOne(scene, { n, user: scene.users[index % scene.users.length]! })
      }
    }),
  )
}

async function uploadOne(scene: Scene, { n, user }: { n: number; user: User }) {
  const name = `picture-${n}`
  const bytes = await makeJpegOfSize(bytesEach, n)
  for (;;) {
    await scene.up
    const { capstan } = scene
    const answer = await senderOf(capstan, user)
      .raw(bytes, `?name=${name}`, { 'idempotency-key': name })
      .catch(() => undefined)
    if (answer?.status === 202) return void scene.acknowledged.set(name, answer.body.id)
    if (answer !== undefined) {
      assert.equal(answer.status, 503, JSON.stringify(answer.body))
    } else {
      scene.lost++
      if (n % quitters === 0) return void scene.abandoned.add(name)
      await until(() => scene.capstan !== capstan, 30_000)
    }
  }
}

/** Kills once so many more have been answered, somewhere within the next moment. */
async function killNow(scene: Scene, dataDir: string, seed: number) {
  const { capstan } = scene
  const up = Promise.withResolvers<void>()
  await new Promise(resolve => setTimeout(resolve, (seed * 7919) % 150))
  scene.up = up.promise
  capstan.kill('SIGKILL')
  await capstan.exited
  scene.capstan = await startCapstan({ dataDir, services, env: { ...env, PORT: portOf(capstan) } })
  up.resolve()
}

const portOf = (capstan: Capstan) => new URL(capstan.url).port

test('what was acknowledged ends ready, once, and nothing of nobody stays, however often Capstan is killed', async t => {
  const dataDir = await makeDataDir()
  const seed = Number(process.env.MODEL_SEED ?? Date.now() % 2 ** 31)
  t.diagnostic(`MODEL_SEED=${seed}`)
  const capstan = await startCapstan({ dataDir, services, env })
  const users = await Promise.all(['ann', 'bob', 'cem'].map(name => makeUser(capstan, name)))
  const scene: Scene = {
    capstan,
    users,
    acknowledged: new Map(),
    abandoned: new Set(),
    lost: 0,
    up: Promise.resolve(),
  }
  const all = uploadAll(scene)
  let isOver = false
  all
    .finally(() => {
      isOver = true
    })
    .catch(() => {})
  for (let round = 1; round <= kills; round++) {
    const wanted = Math.min((round * uploads) / (kills + 2), uploads - 1)
    await until(() => isOver || scene.acknowledged.size + scene.abandoned.size >= wanted, 60_000)
    await killNow(scene, dataDir, seed + round)
  }
  await all
  t.diagnostic(
    `${scene.acknowledged.size} acknowledged, ${scene.abandoned.size} given up, ${scene.lost} times no answer`,
  )
  assert.ok(scene.lost > 0, 'no upload was under way when Capstan was killed')
  assert.equal(scene.acknowledged.size + scene.abandoned.size, uploads)
  await assertAllReady(scene)
  await assertOnceEach(scene, dataDir)
  await assertNothingElse(scene, dataDir)
  await stopAll(scene.capstan)
  assert.deepEqual(processesWith(path.join(dataDir, 'work')), [])
})

async function assertAllReady(scene: Scene) {
  const statuses = async () => {
    const seen = new Map<string, { name: string; status: string; error: string | null }>()
    for (const user of scene.users) {
      const sender = senderOf(scene.capstan, user)
      for (const image of await listAll(sender)) seen.set(image.id, image)
    }
    return seen
  }
  await until(async () => [...(await statuses()).values()].every(({ status }) => status === 'ready'), 60_000)
  const seen = await statuses()
  for (const [name, id] of scene.acknowledged) assert.equal(seen.get(id)?.name, name)
  // Who gave up has an image or none, never two.
  const names = [...seen.values()].map(image => image.name)
  assert.equal(new Set(names).size, names.length)
}

async function listAll(sender: Sender): Promise<{ id: string; name: string; status: string; error: string | null }[]> {
  const images = []
  for (let cursor = ''; ; ) {
    const { body } = await sender.get(`/v1/images?limit=100${cursor && `&cursor=${cursor}`}`)
    images.push(...body.images)
    if (body.next_cursor === null) return images
    cursor = body.next_cursor
  }
}

/** One end a job, and one event that says so. */
async function assertOnceEach(scene: Scene, dataDir: string) {
  const rows = await queryIn<{ ends: number; events: number }>(
    dataDir,
    `select (select count(*)::int from jobs.finished j where j.id = f.id) as ends,
            (select count(*)::int from images.events e where e.file_id = f.id and e.data->>'status' = 'ready') as events
     from images.files f`,
  )
  assert.ok(rows.length >= scene.acknowledged.size)
  for (const row of rows) assert.deepEqual(row, { ends: 1, events: 1 })
}

async function assertNothingElse(scene: Scene, dataDir: string) {
  const { body: login } = await makeAdmin(scene.capstan)
  const admin = { authorization: `Bearer ${login.access_token}` }
  const { body } = await send(scene.capstan, 'POST', '/v1/images/sweeps', admin, { older_than_hours: 0 })
  const job = async () => (await send(scene.capstan, 'GET', `/v1/jobs/${body.job_id}`, admin)).body
  await until(async () => (await job()).state === 'succeeded')
  const files = await queryIn<{ id: string; variants: Parameters<typeof variantKey>[1][] }>(
    dataDir,
    'select id, variants from images.files',
  )
  const known = files.flatMap(({ id, variants }) => [
    originalKey(id),
    ...variants.map(variant => variantKey(id, variant)),
  ])
  const blobs = path.join(dataDir, 'blobs')
  const found = readdirSync(blobs, { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile())
    .map(entry => path.relative(blobs, path.join(entry.parentPath, entry.name)))
  assert.deepEqual(found.filter(name => name.includes('/')).toSorted(), known.toSorted())
}

async function makeAdmin(capstan: Capstan) {
  const { name, password } = await makeUser(capstan, 'root')
  const made = await runCapstan(capstan.dataDir, 'user', 'role', name, 'admin')
  assert.equal(made.code, 0, made.output)
  return send(capstan, 'POST', '/v1/auth/login', {}, { username: name, password })
}
