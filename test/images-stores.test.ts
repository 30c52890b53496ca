/**
 * Images whose store goes away: a bucket on a real S3 server behind a line that fails, and a folder that is taken away.
 * What was accepted is made when the store is back; what was not leaves nothing.
 */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { mkdtemp, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { assertProblem, makeSender, type Sender } from '../server/services/images/test-support.ts'
import { makeTestApp, type TestApp } from './support/app.ts'
import { atEnd } from './support/at-end.ts'
import { makeDataDir, startCapstan } from './support/capstan.ts'
import { makeUser } from './support/http.ts'
import { makePicture } from './support/pictures.ts'
import { makeTestS3, s3IsMissing } from './support/s3.ts'
import { until } from './support/until.ts'

const photo = (seed: number, width = 900) =>
  makePicture({ width, height: Math.round(width / 1.5), format: 'jpeg', kind: 'photo', seed })

function filesUnder(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile() && entry.parentPath.includes('/images/'))
    .map(entry => path.join(entry.parentPath, entry.name))
}

async function imagesIn({ db }: TestApp): Promise<number> {
  const { rows } = await db.query<{ count: number }>('select count(*) from images.images')
  return rows[0]!.count
}

test('on S3 an image comes in, is made, served and deleted', { skip: s3IsMissing }, async () => {
  const s3 = await makeTestS3()
  const server = await makeTestApp({ env: { BLOB_URL: s3.url, ...s3.env } })
  const ann = await makeSender(server, 'ann')
  // Larger than what goes up in one piece.
  const bytes = await makePicture({ width: 4000, height: 3000, format: 'png', kind: 'photo', seed: 1 })
  const { status, body } = await ann.raw(bytes, '?wait=60', { 'content-type': 'image/png' })
  assert.deepEqual([status, body.status], [200, 'ready'], JSON.stringify(body))
  const original = await ann.fetch(`/v1/images/${body.id}/original`)
  assert.ok(bytes.equals(Buffer.from(await original.arrayBuffer())))
  const part = await ann.fetch(`/v1/images/${body.id}/original`, { range: 'bytes=100-199' })
  assert.ok(bytes.subarray(100, 200).equals(Buffer.from(await part.arrayBuffer())))
  assert.equal((await ann.fetch(`/v1/images/${body.id}/width=100`)).status, 200)
  assert.ok(filesUnder(s3.folder).length >= 4)
  assert.equal((await ann.delete(`/v1/images/${body.id}`)).status, 204)
  await until(() => filesUnder(s3.folder).length === 0)
  assert.deepEqual(server.complaints, [])
})

/** What must hold of every store that is away for a while. */
async function checkAway(given: {
  server: TestApp
  ann: Sender
  leave: () => Promise<void>
  comeBack: () => Promise<void>
  /** How many blobs of images there are. */
  count: () => number
}) {
  const { server, ann, leave, comeBack, count } = given
  const first = await ann.raw(await photo(1), '?wait=30')
  assert.equal(first.body.status, 'ready', JSON.stringify(first.body))
  const before = { blobs: count(), images: await imagesIn(server) }
  await leave()
  const refused = await ann.raw(await photo(2))
  assertProblem(refused, 503, 'blob_store_unavailable')
  assert.ok(Number(refused.headers.get('retry-after')) > 0)
  assert.equal((await ann.fetch(`/v1/images/${first.body.id}/card`)).status, 503)
  assert.equal(await imagesIn(server), before.images)
  await comeBack()
  assert.equal(count(), before.blobs)
  const again = await ann.raw(await photo(2), '?wait=30')
  assert.equal(again.body.status, 'ready', JSON.stringify(again.body))
  assert.equal((await ann.fetch(`/v1/images/${first.body.id}/card`)).status, 200)
}

test('a bucket that cannot be reached refuses uploads, and goes on when it is back', {
  skip: s3IsMissing,
}, async () => {
  const s3 = await makeTestS3()
  const server = await makeTestApp({ env: { BLOB_URL: s3.url, ...s3.env } })
  const ann = await makeSender(server, 'ann')
  const count = () => filesUnder(s3.folder).length
  await checkAway({ server, ann, leave: s3.refuse, comeBack: s3.accept, count })
})

test('a bucket that is full refuses uploads, and goes on when there is room', { skip: s3IsMissing }, async () => {
  const s3 = await makeTestS3()
  const server = await makeTestApp({ env: { BLOB_URL: s3.url, ...s3.env } })
  const ann = await makeSender(server, 'ann')
  const { body } = await ann.raw(await photo(1), '?wait=30')
  const before = filesUnder(s3.folder).length
  s3.fault = asked => (/^(PUT|POST)/.test(asked) ? 'full' : undefined)
  assertProblem(await ann.raw(await photo(2)), 503, 'blob_store_unavailable')
  // What is there can still be read.
  assert.equal((await ann.fetch(`/v1/images/${body.id}/card`)).status, 200)
  s3.fault = undefined
  assert.equal(filesUnder(s3.folder).length, before)
  assert.equal((await ann.raw(await photo(2), '?wait=30')).body.status, 'ready')
})

test('what was accepted before the bucket went away is made when it is back', { skip: s3IsMissing }, async () => {
  const s3 = await makeTestS3()
  const env = { BLOB_URL: s3.url, ...s3.env }
  const server = await makeTestApp({ env })
  const ann = await makeSender(server, 'ann')
  // Originals come in; whatever workers want of the store is refused.
  s3.fault = asked => (asked.startsWith('GET') || asked.includes('variant') ? 'slow-down' : undefined)
  const ids: string[] = []
  for (let seed = 1; seed <= 5; seed++) {
    const { status, body } = await ann.raw(await photo(seed))
    assert.equal(status, 202, JSON.stringify(body))
    ids.push(body.id)
  }
  await until(async () => {
    const { rows } = await server.db.query<{ attempt: number }>('select attempt from images.files where attempt > 1')
    return rows.length > 0
  }, 30_000)
  await s3.kill()
  s3.fault = undefined
  await s3.start()
  for (const id of ids) assert.equal((await ann.ended(id)).status, 'ready')
})

test('a folder that is taken away refuses uploads, and goes on when it is back', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-away-'))
  atEnd(() => rm(folder, { recursive: true, force: true }))
  const blobs = path.join(folder, 'blobs')
  const server = await makeTestApp({ env: { BLOB_URL: `file:${blobs}` } })
  const ann = await makeSender(server, 'ann')
  await checkAway({
    server,
    ann,
    leave: () => rename(blobs, `${blobs}.away`),
    comeBack: () => rename(`${blobs}.away`, blobs),
    count: () => filesUnder(blobs).length,
  })
})

test('SIGTERM finishes the images that are being made, and who waits for one gets it', async () => {
  const dataDir = await makeDataDir()
  const capstan = await startCapstan({ dataDir, services: 'images', env: { N_WORKERS: '2' } })
  const user = await makeUser(capstan, 'ann')
  const large = await Promise.all([1, 2].map(seed => photo(seed, 5000)))
  const begun = Promise.all(
    large.map(bytes =>
      fetch(`${capstan.url}/v1/images?wait=60`, {
        method: 'POST',
        headers: { 'content-type': 'image/jpeg', authorization: `Bearer ${user.token}` },
        body: new Uint8Array(bytes),
      }).then(async answer => ({ status: answer.status, body: (await answer.json()) as { status: string } })),
    ),
  )
  await until(async () => {
    const { body } = await user.get(capstan, '/v1/images')
    const { images } = body as { images: { status: string }[] }
    return images.length === 2 && images.some(image => image.status === 'processing')
  })
  capstan.kill('SIGTERM')
  for (const { status, body } of await begun) assert.deepEqual([status, body.status], [200, 'ready'])
  assert.deepEqual(await capstan.exited, { code: 0, signal: null })
})
