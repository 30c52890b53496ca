/** Uploads whose connections break, that change their process, or that several requests send at once. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { PassThrough } from 'node:stream'
import { test } from 'node:test'
import type { BlobStore } from '#platform/blobs/types.ts'
import { errors as platformErrors } from '#platform/errors.ts'
import { atEnd } from '../../../../test/support/at-end.ts'
import { until } from '../../../../test/support/until.ts'
import type { ImagesSettings } from '../settings.ts'
import {
  ask,
  assertFinished,
  assertParts,
  create,
  halfPatch,
  makeJpeg,
  makeTestUploads,
  offsetOf,
  patch,
  piece,
  type TestProcess,
  uploadWithTus,
} from './test-support.ts'

const uploads = await makeTestUploads()
const server = await uploads.start()
const jpeg = await makeJpeg()
const half = 5000

/** Puts wait until the gate is opened. */
function gatePuts() {
  const gate = Promise.withResolvers<void>()
  let waiting = 0
  const blobs = (store: BlobStore): BlobStore => ({
    ...store,
    async put(key, source, options) {
      waiting++
      await gate.promise
      return store.put(key, source, options)
    },
  })
  return { blobs, open: gate.resolve, begun: (count: number) => until(() => waiting === count) }
}

/** Nobody is ended for being slow. */
const patient = { IMAGE_IDLE_MS: 59_000, IMAGE_UPLOAD_MS: 59_000 }

/** A process that tells when it has begun to keep a piece. */
async function startWatched(settings: Partial<ImagesSettings> = {}) {
  const gate = gatePuts()
  gate.open()
  return { ...(await uploads.start({ settings: { ...patient, ...settings }, blobs: gate.blobs })), begun: gate.begun }
}

/** Breaks each of the first connections after so many bytes from the client. */
async function startBreaking(target: string, given: { times: number; afterBytes: number }) {
  const seen = { broken: 0, bytes: 0 }
  const proxy = createServer(client => {
    const upstream = connect(Number(new URL(target).port), '127.0.0.1')
    const breaks = seen.broken < given.times
    let bytes = 0
    client.on('error', () => {}).on('close', () => upstream.destroy())
    upstream.on('error', () => {}).on('close', () => client.destroy())
    upstream.pipe(client)
    client.on('data', chunk => {
      bytes += chunk.length
      seen.bytes += chunk.length
      upstream.write(chunk)
      if (!breaks || bytes < given.afterBytes) return
      seen.broken++
      client.pause()
      // What was passed on has arrived by then.
      upstream.end(() => client.destroy())
    })
  })
  proxy.listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  atEnd(() => proxy.close())
  return { url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`, seen }
}

test('a file arrives over a connection that breaks again and again, and no more of it is sent twice than was under way', async () => {
  const large = await makeJpeg(1600, 1200)
  assert.ok(large.length > 1_000_000)
  const breaking = await startBreaking(server.url, { times: 4, afterBytes: 200_000 })
  const { id, image } = await uploadWithTus({ ...server, url: breaking.url }, large, {
    retryDelays: Array(20).fill(20),
  })
  assert.equal(image, `/v1/images/${id}`)
  await assertFinished(uploads, id, large)
  assert.ok(breaking.seen.broken >= 4, `broken ${breaking.seen.broken} times`)
  assert.ok(breaking.seen.bytes < large.length * 1.5, `${breaking.seen.bytes} bytes for ${large.length}`)
})

/** Where the upload stands when its last request is over. */
async function settledOffset(process: TestProcess, id: string): Promise<number> {
  await until(async () => (await offsetOf(process, id)) > 0)
  return offsetOf(process, id)
}

test('what came before the connection broke is kept, and another process goes on from there', async () => {
  const first = await startWatched()
  const id = await create(first, jpeg.length)
  const { socket } = await halfPatch(first, { id, at: 0, length: jpeg.length, bytes: jpeg.subarray(0, half) })
  await first.begun(1)
  socket.destroy()
  assert.equal(await settledOffset(server, id), half)
  const { image } = await uploadWithTus(server, jpeg, { uploadUrl: `${server.url}/v1/uploads/${id}` })
  assert.equal(image, `/v1/images/${id}`)
  await assertFinished(uploads, id, jpeg)
})

test('who comes back need not wait for the own dead connection', async () => {
  const process = await startWatched()
  const id = await create(process, jpeg.length)
  const dead = await halfPatch(process, { id, at: 0, length: jpeg.length, bytes: jpeg.subarray(0, half) })
  await process.begun(1)
  assert.equal(await offsetOf(process, id), half)
  const answer = await dead.answer
  assert.deepEqual([answer.statusCode, answer.headers['upload-offset']], [204, String(half)])
  dead.socket.destroy()
  assert.equal((await patch(process, id, half, jpeg.subarray(half))).status, 204)
  await assertFinished(uploads, id, jpeg)
})

test('nobody else’s request ends one that is under way', async () => {
  const process = await startWatched()
  const id = await create(process, jpeg.length)
  const own = await halfPatch(process, { id, at: 0, length: jpeg.length, bytes: jpeg.subarray(0, half) })
  await process.begun(1)
  for (const method of ['HEAD', 'DELETE', 'PATCH']) {
    const headers = { ...piece, 'upload-offset': '0' }
    assert.equal((await ask(process, { method, path: `/${id}`, as: 'bob', headers })).status, 404)
  }
  own.request.end(jpeg.subarray(half))
  const answer = await own.answer
  assert.deepEqual([answer.statusCode, answer.headers['upload-offset']], [204, String(jpeg.length)])
  await assertFinished(uploads, id, jpeg)
})

test('of two processes that are sent the same piece at once, one keeps it', async () => {
  const gate = gatePuts()
  const both = [await uploads.start({ blobs: gate.blobs }), await uploads.start({ blobs: gate.blobs })]
  const id = await create(server, jpeg.length)
  const answers = both.map(process => patch(process, id, 0, jpeg.subarray(0, half)))
  await gate.begun(2)
  gate.open()
  const statuses = (await Promise.all(answers)).map(({ status, body }) => [status, body.code])
  assert.deepEqual(statuses.sort(), [
    [204, undefined],
    [409, 'upload_offset_wrong'],
  ])
  assert.equal((await assertParts(uploads, id)).length, 1)
  assert.equal(await offsetOf(server, id), half)
})

test('requests at once to one process take turns, and none is lost', async () => {
  const id = await create(server, jpeg.length)
  const answers = await Promise.all(Array.from({ length: 10 }, () => patch(server, id, 0, jpeg)))
  const statuses = answers.map(answer => answer.status).sort()
  assert.equal(statuses[0], 204)
  // Who is asked to let go in the middle has its beginning kept; the others come too late.
  for (const { status, body } of answers) assert.ok([204, 409, 423].includes(status), JSON.stringify(body))
  const at = await offsetOf(server, id)
  if (at < jpeg.length) assert.equal((await patch(server, id, at, jpeg.subarray(at))).status, 204)
  await assertFinished(uploads, id, jpeg)
})

test('a piece that a length said meanwhile leaves no room for is not kept', async () => {
  const gate = gatePuts()
  const slow = await uploads.start({ blobs: gate.blobs })
  const { headers } = await ask(server, { method: 'POST', headers: { 'upload-defer-length': '1' } })
  const id = headers.get('location')!.split('/').at(-1)!
  const piecePut = patch(slow, id, 0, jpeg.subarray(0, half))
  await gate.begun(1)
  const said = { ...piece, 'upload-offset': '0', 'upload-length': '100' }
  assert.equal((await ask(server, { method: 'PATCH', path: `/${id}`, headers: said })).status, 204)
  gate.open()
  assert.equal((await piecePut).body.code, 'upload_offset_wrong')
  assert.deepEqual(await assertParts(uploads, id), [])
  assert.equal(await offsetOf(server, id), 0)
})

test('bytes that are no image end no upload that has gone on without them', async () => {
  const first = await startWatched()
  const id = await create(first, jpeg.length)
  const wrong = await halfPatch(first, { id, at: 0, length: 1000, bytes: jpeg.subarray(0, 3) })
  await first.begun(1)
  assert.equal((await patch(server, id, 0, jpeg.subarray(0, half))).status, 204)
  wrong.request.end(Buffer.alloc(997, 'x'))
  assert.equal((await wrong.answer).statusCode, 422)
  assert.equal((await assertParts(uploads, id)).length, 1)
  assert.equal((await patch(server, id, half, jpeg.subarray(half))).status, 204)
  await assertFinished(uploads, id, jpeg)
})

const patience = [
  ['sends nothing for too long', { IMAGE_IDLE_MS: 200 }, 0],
  ['takes too long', { IMAGE_UPLOAD_MS: 400 }, 50],
] as const
for (const [what, settings, everyMs] of patience) {
  test(`a request that ${what} is ended, and what came is kept`, async () => {
    const process = await startWatched(settings)
    const id = await create(process, jpeg.length)
    const { request, answer } = await halfPatch(process, {
      id,
      at: 0,
      length: jpeg.length,
      bytes: jpeg.subarray(0, half),
    })
    let sent = half
    request.on('error', () => {})
    const drip = everyMs > 0 ? setInterval(() => request.write(jpeg.subarray(sent, ++sent)), everyMs) : undefined
    const { statusCode, headers } = await answer
    clearInterval(drip)
    request.destroy()
    const at = Number(headers['upload-offset'])
    assert.equal(statusCode, 204)
    assert.ok(at >= half && at <= sent, `${at}`)
    assert.equal(await offsetOf(process, id), at)
    assert.equal((await patch(process, id, at, jpeg.subarray(at))).status, 204)
    await assertFinished(uploads, id, jpeg)
  })
}

test('a process that stops keeps what came and takes no more', async () => {
  const process = await startWatched()
  const id = await create(process, jpeg.length)
  const { answer, socket } = await halfPatch(process, { id, at: 0, length: jpeg.length, bytes: jpeg.subarray(0, half) })
  await process.begun(1)
  const stopped = process.resumable.stop()
  const { statusCode, headers } = await answer
  assert.deepEqual([statusCode, headers['upload-offset']], [204, String(half)])
  socket.destroy()
  await stopped
  assert.equal((await patch(process, id, half, jpeg.subarray(half))).status, 503)
  assert.equal((await patch(server, id, half, jpeg.subarray(half))).status, 204)
  await assertFinished(uploads, id, jpeg)
})

test('where no more bodies are taken, the next is told to come later', async () => {
  const process = await startWatched({ IMAGE_UPLOADS_MAX: 1 })
  const [id, other] = [await create(process, jpeg.length), await create(process, jpeg.length)]
  const first = await halfPatch(process, { id, at: 0, length: jpeg.length, bytes: jpeg.subarray(0, half) })
  await process.begun(1)
  const late = await patch(process, other, 0, jpeg)
  assert.deepEqual([late.status, late.body.code], [503, 'uploads_full'])
  first.request.end(jpeg.subarray(half))
  assert.equal((await first.answer).statusCode, 204)
  assert.equal((await patch(process, other, 0, jpeg)).status, 204)
})

test('a store that is full keeps nothing of a piece, and takes it when it has room', async () => {
  let full = true
  const process = await uploads.start({
    blobs: store => ({
      ...store,
      async put(key, source, options) {
        if (!full) return store.put(key, source, options)
        // As a disk that fills up: some of it is read before it fails.
        for await (const _ of source) throw platformErrors.blobStoreUnavailable('the store is full')
        return { bytes: 0 }
      },
    }),
  })
  const id = await create(process, jpeg.length)
  const failed = await patch(process, id, 0, jpeg)
  assert.deepEqual([failed.status, failed.body.code], [503, 'blob_store_unavailable'])
  assert.equal(await offsetOf(process, id), 0)
  assert.deepEqual(await assertParts(uploads, id), [])
  full = false
  assert.equal((await patch(process, id, 0, jpeg)).status, 204)
  await assertFinished(uploads, id, jpeg)
})

test('who is gone before the first byte leaves nothing', async () => {
  const { port } = new URL(server.url)
  const id = await create(server, jpeg.length)
  const sockets: Socket[] = []
  for (let n = 0; n < 20; n++) {
    const socket = connect(Number(port), '127.0.0.1').on('error', () => {})
    sockets.push(socket)
    await once(socket, 'connect')
    socket.write(
      `PATCH /v1/uploads/${id} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer ann\r\ntus-resumable: 1.0.0\r\nupload-offset: 0\r\ncontent-type: application/offset+octet-stream\r\ncontent-length: ${jpeg.length}\r\n\r\n`,
      () => socket.destroy(),
    )
  }
  await Promise.all(sockets.map(socket => socket.closed || once(socket, 'close')))
  const body = new PassThrough()
  body.end(jpeg)
  assert.equal((await patch(server, id, 0, body)).status, 204)
  await assertFinished(uploads, id, jpeg)
})
