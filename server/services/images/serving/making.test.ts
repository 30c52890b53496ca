/** Transforms made on the fly: once, kept where there is room, and without harm when something goes wrong. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { test } from 'node:test'
import { promisify } from 'node:util'
import sharp from 'sharp'
import { readSettings } from '#platform/config.ts'
import { errors as platformErrors } from '#platform/errors.ts'
import { atEnd } from '../../../../test/support/at-end.ts'
import { until } from '../../../../test/support/until.ts'
import { filePrefix, originalKey, transformKey, variantKey } from '../keys.ts'
import { PictureBroken } from '../processing/types.ts'
import { imagesSettings } from '../settings.ts'
import { insertTransforms } from '../store.ts'
import { lockFiles } from './store.ts'
import { type Added, forget, makeImageServer } from './test-support.ts'

const keptMax = 5
const server = await makeImageServer({
  IMAGE_PRESETS: 'small:width=64,format=webp',
  IMAGE_TRANSFORMS_MAX: String(keptMax),
})
await server.app.listen({ port: 0, host: '127.0.0.1' })

const at = ({ id }: { id: string }, word: string) => `/v1/images/${id}/${word}`

async function get(image: Added, word: string) {
  const answer = await server.get('ann', at(image, word))
  const code = answer.statusCode < 400 ? '' : ` ${answer.json().code}`
  return { ...answer, shown: `${answer.statusCode}${code}`, bytes: answer.rawPayload, headers: answer.headers }
}

/** Waits until nothing is under way; `count` transforms of it are kept then. */
async function settled(image: Added, count: number) {
  await until(() => server.serving.making === 0)
  assert.equal((await server.keptOf(image.fileId)).length, count)
  assert.deepEqual(await server.unfinished(), [])
}

/** Holds all work until it is let go. */
function hold() {
  const { promise, resolve } = Promise.withResolvers<void>()
  server.hooks.beforeWork = () => promise
  const release = () => {
    server.hooks.beforeWork = undefined
    resolve()
  }
  // A test that fails would else keep the server from stopping.
  atEnd(release)
  return release
}

test('requests for one transform at the same time are one making; those that come later none', async () => {
  const image = await server.add()
  const before = server.works.length
  const release = hold()
  const asked = ['width=21,format=webp', 'format=webp,width=21', 'width=21,format=webp'].map(word => get(image, word))
  await until(() => server.works.length > before)
  release()
  const answers = await Promise.all(asked)
  await settled(image, 1)
  answers.push(await get(image, 'width=21,format=webp'))
  assert.deepEqual(new Set(answers.map(answer => answer.shown)), new Set(['200']))
  assert.equal(new Set(answers.map(answer => answer.bytes.toString('base64'))).size, 1)
  assert.equal(new Set(answers.map(answer => answer.headers.etag)).size, 1)
  assert.equal(server.works.length, before + 1)
  assert.ok(server.works.at(-1)!.urgent)
})

test('what is kept counts against its owner', async () => {
  const image = await server.add({ owner: 'bob' })
  await server.db.query(`delete from images.usage where owner = 'bob'`)
  const { rawPayload } = await server.get('bob', at(image, 'width=22'))
  await settled(image, 1)
  const { rows } = await server.db.query(`select bytes from images.usage where owner = 'bob'`)
  assert.deepEqual(rows, [{ bytes: rawPayload.length }])
})

test('an image deleted while a transform of it is made leaves no blob', async () => {
  const image = await server.add()
  const before = server.works.length
  const release = hold()
  const asked = get(image, 'width=23')
  await until(() => server.works.length > before)
  await server.db.query(`delete from images.images where id = $1`, [image.id])
  await server.db.query(`delete from images.files where id = $1`, [image.fileId])
  release()
  assert.equal((await asked).shown, '200')
  await settled(image, 0)
  assert.deepEqual(await server.blobsOf(image.fileId), ['original'])
  assert.equal((await get(image, 'width=23')).shown, '404 image_not_found')
})

test('an image deleted before its original is read is not there', async () => {
  const image = await server.add()
  server.faults.withFile = async (key, use) => {
    await forget(server, image)
    return server.blobs.withFile(key, use)
  }
  try {
    assert.equal((await get(image, 'width=23')).shown, '404 image_not_found')
  } finally {
    server.faults.withFile = undefined
  }
})

test('an image deleted while a transform of it is put into the store leaves no blob', async () => {
  const image = await server.add()
  server.faults.put = async (key, body, options) => {
    await forget(server, image)
    return server.blobs.put(key, body, options)
  }
  try {
    assert.equal((await get(image, 'width=24')).shown, '200')
    await settled(image, 0)
    assert.deepEqual(await server.blobsOf(image.fileId), [])
  } finally {
    server.faults.put = undefined
  }
})

test('more transforms of an image than are kept are made each time', async () => {
  const image = await server.add()
  for (let width = 1; width <= keptMax + 3; width++) {
    assert.equal((await get(image, `width=${width}`)).shown, '200')
    await settled(image, Math.min(width, keptMax))
  }
  const before = server.works.length
  assert.equal((await get(image, 'width=1')).shown, '200')
  assert.equal(server.works.length, before, 'the first is kept')
  assert.equal((await get(image, `width=${keptMax + 1}`)).shown, '200')
  assert.equal(server.works.length, before + 1, 'the last is not')
  await settled(image, keptMax)
  assert.equal((await server.blobsOf(image.fileId)).length, keptMax + 1)
})

test('transforms at once never pass the bound, and leave nothing that nobody knows', async () => {
  const image = await server.add()
  const widths = Array.from({ length: 40 }, (_, n) => n + 1)
  const answers = await Promise.all(widths.map(width => get(image, `width=${width}`)))
  assert.deepEqual(new Set(answers.map(answer => answer.shown)), new Set(['200']))
  await until(() => server.serving.making === 0)
  const kept = await server.keptOf(image.fileId)
  assert.ok(kept.length >= 1 && kept.length <= keptMax, String(kept.length))
  const known = ['original', ...kept.map(name => `transform-${name}`)]
  assert.deepEqual((await server.blobsOf(image.fileId)).sort(), known.sort())
})

test('what is kept and has lost its blob gets it back, however many are kept', async () => {
  const image = await server.add()
  for (let width = 1; width <= keptMax; width++) await get(image, `width=${width}`)
  await settled(image, keptMax)
  const [name] = await server.keptOf(image.fileId)
  await server.blobs.delete([transformKey(image.fileId, name!)])
  for (let width = 1; width <= keptMax; width++) await get(image, `width=${width}`)
  await settled(image, keptMax)
  assert.ok(await server.blobs.find(transformKey(image.fileId, name!)))
})

test('nothing is kept for a user who has no room left', async () => {
  const image = await server.add({ owner: 'cid' })
  const max = readSettings(imagesSettings, {}).IMAGE_BYTES_PER_USER
  await server.db.query(
    `insert into images.usage (owner, bytes) values ('cid', $1) on conflict (owner) do update set bytes = $1`,
    [max - 10],
  )
  assert.equal((await server.get('root', at(image, 'width=20'))).statusCode, 200)
  await settled(image, 0)
  await server.db.query(`update images.usage set bytes = 0 where owner = 'cid'`)
  assert.equal((await server.get('root', at(image, 'width=20'))).statusCode, 200)
  await settled(image, 1)
})

test('what is not kept is answered whole, however large', async () => {
  const other = await makeImageServer({ IMAGE_TRANSFORMS_MAX: '0' })
  const image = await other.add({ width: 900, height: 700 })
  const path = at(image, 'width=900,format=png')
  const answers = await Promise.all([other.get('ann', path), other.get('ann', path), other.head('ann', path)])
  for (const { statusCode, headers, rawPayload } of answers.slice(0, 2)) {
    assert.equal(statusCode, 200)
    assert.ok(rawPayload.length > 1024 * 1024, String(rawPayload.length))
    assert.equal(headers['content-length'], String(rawPayload.length))
  }
  assert.equal(answers[2]!.headers['content-length'], answers[0]!.headers['content-length'])
  assert.equal(other.works.length, 1)
  await until(async () => other.serving.making === 0 && (await other.openFiles()).length === 0)
  assert.deepEqual(await other.unfinished(), [])
})

test('what another version made is not served, and goes when there is no room', async () => {
  const image = await server.add()
  const stale = Array.from({ length: keptMax }, (_, n) => `0ld0ld0l-${n}.webp`)
  for (const name of stale) {
    await server.blobs.put(transformKey(image.fileId, name), Buffer.from('old'))
    await server.db.query(`insert into images.transforms (file_id, name, bytes) values ($1, $2, 3)`, [
      image.fileId,
      name,
    ])
  }
  const { bytes } = await get(image, 'width=25')
  await settled(image, 1)
  const [name] = await server.keptOf(image.fileId)
  assert.deepEqual((await server.blobsOf(image.fileId)).sort(), ['original', `transform-${name}`])
  assert.deepEqual((await get(image, 'width=25')).bytes, bytes)
})

test('a kept transform or a variant whose blob is lost or cut short is made again', async () => {
  const image = await server.add({ variants: [{ name: 'small', width: 64 }] })
  const first = await get(image, 'width=26')
  await settled(image, 1)
  const [name] = await server.keptOf(image.fileId)
  const variant = await get(image, 'small')
  const damages: (() => Promise<unknown>)[] = [
    () =>
      server.blobs.delete([
        transformKey(image.fileId, name!),
        variantKey(image.fileId, { name: 'small', format: 'webp' }),
      ]),
    () => server.blobs.put(transformKey(image.fileId, name!), Buffer.from('cut')),
  ]
  for (const damage of damages) {
    await damage()
    const before = server.works.length
    const head = await server.head('ann', at(image, 'width=26'))
    assert.equal(head.headers['content-length'], String(first.bytes.length))
    assert.equal(server.works.length, before + 1, 'made for HEAD too')
    await settled(image, 1)
    const again = await get(image, 'width=26')
    assert.deepEqual(again.bytes, first.bytes)
    assert.equal(again.headers.etag, first.headers.etag)
    assert.equal(server.works.length, before + 1, 'once')
  }
  for (const [headers, wanted] of [
    [{}, first.bytes],
    [{ range: 'bytes=2-9' }, first.bytes.subarray(2, 10)],
  ] as const) {
    await server.blobs.put(transformKey(image.fileId, name!), Buffer.from('cut'))
    assert.deepEqual((await server.get('ann', at(image, 'width=26'), headers)).rawPayload, wanted)
    await settled(image, 1)
  }
  await until(async () => (await server.openFiles()).length === 0)
  const remade = await get(image, 'small')
  assert.equal(remade.shown, '200')
  assert.equal((await sharp(remade.bytes).metadata()).width, 64)
  // It may be other bytes than the worker's.
  assert.notEqual(remade.headers.etag, variant.headers.etag)
  const range = { range: 'bytes=0-0', 'if-range': String(variant.headers.etag) }
  assert.equal((await server.get('ann', at(image, 'small'), range)).statusCode, 200)
})

/** Lets nothing but this one wait, so that something is being made all the time. */
function holdWidth(width: number) {
  const { promise, resolve } = Promise.withResolvers<void>()
  server.hooks.beforeWork = work => (work.outputs[0]!.transform.width === width ? promise : Promise.resolve())
  const release = () => {
    server.hooks.beforeWork = undefined
    resolve()
  }
  atEnd(release)
  return release
}

test('what is made while more is being made is kept all the same, after a moment', async () => {
  const image = await server.add()
  const before = server.works.length
  const release = holdWidth(30)
  const held = get(image, 'width=30')
  await until(() => server.works.length > before)
  assert.equal((await get(image, 'width=31')).shown, '200')
  assert.deepEqual(await server.keptOf(image.fileId), [])
  assert.equal((await get(image, 'width=31')).shown, '200')
  assert.equal(server.works.length, before + 2, 'it is answered from memory meanwhile')
  await until(async () => (await server.keptOf(image.fileId)).length === 1)
  release()
  assert.equal((await held).shown, '200')
  await settled(image, 2)
})

test('of what is kept together, each has its own room and its own trouble', async () => {
  const [fine, other, full, gone] = [
    await server.add(),
    await server.add(),
    await server.add({ owner: 'dan' }),
    await server.add(),
  ]
  const max = readSettings(imagesSettings, {}).IMAGE_BYTES_PER_USER
  await server.db.query(`insert into images.usage (owner, bytes) values ('dan', $1)`, [max - 10])
  await server.db.query(`delete from images.usage where owner = 'ann'`)
  server.faults.put = async (key, body, options) => {
    if (key.startsWith(filePrefix(other.fileId))) throw new Error('no room for this one')
    return server.blobs.put(key, body, options)
  }
  const before = server.works.length
  const release = holdWidth(30)
  const held = get(fine, 'width=30')
  await until(() => server.works.length > before)
  const widths = Array.from({ length: keptMax + 1 }, (_, n) => n + 1)
  const answers = await Promise.all([
    ...widths.map(width => get(fine, `width=${width}`)),
    get(other, 'width=1'),
    server.get('root', at(full, 'width=1')).then(answer => ({ shown: String(answer.statusCode) })),
    get(gone, 'width=1'),
  ])
  assert.deepEqual(new Set(answers.map(answer => answer.shown)), new Set(['200']))
  await forget(server, gone)
  release()
  assert.equal((await held).shown, '200')
  await settled(fine, keptMax)
  server.faults.put = undefined
  assert.deepEqual((await server.blobsOf(fine.fileId)).length, keptMax + 1)
  for (const each of [other, full]) assert.deepEqual(await server.blobsOf(each.fileId), ['original'])
  assert.deepEqual(await server.blobsOf(gone.fileId), [])
  const { rows } = await server.db.query(
    `select (select bytes from images.usage where owner = 'ann') as told, sum(bytes)::bigint as kept
     from images.transforms where file_id = $1`,
    [fine.fileId],
  )
  assert.deepEqual(rows[0]!.told, rows[0]!.kept)
})

test('the bound holds whoever keeps at the same time', async () => {
  const { fileId } = await server.add()
  const insert = (word: string) =>
    server.db.tx(tx => {
      lockFiles(tx, [fileId])
      const transforms = Array.from({ length: keptMax - 1 }, (_, n) => ({
        fileId,
        name: `${word}-${n}.webp`,
        bytes: 1,
      }))
      return insertTransforms(tx, { transforms, max: keptMax })
    })
  const inserted = await Promise.all(['one', 'other', 'one'].map(insert))
  assert.equal(inserted.flat().length, keptMax)
  assert.equal((await server.keptOf(fileId)).length, keptMax)
})

test('a store that is away is 503; one that takes nothing costs nobody an answer', async () => {
  const image = await server.add({ variants: [{ name: 'small', width: 64 }] })
  const away = async () => {
    throw platformErrors.unavailable('The blob store is away.')
  }
  server.faults.get = server.faults.withFile = server.faults.find = away
  for (const word of ['original', 'small', 'width=27']) {
    const answer = await get(image, word)
    assert.equal(answer.shown, '503 unavailable', word)
    assert.ok(answer.headers['retry-after'])
    assert.equal(answer.headers['cache-control'], 'no-store')
  }
  server.faults.get = server.faults.withFile = server.faults.find = undefined
  server.faults.put = away
  assert.equal((await get(image, 'width=27')).shown, '200')
  await settled(image, 0)
  assert.ok(server.complaints.some(line => line.includes('could not be kept')))
  server.faults.put = undefined
  assert.equal((await get(image, 'width=27')).shown, '200')
  await settled(image, 1)
})

test('a file that cannot be decoded is said to be broken; a maker that is away is not the file’s fault', async () => {
  const image = await server.add()
  await server.blobs.put(originalKey(image.fileId), image.original.subarray(0, 100))
  const broken = await get(image, 'width=28')
  assert.equal(broken.shown, '422 transform_failed')
  await server.blobs.put(originalKey(image.fileId), image.original)
  server.hooks.beforeWork = async () => {
    throw new PictureBroken('It took longer than 20000 ms.')
  }
  assert.match((await get(image, 'width=28')).bytes.toString(), /cannot be made: It took longer than 20000 ms\./)
  server.hooks.beforeWork = async () => {
    throw new Error('no space left on a secret device')
  }
  const away = await get(image, 'width=28')
  assert.equal(away.shown, '503 image_makers_away')
  assert.doesNotMatch(away.bytes.toString(), /secret/)
  server.hooks.beforeWork = undefined
  assert.equal((await get(image, 'width=28')).shown, '200', 'a failure is not remembered')
  await settled(image, 1)
})

function askAndLeave(path: string) {
  const { port } = server.app.server.address() as { port: number }
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(`GET ${path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ann\r\n\r\n`)
  return socket
}

/** Until the server knows. */
async function goAway(socket: Socket) {
  const { server: listener } = server.app
  const connections = () => promisify(listener.getConnections.bind(listener))()
  const before = await connections()
  socket.destroy()
  await until(async () => (await connections()) < before)
}

test('a making is aborted when the last who waits for it has gone, and not before', async () => {
  const image = await server.add()
  const release = hold()
  const before = server.works.length
  const [one, other] = [askAndLeave(at(image, 'width=29')), askAndLeave(at(image, 'width=29'))]
  await until(() => server.works.length > before)
  const { signal } = server.works.at(-1)!
  const third = get(image, 'width=30')
  await until(() => server.works.length === before + 2)
  // Both have come when a later one has.
  await goAway(one)
  assert.equal(signal!.aborted, false)
  await goAway(other)
  await until(() => signal!.aborted)
  const complaints = server.complaints.length
  // Whoever comes now begins another.
  const fourth = get(image, 'width=29')
  await until(() => server.works.length === before + 3)
  release()
  assert.deepEqual([(await third).shown, (await fourth).shown], ['200', '200'])
  await settled(image, 2)
  assert.deepEqual(server.complaints.slice(complaints), [], 'it is nobody’s fault')
})

test('a client that goes away while it is sent something stops the reading', async () => {
  const image = await server.add({ width: 2000, height: 1500, format: 'png' })
  assert.ok(image.original.length > 4_000_000)
  const gone = Promise.withResolvers<void>()
  server.faults.get = async (key, range) => {
    const blob = await server.blobs.get(key, range)
    blob!.stream.once('close', () => gone.resolve())
    return blob
  }
  try {
    const socket = askAndLeave(at(image, 'original'))
    await once(socket, 'readable')
    socket.destroy()
    await gone.promise
  } finally {
    server.faults.get = undefined
  }
})

test('a client that has gone when the bytes are found leaves nothing open', async () => {
  const image = await server.add()
  const found = Promise.withResolvers<void>()
  const gone = Promise.withResolvers<void>()
  server.faults.get = async key => {
    const blob = await server.blobs.get(key)
    found.resolve()
    await gone.promise
    return blob
  }
  try {
    const socket = askAndLeave(at(image, 'original'))
    await found.promise
    await goAway(socket)
    assert.equal((await server.openFiles()).length, 1)
    gone.resolve()
    await until(async () => (await server.openFiles()).length === 0)
  } finally {
    server.faults.get = undefined
  }
})

test('a client that goes away in the middle of something large and just made leaves nothing open', async () => {
  const image = await server.add({ width: 2000, height: 1500 })
  const socket = askAndLeave(at(image, 'width=2000,format=png'))
  await once(socket, 'readable')
  socket.destroy()
  await settled(image, 1)
  await until(async () => (await server.openFiles()).length === 0)
  assert.ok(!server.complaints.some(line => line.includes('was not removed')))
})

test('too many makings at once are refused, and the next is not', async () => {
  const image = await server.add()
  const release = hold()
  const asked = Array.from({ length: 256 }, (_, n) => get(image, `width=${n + 1}`))
  await until(() => server.serving.making === 256)
  const refused = await get(image, 'width=300')
  assert.equal(refused.shown, '503 image_makers_full')
  assert.equal(refused.headers['retry-after'], '1')
  // Nobody is refused what is being made already.
  asked.push(get(image, 'width=1'))
  release()
  assert.deepEqual(new Set((await Promise.all(asked)).map(answer => answer.shown)), new Set(['200']))
  assert.equal((await get(image, 'width=300')).shown, '200')
  await settled(image, keptMax)
})

test('a thousand transforms in a row leave as much as a few', async () => {
  const image = await server.add({ width: 40, height: 30 })
  for (let n = 0; n < 1000; n++) {
    const answer = await get(image, `width=${(n % 30) + 1},quality=${(n % 97) + 1},format=jpeg`)
    assert.equal(answer.shown, '200', `number ${n}`)
  }
  await settled(image, keptMax)
  assert.equal((await server.blobsOf(image.fileId)).length, keptMax + 1)
  assert.equal(server.serving.making, 0)
})

test('stopping waits for what is made and kept, and nothing is left', async () => {
  const other = await makeImageServer()
  const image = await other.add()
  const asked = other.get('ann', at(image, 'width=31'))
  await until(() => other.works.length === 1)
  await other.serving.stop()
  assert.equal((await asked).statusCode, 200)
  assert.deepEqual(await other.unfinished(), [])
})
