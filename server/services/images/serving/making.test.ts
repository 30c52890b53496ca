/** Transforms made on the fly: once, and without harm when something goes wrong. */
import assert from 'node:assert/strict'
import type { Readable } from 'node:stream'
import { test } from 'node:test'
import sharp from 'sharp'
import { errors as platformErrors } from '#platform/errors.ts'
import { atEnd } from '../../../../test/support/at-end.ts'
import { until } from '../../../../test/support/until.ts'
import { originalKey, transformKey, variantKey } from '../keys.ts'
import { PictureBroken } from '../processing/types.ts'
import { at, keptMax, makeMakingKit } from './test-kit.ts'
import { callers, forget, makeImageServer } from './test-support.ts'

const { server, get, settled, hold } = await makeMakingKit()

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

test('what is not kept is answered whole, however large', async () => {
  const other = await makeImageServer({ IMAGE_TRANSFORMS_MAX: '0' })
  const image = await other.add({ width: 900, height: 700 })
  const word = 'width=900,format=png'
  const path = at(image, word)
  const answers = await Promise.all([other.get('ann', path), other.get('ann', path), other.head('ann', path)])
  for (const { statusCode, headers, rawPayload } of answers.slice(0, 2)) {
    assert.equal(statusCode, 200)
    assert.ok(rawPayload.length > 1024 * 1024, String(rawPayload.length))
    assert.equal(headers['content-length'], String(rawPayload.length))
  }
  assert.equal(answers[2]!.headers['content-length'], answers[0]!.headers['content-length'])
  assert.equal(other.works.length, 1)
  const picture = await other.serving.find({ id: image.id, word, caller: callers.ann, accept: undefined })
  const signal = new AbortController().signal
  const { body } = await picture.open({ signal, holder: 'ann', bodyless: false, pick: () => undefined })
  let bytes = 0
  for await (const piece of body as Readable) {
    assert.ok(piece.length <= 256 * 1024, 'it goes out in pieces')
    bytes += piece.length
  }
  assert.equal(bytes, answers[0]!.rawPayload.length)
  await until(async () => other.serving.making === 0 && (await other.openFiles()).length === 0)
  assert.deepEqual(await other.unfinished(), [])
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

test('one user leaves places to others: the next making is refused, and those of others are not', async () => {
  const [image, other] = [await server.add(), await server.add({ owner: 'bob' })]
  const release = hold()
  const asked = Array.from({ length: 128 }, (_, n) => get(image, `width=${n + 1}`))
  await until(() => server.serving.making === 128)
  const refused = await get(image, 'width=300')
  assert.equal(refused.shown, '429 too_many_transforms')
  assert.equal(refused.headers['retry-after'], '1')
  // Nobody is refused what is being made already.
  asked.push(get(image, 'width=1'))
  const bobs = server.get('bob', at(other, 'width=1'))
  await until(() => server.serving.making === 129)
  release()
  assert.deepEqual(new Set((await Promise.all(asked)).map(answer => answer.shown)), new Set(['200']))
  assert.equal((await bobs).statusCode, 200)
  assert.equal((await get(image, 'width=300')).shown, '200')
  await settled(image, keptMax)
})

test('places are shared out between the addresses of readers whom nobody knows', async () => {
  const names = Array.from({ length: 8 }, (_, n) => `preset${n}`)
  const crowd = await makeImageServer({
    IMAGE_PRESETS: names.map((name, n) => `${name}:width=${n + 1},format=png`).join(';'),
  })
  const held = Promise.withResolvers<void>()
  atEnd(held.resolve)
  crowd.hooks.beforeWork = () => held.promise
  const images = await Promise.all(Array.from({ length: 17 }, () => crowd.add({ visibility: 'public', width: 20 })))
  const urls = images.flatMap(image => names.map(name => at(image, name)))
  const from = (remoteAddress: string, url: string) => crowd.app.inject({ method: 'GET', url, remoteAddress })
  const asked = urls.slice(0, 128).map(url => from('192.0.2.1', url))
  await until(() => crowd.serving.making === 128)
  assert.equal((await from('192.0.2.1', urls[128]!)).json().code, 'too_many_transforms')
  asked.push(from('192.0.2.2', urls[129]!), crowd.get('ann', urls[130]!))
  await until(() => crowd.serving.making === 130)
  held.resolve()
  assert.deepEqual(new Set((await Promise.all(asked)).map(answer => answer.statusCode)), new Set([200]))
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
