/** From the last byte to the image: once, whoever else finishes too and whenever a process dies. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { errors as platformErrors } from '#platform/errors.ts'
import { until } from '../../../../test/support/until.ts'
import { fileOfKey } from '../keys.ts'
import {
  ask,
  assertFinished,
  assertParts,
  create,
  makeJpeg,
  makeTestUploads,
  patch,
  type TestProcess,
} from './test-support.ts'

const uploads = await makeTestUploads()
const { db, blobs } = uploads
const server = await uploads.start()
const killed = new Error('killed')
const never = () => Promise.reject(killed)

const head = (process: TestProcess, id: string) => ask(process, { method: 'HEAD', path: `/${id}` })

/** Each original belongs to a file: nothing was received twice and left there. */
async function assertNoOrphans() {
  const { rows } = await db.query<{ id: string }>(`select id from images.files order by id`)
  const originals = (await blobs.list('images/', { limit: 1000 })).map(blob => fileOfKey(blob.key)!)
  assert.deepEqual(
    originals.sort(),
    rows.map(row => row.id),
  )
}

test('two processes that finish an upload at once make one image', async () => {
  const jpeg = await makeJpeg()
  let waiting = 0
  const gate = Promise.withResolvers<void>()
  const start = () =>
    uploads.start({
      images: images => ({
        ...images,
        async accept(given) {
          waiting++
          await gate.promise
          return images.accept(given)
        },
      }),
    })
  const [one, two] = [await start(), await start()]
  const id = await create(one, jpeg.length)
  const answers = [patch(one, id, 0, jpeg)]
  await until(() => waiting === 1)
  answers.push(head(two, id))
  await until(() => waiting === 2)
  gate.resolve()
  for (const { status, headers } of await Promise.all(answers)) {
    assert.ok(status < 300, `${status}`)
    assert.equal(headers.get('capstan-image'), `/v1/images/${id}`)
  }
  await assertFinished(uploads, id, jpeg)
  await assertNoOrphans()
})

test('a process whose pieces another one has finished and erased answers the image', async () => {
  const jpeg = await makeJpeg()
  const reading = Promise.withResolvers<void>()
  const gate = Promise.withResolvers<void>()
  const slow = await uploads.start({
    blobs: store => ({
      ...store,
      async get(key, range) {
        reading.resolve()
        await gate.promise
        return store.get(key, range)
      },
    }),
  })
  const id = await create(slow, jpeg.length)
  const answer = patch(slow, id, 0, jpeg)
  await reading.promise
  assert.equal((await head(server, id)).status, 200)
  gate.resolve()
  const { status, headers } = await answer
  assert.deepEqual([status, headers.get('capstan-image')], [204, `/v1/images/${id}`])
  await assertFinished(uploads, id, jpeg)
  await assertNoOrphans()
})

const deaths: Record<string, Parameters<typeof uploads.start>[0]> = {
  'before the file is received': { receiver: receiver => ({ ...receiver, receive: never }) },
  'before the image is accepted': {
    images: images => ({ ...images, accept: never }),
    receiver: receiver => ({
      ...receiver,
      // What was received and not accepted is for the orphan sweep, which is another's.
      async receive(given) {
        await receiver.discard(await receiver.receive(given))
        throw killed
      },
    }),
  },
  'between the image and the end of the upload': {
    images: images => ({ ...images, accept: given => images.accept(given).then(never) }),
  },
  'before the pieces are erased': { blobs: store => ({ ...store, delete: never }) },
}
for (const [when, faults] of Object.entries(deaths)) {
  test(`a process that dies ${when} leaves an upload that another one finishes`, async () => {
    const jpeg = await makeJpeg()
    const dying = await uploads.start(faults)
    const id = await create(dying, jpeg.length)
    await patch(dying, id, 0, jpeg.subarray(0, 1000))
    await patch(dying, id, 1000, jpeg.subarray(1000))
    // However late: keys of requests are forgotten.
    await db.query(`delete from platform.idempotency_keys`)
    const answer = await head(server, id)
    assert.deepEqual(
      [answer.status, answer.headers.get('upload-offset'), answer.headers.get('capstan-image')],
      [200, String(jpeg.length), `/v1/images/${id}`],
    )
    await server.resumable.sweep(new Date(Date.now() + 1000))
    await assertFinished(uploads, id, jpeg)
    await assertNoOrphans()
  })
}

test('an image that was deleted before its upload knew of it does not come back', async () => {
  const jpeg = await makeJpeg()
  const dying = await uploads.start(deaths['between the image and the end of the upload'])
  const id = await create(dying, jpeg.length)
  assert.equal((await patch(dying, id, 0, jpeg)).status, 500)
  await db.query(`delete from images.images where id = $1`, [id])
  assert.equal((await head(server, id)).status, 200)
  assert.equal((await ask(server, { method: 'GET', path: `/${id}` })).body.status, 'finished')
  assert.deepEqual(await uploads.originals(id), [])
  assert.deepEqual(await assertParts(uploads, id), [])
})

test('an upload that is whole while nobody can take it is finished later', async () => {
  const jpeg = await makeJpeg()
  let away = true
  const process = await uploads.start({
    receiver: receiver => ({
      ...receiver,
      receive: given => {
        if (away) throw platformErrors.blobStoreUnavailable('the store cannot be reached')
        return receiver.receive(given)
      },
    }),
  })
  const id = await create(process, jpeg.length)
  const { status, body, headers } = await patch(process, id, 0, jpeg)
  assert.deepEqual([status, body.code, headers.get('retry-after')], [423, 'upload_finishes_later', '5'])
  assert.equal((await head(process, id)).status, 423)
  assert.equal((await assertParts(uploads, id)).length, 1)
  away = false
  assert.equal((await head(process, id)).status, 200)
  await assertFinished(uploads, id, jpeg)
})

test('a piece that cannot be read is never the file’s fault', async () => {
  const jpeg = await makeJpeg()
  let hidden = true
  const process = await uploads.start({
    blobs: store => ({ ...store, get: async (key, range) => (hidden ? undefined : store.get(key, range)) }),
  })
  const id = await create(process, jpeg.length)
  assert.equal((await patch(process, id, 0, jpeg)).body.code, 'upload_finishes_later')
  hidden = false
  assert.equal((await head(process, id)).status, 200)
  await assertFinished(uploads, id, jpeg)
})

test('an equal file becomes an image of its own and is kept once', async () => {
  const jpeg = await makeJpeg()
  const ids = []
  for (let n = 0; n < 2; n++) {
    const id = await create(server, jpeg.length)
    assert.equal((await patch(server, id, 0, jpeg)).status, 204)
    await assertFinished(uploads, id, jpeg)
    ids.push(id)
  }
  const { rows } = await db.query(`select distinct file_id from images.images where id = any($1::uuid[])`, [ids])
  assert.equal(rows.length, 1)
  await assertNoOrphans()
})

test('pieces that cannot be erased when an upload is given up belong to nobody, and the orphan sweep sees that', async () => {
  const jpeg = await makeJpeg()
  const process = await uploads.start({ blobs: store => ({ ...store, delete: never }) })
  const id = await create(process, jpeg.length)
  await patch(process, id, 0, jpeg.subarray(0, 1000))
  assert.equal((await ask(process, { method: 'DELETE', path: `/${id}` })).status, 204)
  const { present, known } = await uploads.parts(id)
  assert.deepEqual([present.length, known.length], [1, 0])
  assert.deepEqual(await server.resumable.knownParts([id]), new Set())
  await blobs.delete(present)
})
