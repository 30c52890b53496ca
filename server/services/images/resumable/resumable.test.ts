import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import {
  ask,
  assertFinished,
  assertParts,
  create,
  makeJpeg,
  makeTestUploads,
  offsetOf,
  patch,
  piece,
  type TusAnswer,
  uploadWithTus,
} from './test-support.ts'
import { openMax, partsMax } from './uploads.ts'

const uploads = await makeTestUploads()
const { db, time } = uploads
const server = await uploads.start()
const jpeg = await makeJpeg()

function assertProblem(answer: TusAnswer, status: number, code: string) {
  assert.deepEqual({ status: answer.status, code: answer.body.code }, { status, code }, JSON.stringify(answer.body))
  assert.equal(answer.headers.get('tus-resumable'), '1.0.0')
  assert.equal(answer.body.request_id, answer.headers.get('x-request-id'))
}

const show = (id: string) => ask(server, { method: 'GET', path: `/${id}` })
const partsOf = (id: string) => assertParts(uploads, id)

test('a file that comes in pieces becomes an image', async () => {
  const metadata = { filename: '../../holiday.jpg', filetype: 'text/html', visibility: 'public' }
  const { id, image } = await uploadWithTus(server, jpeg, { chunkSize: 20_000, metadata })
  assert.equal(image, `/v1/images/${id}`)
  await assertFinished(uploads, id, jpeg)
  const { rows } = await db.query(`select owner, name, visibility from images.images where id = $1`, [id])
  assert.deepEqual(rows, [{ owner: 'ann', name: 'holiday.jpg', visibility: 'public' }])
})

const ways = {
  'with its creation': { uploadDataDuringCreation: true },
  'in pieces that begin with its creation': { uploadDataDuringCreation: true, chunkSize: 30_000 },
  'by POST, where PATCH cannot be said': { overridePatchMethod: true, chunkSize: 30_000 },
  'with a length that is said last': { uploadLengthDeferred: true, chunkSize: 30_000 },
}
for (const [way, options] of Object.entries(ways)) {
  test(`a file may come ${way}`, async () => {
    const bytes = await makeJpeg()
    const { id, image } = await uploadWithTus(server, bytes, options)
    assert.equal(image, `/v1/images/${id}`)
    await assertFinished(uploads, id, bytes)
  })
}

test('fifty uploads at once become fifty images', async () => {
  const files = await Promise.all(Array.from({ length: 50 }, () => makeJpeg(120, 90)))
  const done = await Promise.all(files.map(bytes => uploadWithTus(server, bytes, { chunkSize: 8000 })))
  for (const [index, { id }] of done.entries()) await assertFinished(uploads, id, files[index]!)
})

test('where an upload stands is told before, meanwhile and after', async () => {
  const id = await create(server, jpeg.length)
  assert.equal(await offsetOf(server, id), 0)
  const first = await patch(server, id, 0, jpeg.subarray(0, 1000))
  assert.equal(first.status, 204)
  assert.equal(first.headers.get('upload-offset'), '1000')
  assert.ok(Date.parse(first.headers.get('upload-expires')!) > Date.now())
  assert.equal(await offsetOf(server, id), 1000)
  assert.equal((await show(id)).body.status, 'receiving')
  assert.equal((await partsOf(id)).length, 1)
  const last = await patch(server, id, 1000, jpeg.subarray(1000))
  assert.equal(last.headers.get('capstan-image'), `/v1/images/${id}`)
  const head = await ask(server, { method: 'HEAD', path: `/${id}` })
  assert.equal(head.status, 200)
  assert.equal(head.headers.get('upload-offset'), String(jpeg.length))
  assert.equal(head.headers.get('upload-length'), String(jpeg.length))
  assert.equal(head.headers.get('capstan-image'), `/v1/images/${id}`)
  await assertFinished(uploads, id, jpeg)
  const { expires_at: expiresAt, ...shown } = (await show(id)).body
  const bytes = jpeg.length
  assert.deepEqual(shown, { id, offset: bytes, length: bytes, status: 'finished', image_id: id, error: null })
  assert.ok(Date.parse(expiresAt) > Date.now())
})

test('what is spoken here may be asked by anybody', async () => {
  const { status, headers } = await ask(server, { method: 'OPTIONS', headers: { authorization: undefined } })
  assert.equal(status, 204)
  assert.equal(headers.get('tus-version'), '1.0.0')
  assert.equal(
    headers.get('tus-extension'),
    'creation,creation-with-upload,creation-defer-length,expiration,termination',
  )
  assert.equal(headers.get('tus-max-size'), String(64 * 1024 * 1024))
})

test('what stands against the protocol is refused and changes nothing', async () => {
  const id = await create(server, 1000)
  const at = { ...piece, 'upload-offset': '0' }
  const body = jpeg.subarray(0, 100)
  type Case = [what: string, given: Parameters<typeof ask>[1], status: number, code: string]
  const cases: Case[] = [
    [
      'no version',
      { method: 'PATCH', headers: { ...at, 'tus-resumable': undefined }, body },
      412,
      'tus_version_unsupported',
    ],
    [
      'another version',
      { method: 'PATCH', headers: { ...at, 'tus-resumable': '0.2' }, body },
      412,
      'tus_version_unsupported',
    ],
    [
      'another type',
      { method: 'PATCH', headers: { ...at, 'content-type': 'image/jpeg' }, body },
      415,
      'upload_body_type_wrong',
    ],
    ['no offset', { method: 'PATCH', headers: piece, body }, 400, 'upload_request_invalid'],
    [
      'a wrong offset',
      { method: 'PATCH', headers: { ...at, 'upload-offset': '10' }, body },
      409,
      'upload_offset_wrong',
    ],
    [
      'an odd offset',
      { method: 'PATCH', headers: { ...at, 'upload-offset': '0x0' }, body },
      400,
      'upload_request_invalid',
    ],
    [
      'a second length',
      { method: 'PATCH', headers: { ...at, 'upload-length': '5' }, body },
      400,
      'upload_request_invalid',
    ],
    ['too many bytes', { method: 'PATCH', headers: at, body: jpeg.subarray(0, 1001) }, 413, 'upload_length_exceeded'],
    [
      'too many bytes, not counted before',
      { method: 'PATCH', headers: at, body: Readable.from([jpeg.subarray(0, 600), jpeg.subarray(600, 1200)]) },
      413,
      'upload_length_exceeded',
    ],
    [
      'another method',
      { method: 'POST', headers: { ...at, 'x-http-method-override': 'PUT' }, body },
      400,
      'upload_request_invalid',
    ],
    ['no token', { method: 'PATCH', headers: { ...at, authorization: undefined }, body }, 401, 'unauthenticated'],
    ['a key without the scope', { method: 'PATCH', as: 'reader', headers: at, body }, 403, 'missing_scope'],
    ['another’s', { method: 'PATCH', as: 'bob', headers: at, body }, 404, 'upload_not_found'],
    ['another’s end', { method: 'DELETE', as: 'bob' }, 404, 'upload_not_found'],
    ['another’s state', { method: 'GET', as: 'bob' }, 404, 'upload_not_found'],
  ]
  for (const [what, given, status, code] of cases) {
    const answer = await ask(server, { path: `/${id}`, ...given })
    assert.deepEqual([what, answer.status, answer.body.code], [what, status, code])
    assert.equal(answer.headers.get('tus-resumable'), '1.0.0')
    if (status === 412) assert.equal(answer.headers.get('tus-version'), '1.0.0')
  }
  assert.equal((await ask(server, { method: 'HEAD', path: `/${id}`, as: 'bob' })).status, 404)
  assert.equal(await offsetOf(server, id), 0)
  assert.deepEqual(await partsOf(id), [])
  for (const path of ['/nothing', '/0192f0c4-0000-7000-8000-000000000000']) {
    assertProblem(await ask(server, { method: 'PATCH', path, headers: at, body }), 404, 'upload_not_found')
  }
})

test('what cannot be begun is refused', async () => {
  const encoded = (text: string) => Buffer.from(text).toString('base64')
  const cases: [headers: Record<string, string>, status: number, code: string][] = [
    [{ 'upload-length': String(64 * 1024 * 1024 + 1) }, 413, 'image_too_large'],
    [{}, 400, 'upload_request_invalid'],
    [{ 'upload-length': '-1' }, 400, 'upload_request_invalid'],
    [{ 'upload-length': '1', 'upload-defer-length': '1' }, 400, 'upload_request_invalid'],
    [{ 'upload-length': '1', 'upload-metadata': 'name !' }, 400, 'upload_request_invalid'],
    [{ 'upload-length': '1', 'upload-metadata': `visibility ${encoded('friends')}` }, 400, 'visibility_unknown'],
    [{ 'upload-length': '1', 'upload-concat': 'partial' }, 400, 'upload_request_invalid'],
  ]
  const { rows: before } = await db.query(`select count(*)::int as n from images.uploads`)
  for (const [headers, status, code] of cases)
    assertProblem(await ask(server, { method: 'POST', headers }), status, code)
  assert.deepEqual((await db.query(`select count(*)::int as n from images.uploads`)).rows, before)
})

test('a file that is no image is refused at its first piece, for good', async () => {
  const id = await create(server, 100_000)
  const first = await patch(server, id, 0, Buffer.alloc(50_000, 'html'))
  assert.ok(first.status >= 400 && first.status < 500, `${first.status}`)
  const { code, detail } = first.body
  assertProblem(await patch(server, id, 0, jpeg.subarray(0, 100)), first.status, code)
  assert.equal((await ask(server, { method: 'HEAD', path: `/${id}` })).status, first.status)
  const { body } = await show(id)
  assert.deepEqual([body.status, body.image_id, body.error], ['refused', null, { code, message: detail }])
  assert.deepEqual(await partsOf(id), [])
})

test('a file that ends before its header does is refused at its last piece', async () => {
  const id = await create(server, 30)
  assert.equal((await patch(server, id, 0, jpeg.subarray(0, 20))).status, 204)
  const last = await patch(server, id, 20, jpeg.subarray(20, 30))
  assert.ok(last.status >= 400 && last.status < 500, `${last.status}`)
  assert.equal((await show(id)).body.status, 'refused')
  assert.deepEqual(await partsOf(id), [])
  assert.deepEqual(await uploads.originals(id), [])
})

test('an upload that is given up leaves nothing', async () => {
  const id = await create(server, jpeg.length)
  await patch(server, id, 0, jpeg.subarray(0, 1000))
  assert.equal((await partsOf(id)).length, 1)
  assert.equal((await ask(server, { method: 'DELETE', path: `/${id}` })).status, 204)
  assertProblem(await show(id), 404, 'upload_not_found')
  assert.deepEqual(await partsOf(id), [])
})

test('an upload that took too long is gone, and so are its pieces after the sweep', async () => {
  const id = await create(server, jpeg.length)
  await patch(server, id, 0, jpeg.subarray(0, 1000))
  time.offsetMs = 25 * 3_600_000
  try {
    assertProblem(await patch(server, id, 1000, jpeg.subarray(1000)), 410, 'upload_expired')
    assertProblem(await show(id), 410, 'upload_expired')
    assert.equal((await ask(server, { method: 'HEAD', path: `/${id}` })).status, 410)
    assert.equal((await partsOf(id)).length, 1)
    assert.ok((await server.resumable.sweep(new Date(Date.now() + time.offsetMs))) >= 1)
    assertProblem(await show(id), 404, 'upload_not_found')
    assert.deepEqual(await partsOf(id), [])
  } finally {
    time.offsetMs = 0
  }
})

test('a sweep leaves what still has time, and knows which pieces are needed', async () => {
  const id = await create(server, jpeg.length)
  await patch(server, id, 0, jpeg.subarray(0, 1000))
  await server.resumable.sweep(new Date())
  const parts = await partsOf(id)
  assert.equal(parts.length, 1)
  assert.deepEqual(await server.resumable.knownParts([id, 'nothing', '']), new Set(parts))
})

test('a user has only so many uploads that are not finished', async () => {
  await db.query(
    `insert into images.uploads (id, owner, visibility, created_at, expires_at)
     select gen_random_uuid(), 'carl', 'private', now(), now() + interval '1 hour' from generate_series(1, $1::int)`,
    [openMax - 2],
  )
  const begin = () => ask(server, { method: 'POST', as: 'carl', headers: { 'upload-length': '1' } })
  const statuses = (await Promise.all(Array.from({ length: 6 }, begin))).map(answer => answer.status)
  assert.deepEqual(statuses.sort(), [201, 201, 429, 429, 429, 429])
  assertProblem(await begin(), 429, 'too_many_uploads_open')
  await create(server, 1, 'dora')
})

test('what a user has begun counts with the length it states, until it ends', async () => {
  const settings = { IMAGE_BYTES_PER_USER: 10_000 }
  const bounded = await uploads.start({ settings })
  const begin = (length: number) =>
    ask(bounded, { method: 'POST', as: 'eve', headers: { 'upload-length': String(length) } })
  const statuses = (await Promise.all(Array.from({ length: 8 }, () => begin(3000)))).map(answer => answer.status)
  assert.deepEqual(statuses.toSorted(), [201, 201, 201, 403, 403, 403, 403, 403])
  assertProblem(await begin(1001), 403, 'image_quota_exceeded')
  const last = await begin(1000)
  assert.equal(last.status, 201)
  const path = `/${last.headers.get('location')!.split('/').at(-1)}`
  assert.equal((await ask(bounded, { method: 'DELETE', as: 'eve', path })).status, 204)
  // What is an image already counts, too.
  await db.query(`insert into images.usage (owner, bytes) values ('eve', 500)`)
  assertProblem(await begin(501), 403, 'image_quota_exceeded')
  assert.equal((await begin(500)).status, 201)
  // Nobody else's do, nor those whose time is over.
  await create(bounded, 10_000, 'fay')
  time.offsetMs = 25 * 3_600_000
  try {
    assert.equal((await begin(9500)).status, 201)
  } finally {
    time.offsetMs = 0
  }
})

test('a length that is said later counts from then on; until then what came does', async () => {
  const bounded = await uploads.start({ settings: { IMAGE_BYTES_PER_USER: 10_000 } })
  const as = 'gil'
  const open = (headers: Record<string, string>) => ask(bounded, { method: 'POST', as, headers })
  const begun = await open({ 'upload-defer-length': '1' })
  const path = `/${begun.headers.get('location')!.split('/').at(-1)}`
  const send = (at: number, bytes: number, more = {}) =>
    ask(bounded, {
      method: 'PATCH',
      as,
      path,
      headers: { ...piece, 'upload-offset': String(at), ...more },
      body: jpeg.subarray(at, at + bytes),
    })
  assert.equal((await send(0, 2000)).status, 204)
  assertProblem(await open({ 'upload-length': '8001' }), 403, 'image_quota_exceeded')
  assert.equal((await open({ 'upload-length': '5000' })).status, 201)
  assertProblem(await send(2000, 100, { 'upload-length': '5001' }), 403, 'image_quota_exceeded')
  assert.equal((await send(2000, 100, { 'upload-length': '5000' })).status, 204)
  assertProblem(await open({ 'upload-length': '1' }), 403, 'image_quota_exceeded')
})

test('a whole upload for which there is no room any more is finished when there is some', async () => {
  const bytes = await makeJpeg()
  const bounded = await uploads.start({ settings: { IMAGE_BYTES_PER_USER: bytes.length } })
  const id = await create(bounded, bytes.length, 'hal')
  await db.query(`insert into images.usage (owner, bytes) values ('hal', 1)`)
  const headers = { ...piece, 'upload-offset': '0' }
  assertProblem(
    await ask(bounded, { method: 'PATCH', as: 'hal', path: `/${id}`, headers, body: bytes }),
    403,
    'image_quota_exceeded',
  )
  const head = () => ask(bounded, { method: 'HEAD', as: 'hal', path: `/${id}` })
  assert.equal((await head()).status, 403)
  assert.deepEqual(await uploads.originals(id), [])
  await db.query(`update images.usage set bytes = 0 where owner = 'hal'`)
  assert.equal((await head()).headers.get('capstan-image'), `/v1/images/${id}`)
  await assertFinished(uploads, id, bytes)
})

test('an upload comes in only so many pieces', async () => {
  const id = await create(server, jpeg.length)
  await db.query(`update images.uploads set parts = $2 where id = $1`, [id, partsMax])
  assertProblem(await patch(server, id, 0, jpeg.subarray(0, 1)), 413, 'upload_in_too_many_parts')
})
