/** Uploads in pieces to the whole server: its guard, its workers, its sweep. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestApp } from '../../../../test/support/app.ts'
import { send } from '../../../../test/support/http.ts'
import { makeSender } from '../test-support.ts'
import { makeJpeg, uploadWithTus } from './test-support.ts'

const server = await makeTestApp()
const ann = await makeSender(server, 'ann')
const headers = { authorization: `Bearer ${ann.user.token}` }

test('a file that came in pieces is worked on like any other', async () => {
  const metadata = { filename: 'hill.jpg', visibility: 'public' }
  const { id, image } = await uploadWithTus(server, await makeJpeg(), { headers, metadata, chunkSize: 20_000 })
  assert.equal(image, `/v1/images/${id}`)
  const done = await ann.ended(id)
  assert.deepEqual([done.status, done.name, done.visibility], ['ready', 'hill.jpg', 'public'])
  assert.ok(done.variants.length > 0)
  const { status, body } = await ann.get(`/v1/uploads/${id}`)
  assert.deepEqual([status, body.status, body.image_id], [200, 'finished', id])
  assert.deepEqual(server.complaints, [])
})

test('nobody uploads without a token', async () => {
  const { status } = await send(server, 'POST', '/v1/uploads', { 'tus-resumable': '1.0.0', 'upload-length': '1' })
  assert.equal(status, 401)
})
