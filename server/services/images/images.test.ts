/** Images from upload to deletion: who has which, what is stored once, what is told meanwhile. */
import assert from 'node:assert/strict'
import { createHash, randomUUID } from 'node:crypto'
import { chmod, glob, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import sharp from 'sharp'
import { makeTestApp, type TestApp } from '../../../test/support/app.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { hostilePictures } from '../../../test/support/hostile-pictures.ts'
import { send } from '../../../test/support/http.ts'
import { makePicture } from '../../../test/support/pictures.ts'
import { until } from '../../../test/support/until.ts'
import { makeImages } from './images.ts'
import { assertProblem, makeSender } from './test-support.ts'

const folder = await mkdtemp(path.join(tmpdir(), 'capstan-images-'))
atEnd(() => rm(folder, { recursive: true, force: true }))
const server = await makeTestApp({ env: { BLOB_URL: `file:${folder}/blobs`, IMAGE_SWEEP_MINUTES_MIN: '0' } })
const [ann, bob] = [await makeSender(server, 'ann'), await makeSender(server, 'bob')]
const photo = (seed: number, more = {}) =>
  makePicture({ width: 900, height: 600, format: 'jpeg', kind: 'photo', seed, ...more })

async function filesIn(given: TestApp, fileId: string): Promise<number> {
  const { rows } = await given.db.query<{ count: number }>(`select count(*) from images.files where id = $1`, [fileId])
  return rows[0]!.count
}

test('an upload is ready with its variants, placeholder, size, colour and hash', async () => {
  const bytes = await photo(1)
  const { status, body, headers } = await ann.raw(bytes, '?wait=30&name=a%20hill.jpg')
  assert.equal(status, 200, JSON.stringify(body))
  assert.equal(headers.get('location'), `/v1/images/${body.id}`)
  assert.deepEqual(
    { ...body, id: 0, job_id: 0, created_at: 0, ended_at: 0, thumbhash: 0, dominant_colour: 0, variants: 0 },
    {
      id: 0,
      job_id: 0,
      status: 'ready',
      name: 'a hill.jpg',
      visibility: 'private',
      format: 'jpeg',
      bytes: bytes.length,
      sha256: createHash('sha256').update(bytes).digest('hex'),
      width: 900,
      height: 600,
      frames: 1,
      thumbhash: 0,
      dominant_colour: 0,
      has_alpha: false,
      variants: 0,
      error: null,
      created_at: 0,
      ended_at: 0,
    },
  )
  assert.match(body.dominant_colour, /^#[0-9a-f]{6}$/)
  assert.ok(Buffer.from(body.thumbhash, 'base64').length > 5)
  const sizes = body.variants.map((variant: { name: string; width: number; height: number }) => [
    variant.name,
    variant.width,
    variant.height,
  ])
  assert.deepEqual(sizes, [
    ['thumbnail', 256, 256],
    ['card', 640, 427],
    ['full', 900, 600],
  ])
  for (const variant of body.variants) {
    const answer = await ann.fetch(variant.url)
    const content = Buffer.from(await answer.arrayBuffer())
    assert.equal(content.length, variant.bytes)
    const meta = await sharp(content).metadata()
    assert.deepEqual([meta.format, meta.width, meta.height], [variant.format, variant.width, variant.height])
  }
  const original = await ann.fetch(`/v1/images/${body.id}/original`)
  assert.ok(Buffer.from(await original.arrayBuffer()).equals(bytes))
})

test('a form does the same, and an answer that is not waited for comes before the work', async () => {
  const bytes = await photo(2)
  const { status, body } = await ann.form(bytes, { fileName: '../../etc/passwd.jpg', fields: { visibility: 'public' } })
  assert.equal(status, 202)
  assert.deepEqual([body.name, body.visibility, body.bytes], ['passwd.jpg', 'public', bytes.length])
  const image = await ann.ended(body.id)
  assert.equal(image.status, 'ready')
  const job = await ann.get(`/v1/jobs/${image.job_id}`)
  assert.deepEqual([job.body.queue, job.body.state], ['images', 'succeeded'])
  // A public image's presets are everybody's.
  assert.equal((await fetch(`${server.url}/v1/images/${body.id}/card`)).status, 200)
  assert.equal((await fetch(`${server.url}/v1/images/${body.id}/original`)).status, 404)
})

test('an image lies upright, whatever its orientation says', async () => {
  const { body } = await ann.raw(await photo(3, { orientation: 6 }), '?wait=30')
  assert.deepEqual([body.width, body.height], [600, 900])
  const card = await sharp(Buffer.from(await (await ann.fetch(`/v1/images/${body.id}/card`)).arrayBuffer())).metadata()
  assert.ok(card.height! > card.width!)
  assert.equal(card.orientation ?? 1, 1)
})

test('equal files of one user are one file, of two users two', async () => {
  const bytes = await photo(4)
  const [one, two] = await Promise.all([ann.raw(bytes, '?name=one'), ann.raw(bytes, '?name=two')])
  const three = await ann.raw(bytes, '?wait=30')
  const other = await bob.raw(bytes, '?wait=30')
  const ids = [one, two, three, other].map(answer => answer.body.id)
  assert.equal(new Set(ids).size, 4)
  const jobs = [one, two, three].map(answer => answer.body.job_id)
  assert.equal(new Set(jobs).size, 1)
  assert.notEqual(other.body.job_id, jobs[0])
  assert.equal(three.body.status, 'ready')
  const key = (id: string) => `images/${id.slice(-2)}/${id}/`
  const { rows } = await server.db.query<{ count: number }>(`select count(*) from images.files where sha256 = $1`, [
    createHash('sha256').update(bytes).digest(),
  ])
  assert.equal(rows[0]!.count, 2)

  // The file goes with its last image, and everything of it.
  assert.equal((await ann.delete(`/v1/images/${ids[0]}`)).status, 204)
  assert.equal((await ann.delete(`/v1/images/${ids[1]}`)).status, 204)
  assert.equal((await ann.fetch(`/v1/images/${ids[2]}/card`)).status, 200)
  assert.equal((await ann.delete(`/v1/images/${ids[2]}`)).status, 204)
  assert.equal(await filesIn(server, jobs[0]), 0)
  await until(async () => (await keysUnder(key(jobs[0]))).length === 0)
  assert.ok((await keysUnder(key(other.body.job_id))).length >= 4)
  assertProblem(await ann.get(`/v1/images/${ids[2]}`), 404, 'image_not_found')
  assertProblem(await ann.delete(`/v1/images/${ids[2]}`), 404, 'image_not_found')
})

async function keysUnder(prefix: string): Promise<string[]> {
  return Array.fromAsync(glob(`blobs/${prefix}*`, { cwd: folder }))
}

test('a repeated request with one key makes one image; another file with that key is refused', async () => {
  const [first, second] = [await photo(5), await photo(6)]
  const key = { 'idempotency-key': 'once' }
  const one = await ann.raw(first, '', key)
  const again = await ann.raw(first, '', key)
  assert.equal(again.body.id, one.body.id)
  assertProblem(await ann.raw(second, '', key), 422, 'idempotency_key_reused')
  assertProblem(await ann.raw(second, '', { 'idempotency-key': 'x'.repeat(256) }), 400, 'bad_idempotency_key')
})

test('images are listed newest first, page by page, and are their owner’s alone', async () => {
  const cem = await makeSender(server, 'cem')
  const ids: string[] = []
  for (const seed of [11, 12, 13]) ids.unshift((await cem.raw(await photo(seed))).body.id)
  const first = (await cem.get('/v1/images?limit=2')).body
  const second = (await cem.get(`/v1/images?limit=2&cursor=${first.next_cursor}`)).body
  assert.deepEqual(
    [...first.images, ...second.images].map((image: { id: string }) => image.id),
    ids,
  )
  for (const id of ids) await cem.ended(id)
  assert.equal((await cem.get('/v1/images?status=ready')).body.images.length, 3)
  assert.equal((await cem.get('/v1/images?status=failed')).body.images.length, 0)
  assertProblem(await bob.get(`/v1/images/${ids[0]}`), 404, 'image_not_found')
  assertProblem(await bob.delete(`/v1/images/${ids[0]}`), 404, 'image_not_found')
  assertProblem(await send(server, 'GET', `/v1/images/${ids[0]}`), 401, 'unauthenticated')
  assertProblem(await send(server, 'POST', '/v1/images'), 401, 'unauthenticated')
})

test('what happens to an image is told live, to its owner alone', async () => {
  const { body } = await ann.raw(await photo(7))
  const events = await readEvents(ann, `images/${body.id}`)
  assert.deepEqual(
    events.map(event => event.data.status),
    ['waiting', 'processing', 'ready'],
  )
  assert.equal(events.at(-1)!.data.variants.length, 3)
  const answer = await bob.fetch(`/v1/live/events?topic=images/${body.id}`)
  assert.match(await answer.text(), /image_not_found/)
})

test('who follows an image is told when it is deleted, and who comes then finds none', async () => {
  // Nobody works, so that it waits.
  const own = await makeTestApp({ roles: ['api'] })
  const dan = await makeSender(own, 'dan')
  const bytes = await photo(8)
  const [{ body }, { body: other }] = [await dan.raw(bytes), await dan.raw(bytes)]
  assert.equal(body.job_id, other.job_id)
  const topic = `images/${body.id}`
  const followers = await Promise.all(
    ['0', '1'].map(after => dan.fetch(`/v1/live/events?topic=${topic}&after=${after}`)),
  )
  assert.equal((await dan.delete(`/v1/images/${body.id}`)).status, 204)
  const [all, some] = await Promise.all(followers.map(eventsOf))
  const deleted = { topic, seq: 2, type: 'deleted', data: null }
  assert.deepEqual(all, [{ topic, seq: 1, type: 'status', data: { status: 'waiting' } }, deleted])
  assert.deepEqual(some, [deleted])
  for (const after of [0, 1, 2]) {
    assertProblem(await dan.get(`/v1/live/events?topic=${topic}&after=${after}`), 404, 'image_not_found')
  }
  // Its file is another image's, too, which goes on.
  assert.equal((await dan.get(`/v1/images/${other.id}`)).body.status, 'waiting')
})

test('a topic that is opened just after its image was deleted has that event alone', async () => {
  const { source } = makeImages({ db: server.db } as never)
  const id = randomUUID()
  assert.deepEqual(await source.heads([id]), new Map([[id, 1]]))
  assert.deepEqual(await source.read(id, 0, 10), [{ seq: 1, type: 'deleted', data: null, final: true }])
})

// biome-ignore lint/suspicious/noExplicitAny: what the events hold.
async function readEvents(sender: typeof ann, topic: string): Promise<{ data: any }[]> {
  return eventsOf(await sender.fetch(`/v1/live/events?topic=${topic}`))
}

/** All of a stream, which ends with the topic. */
// biome-ignore lint/suspicious/noExplicitAny: as above.
async function eventsOf(answer: Response): Promise<{ data: any }[]> {
  return [...(await answer.text()).matchAll(/^data: (\{.*\})$/gm)].map(match => JSON.parse(match[1]!))
}

test('a file that cannot be decoded fails with its reason, and can be tried again', async () => {
  const bytes = hostilePictures()
    .find(picture => picture.expect === 'fails in the job')!
    .bytes()
  const { body } = await ann.raw(bytes, '?wait=30')
  assert.equal(body.status, 'failed', JSON.stringify(body))
  assert.ok(body.error.length > 10)
  assertProblem(await ann.get(`/v1/images/${body.id}/card`), 409, 'image_unusable')
  // An upload of the same bytes is a file of its own: the first one's fate is not its.
  const again = await ann.raw(bytes, '?wait=30')
  assert.notEqual(again.body.job_id, body.job_id)
  assert.equal((await ann.user.post(server, `/v1/jobs/${body.job_id}/retry`, {})).status < 300, true)
  assert.equal((await ann.ended(body.id)).status, 'failed')
})

test('a scanner’s no is final and told; its failure is not', async () => {
  const script = path.join(folder, 'scan.sh')
  const marker = path.join(folder, 'broken-once')
  await writeFile(
    script,
    `#!/bin/sh\nn=$(wc -c)\nif [ "$n" -lt 3000 ]; then echo "Too small to be true."; exit 1; fi\n[ -e ${marker} ] || { touch ${marker}; exit 3; }\n`,
  )
  await chmod(script, 0o755)
  const own = await makeTestApp({ env: { IMAGE_SCAN_COMMAND: script } })
  const dan = await makeSender(own, 'dan')
  const small = await dan.raw(
    await makePicture({ width: 20, height: 20, format: 'png', kind: 'flat', seed: 1 }),
    '?wait=30',
  )
  assert.deepEqual([small.body.status, small.body.error], ['refused', 'Too small to be true.'])
  assertProblem(await dan.get(`/v1/images/${small.body.id}/card`), 409, 'image_unusable')
  const good = await dan.raw(await photo(9), '?wait=30')
  assert.equal(good.body.status, 'ready')
  assert.equal((await dan.get(`/v1/jobs/${good.body.job_id}`)).body.attempt, 2)
})

test('a scanner behind a URL is asked with the file', async () => {
  const seen: number[] = []
  const scanner = createServer(async (request, response) => {
    let bytes = 0
    for await (const chunk of request) bytes += chunk.length
    seen.push(bytes)
    response.writeHead(bytes < 3000 ? 422 : 204).end(bytes < 3000 ? 'No.' : undefined)
  })
  await new Promise<void>(resolve => scanner.listen(0, '127.0.0.1', resolve))
  atEnd(() => scanner.close())
  const own = await makeTestApp({
    env: { IMAGE_SCAN_URL: `http://127.0.0.1:${(scanner.address() as AddressInfo).port}/` },
  })
  const dan = await makeSender(own, 'dan')
  const tiny = await makePicture({ width: 20, height: 20, format: 'png', kind: 'flat', seed: 1 })
  const good = await photo(10)
  assert.deepEqual((await dan.raw(tiny, '?wait=30')).body.error, 'No.')
  assert.equal((await dan.raw(good, '?wait=30')).body.status, 'ready')
  assert.deepEqual(seen, [tiny.length, good.length])
})

test('what a user has is bounded, and given back with what is deleted', async () => {
  const large = await photo(20, { width: 1500, height: 1000 })
  const own = await makeTestApp({ env: { IMAGE_BYTES_PER_USER: String(large.length) } })
  const dan = await makeSender(own, 'dan')
  const { body } = await dan.raw(large, '?wait=30')
  assertProblem(await dan.raw(await photo(21)), 403, 'image_quota_exceeded')
  assert.equal((await dan.delete(`/v1/images/${body.id}`)).status, 204)
  assert.equal((await dan.raw(await photo(21))).status, 202)
})

test('blobs of nobody are swept away, those of images stay', async () => {
  const { body } = await ann.raw(await photo(30), '?wait=30')
  await ann.fetch(`/v1/images/${body.id}/width=100`)
  const dataOf = `blobs/images/${body.job_id.slice(-2)}/${body.job_id}`
  // Kept behind the answer: first the blob, then the row that says whose it is.
  await until(async () => {
    const { rows } = await server.db.query(`select from images.transforms where file_id = $1`, [body.job_id])
    return rows.length === 1
  })
  await writeFile(path.join(folder, dataOf, 'transform-nobody.webp'), 'x')
  const admin = await makeAdmin()
  const begun = await send(server, 'POST', '/v1/images/sweeps', admin, { older_than_hours: 0 })
  assert.equal(begun.status, 202)
  await until(
    async () => (await send(server, 'GET', `/v1/jobs/${begun.body.job_id}`, admin)).body.state === 'succeeded',
  )
  const { result } = (await send(server, 'GET', `/v1/jobs/${begun.body.job_id}`, admin)).body
  assert.equal(result.swept, 1, JSON.stringify(result))
  assert.equal((await keysUnder(`images/${body.job_id.slice(-2)}/${body.job_id}/`)).length, 5)
  assertProblem(await ann.user.post(server, '/v1/images/sweeps', {}), 403, 'forbidden')
})

/** Sweeps whatever its age, and answers the job at its end. */
async function sweep(at: TestApp) {
  const admin = await makeAdmin(at)
  const begun = await send(at, 'POST', '/v1/images/sweeps', admin, { older_than_hours: 0 })
  const job = async () => (await send(at, 'GET', `/v1/jobs/${begun.body.job_id}`, admin)).body
  await until(async () => ['dead', 'succeeded'].includes((await job()).state))
  return job()
}

test('a sweep leaves the store of another database alone', async () => {
  const { body } = await ann.raw(await photo(31), '?wait=30')
  const blobs = () => keysUnder(`images/${body.job_id.slice(-2)}/${body.job_id}/`)
  const before = (await blobs()).length
  const other = await makeTestApp({ env: { BLOB_URL: `file:${folder}/blobs`, IMAGE_SWEEP_MINUTES_MIN: '0' } })
  const { state, error } = await sweep(other)
  assert.equal(state, 'dead')
  assert.match(error, /another database/)
  assert.equal((await blobs()).length, before)
})

test('a sweep leaves what may be about to be an image’s, whatever it is told', async () => {
  const own = await makeTestApp({ env: { BLOB_URL: `file:${folder}/young` } })
  const orphan = path.join(folder, 'young/images/aa/01a1fd3d-1b82-71a9-9afe-072467c4efaa')
  await mkdir(orphan, { recursive: true })
  await writeFile(path.join(orphan, 'original'), 'x')
  const { result } = await sweep(own)
  assert.deepEqual([result.seen, result.swept], [1, 0])
})

async function makeAdmin(at: TestApp = server) {
  const [username, password] = ['root', 'the password of root']
  await at.app.identity.createUser({ username, password, role: 'admin' })
  const { body } = await send(at, 'POST', '/v1/auth/login', {}, { username, password })
  return { authorization: `Bearer ${body.access_token}` }
}

test('what can be sent and made is told to everybody', async () => {
  const { status, body } = await send(server, 'GET', '/v1/images/formats')
  assert.equal(status, 200)
  assert.ok(['jpeg', 'png', 'webp', 'avif', 'gif', 'tiff'].every(format => body.input.includes(format)))
  assert.deepEqual(Object.keys(body.presets), ['thumbnail', 'card', 'full'])
})

test('every format that is offered is taken and made', async () => {
  for (const format of ['png', 'webp', 'avif', 'gif', 'tiff'] as const) {
    const bytes = await makePicture({ width: 300, height: 200, format, kind: 'photo', seed: 40 })
    const { body } = await ann.raw(bytes, '?wait=30', { 'content-type': 'application/octet-stream' })
    assert.deepEqual([body.status, body.format, body.width, body.height], ['ready', format, 300, 200], body.error)
  }
})
