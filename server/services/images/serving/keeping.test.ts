/** What was made is kept where there is room, once, and nothing is left that nobody knows. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { readSettings } from '#platform/config.ts'
import { until } from '../../../../test/support/until.ts'
import { filePrefix, transformKey } from '../keys.ts'
import { imagesSettings } from '../settings.ts'
import { insertTransforms } from '../store.ts'
import { lockFiles } from './store.ts'
import { at, keptMax, makeMakingKit } from './test-kit.ts'
import { forget } from './test-support.ts'

const { server, get, settled, holdWidth } = await makeMakingKit()

test('what is kept counts against its owner', async () => {
  const image = await server.add({ owner: 'bob' })
  await server.db.query(`delete from images.usage where owner = 'bob'`)
  const { rawPayload } = await server.get('bob', at(image, 'width=22'))
  await settled(image, 1)
  const { rows } = await server.db.query(`select bytes from images.usage where owner = 'bob'`)
  assert.deepEqual(rows, [{ bytes: rawPayload.length }])
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
