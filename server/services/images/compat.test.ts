/** The old image server's route, as its clients know it. */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import sharp from 'sharp'
import { makeTestApp } from '../../../test/support/app.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeUser } from '../../../test/support/http.ts'
import { makePicture } from '../../../test/support/pictures.ts'
import { until } from '../../../test/support/until.ts'
import { postForm } from './test-support.ts'

const folder = await mkdtemp(path.join(tmpdir(), 'capstan-upload-'))
atEnd(() => rm(folder, { recursive: true, force: true }))
const server = await makeTestApp({ env: { BASE_PATH: folder } })
const jpeg = (width: number, height: number, seed = 1) =>
  makePicture({ width, height, format: 'jpeg', kind: 'photo', seed })
const upload = (bytes: Uint8Array, more: Omit<Parameters<typeof postForm>[2], 'bytes'> = {}, at = server) =>
  postForm(at, '/upload', { bytes, ...more })
const uuidV4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

/** Until a worker takes it: the test’s machine may be busy. */
async function accepted(bytes: Uint8Array): Promise<string> {
  let id = ''
  await until(async () => {
    const answer = await upload(bytes)
    assert.ok(answer.status === 200 || answer.status === 429, JSON.stringify(answer.body))
    id = answer.body.image_id ?? ''
    return id !== ''
  })
  return id
}

async function stored(id: string): Promise<Buffer> {
  const file = path.join(folder, `${id}.jpg`)
  await until(async () => (await readdir(folder)).includes(`${id}.jpg`))
  return readFile(file)
}

test('a large JPEG is made smaller, its shape kept', async () => {
  for (const [width, height, expected] of [
    [3000, 2000, [1920, 1280]],
    [2000, 2000, [1920, 1920]],
  ] as const) {
    const id = await accepted(await jpeg(width, height))
    assert.match(id, uuidV4)
    const meta = await sharp(await stored(id)).metadata()
    assert.deepEqual([meta.format, meta.width, meta.height], ['jpeg', ...expected])
  }
})

test('a small one is stored byte for byte as it came', async () => {
  const bytes = await jpeg(1920, 1280, 2)
  assert.ok((await stored(await accepted(bytes))).equals(bytes))
})

test('what is wrong is told as the old server told it', async () => {
  const good = await jpeg(300, 200, 3)
  const png = await makePicture({ width: 30, height: 20, format: 'png', kind: 'flat', seed: 1 })
  const tooLarge = Buffer.concat([good, Buffer.alloc(8192 * 1024)])
  const cases: [what: string, status: number, answer: ReturnType<typeof upload>][] = [
    ['too large', 413, upload(tooLarge)],
    ['a PNG', 400, upload(png)],
    ['a PNG that says it is a JPEG', 400, upload(png, { fileName: 'a.jpg' })],
    ['no image at all', 400, upload(Buffer.from('hello'))],
    ['cut off', 400, upload(good.subarray(0, good.length / 2))],
    ['nothing', 400, upload(new Uint8Array(0))],
    ['another part', 400, upload(good, { part: 'file' })],
    ['a field too many', 400, upload(good, { fields: { size: '3' } })],
  ]
  for (const [what, status, answer] of cases) {
    const { status: got, body } = await answer
    assert.equal(got, status, `${what}: ${JSON.stringify(body)}`)
    assert.deepEqual(Object.keys(body), ['error'], what)
    assert.ok(body.error.length > 10, what)
  }
  const noForm = await fetch(`${server.url}/upload`, { method: 'POST', body: new Uint8Array(good) })
  assert.equal(noForm.status, 400)
  assert.deepEqual(Object.keys((await noForm.json()) as object), ['error'])
})

test('when no worker takes it within 100 ms, nothing was accepted', async () => {
  // A process without workers: nobody takes anything.
  const own = await makeTestApp({ roles: ['api'] })
  const begun = performance.now()
  const answer = await upload(await jpeg(300, 200, 4), {}, own)
  assert.equal(answer.status, 429, JSON.stringify(answer.body))
  assert.ok(Number(answer.headers.get('retry-after')) >= 1)
  assert.deepEqual(Object.keys(answer.body), ['error'])
  assert.ok(performance.now() - begun >= 100)
  const { rows } = await own.db.query(`select from images.images union all select from images.files`)
  assert.equal(rows.length, 0)
  const jobs = await own.db.query(`select queue from jobs.active where queue = 'images'`)
  assert.equal(jobs.rows.length, 0)
})

test('with a token the image is its sender’s; the route is open only where it is said to be', async () => {
  const eve = await makeUser(server, 'eve')
  const headers = { authorization: `Bearer ${eve.token}` }
  let id = ''
  const bytes = await jpeg(640, 480, 5)
  await until(async () => {
    id = (await upload(bytes, { headers })).body.image_id ?? ''
    return id !== ''
  })
  await until(async () => (await eve.get(server, `/v1/images/${id}`)).body.status === 'ready')
  assert.equal((await upload(bytes, { headers: { authorization: 'Bearer nonsense' } })).status, 401)
  const closed = await makeTestApp({ env: { OPEN_ROUTES: 'none' } })
  const refused = await upload(bytes, {}, closed)
  assert.deepEqual([refused.status, Object.keys(refused.body)], [401, ['error']])
})
