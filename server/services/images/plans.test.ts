/** What presets may ask for, against the memory there is. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { readSettings, SettingsError } from '#platform/config.ts'
import { makeTestApp } from '../../../test/support/app.ts'
import { makePicture } from '../../../test/support/pictures.ts'
import { until } from '../../../test/support/until.ts'
import { makeImagesService } from './index.ts'
import { assertPresetsFit } from './plans.ts'
import { imagesSettings } from './settings.ts'
import { assertProblem, makeSender, postForm } from './test-support.ts'

const mib = 1024 * 1024
const settingsOf = (presets: string, memoryBytes?: number) =>
  readSettings(imagesSettings, {
    IMAGE_PRESETS: presets,
    ...(memoryBytes && { IMAGE_MEMORY_BYTES: String(memoryBytes) }),
  })

test('presets that no image is small enough for are named at the start, with what they need', async () => {
  const settings = settingsOf(
    'poster:width=4096,height=4096,fit=cover,format=avif;card:width=640;cut:crop=0.0.8192.8192',
  )
  assert.throws(
    () => assertPresetsFit(settings),
    (error: Error) => {
      assert.ok(error instanceof SettingsError)
      const lines = error.message.split('\n')
      assert.equal(lines.length, 2)
      assert.match(lines[0]!, /^IMAGE_PRESETS has the preset `poster`, but .* IMAGE_MEMORY_BYTES to \d{9} or more\.$/)
      assert.match(lines[1]!, /`cut`/)
      return true
    },
  )
  await assert.rejects(makeImagesService({ settings } as never), SettingsError)
})

test('what a preset is said to need is enough', () => {
  const presets = 'poster:width=4096,height=4096,fit=cover,format=avif'
  let needed = 0
  assert.throws(
    () => assertPresetsFit(settingsOf(presets)),
    (error: Error) => {
      needed = Number(/(\d+) or more/.exec(error.message)![1])
      return true
    },
  )
  assert.throws(() => assertPresetsFit(settingsOf(presets, needed - 1)), SettingsError)
  assertPresetsFit(settingsOf(presets, needed))
  assertPresetsFit(settingsOf('', 64 * mib))
  assertPresetsFit(readSettings(imagesSettings, { IMAGE_MEMORY_BYTES: String(64 * mib) }))
  assertPresetsFit(settingsOf('huge:width=8192,height=8192,format=avif'))
})

test('an image of which the presets cannot be made is refused when it comes, and no other', async () => {
  const server = await makeTestApp({ env: { IMAGE_PRESETS: 'huge:width=8192,height=8192,format=avif' } })
  const ann = await makeSender(server, 'ann')
  const flat = (side: number) => makePicture({ width: side, height: side, format: 'jpeg', kind: 'flat', seed: 1 })
  const large = await flat(2600)
  const answer = await ann.raw(large)
  assertProblem(answer, 422, 'image_too_heavy')
  assert.equal(answer.body.details.limit_bytes, 256 * mib)
  assert.ok(answer.body.details.needed_bytes > 256 * mib)
  const small = await ann.raw(await flat(60), '?wait=60')
  assert.deepEqual([small.body.status, small.body.variants.length], ['ready', 1])
  // The old contract has no presets.
  const headers = { authorization: `Bearer ${ann.user.token}` }
  await until(async () => (await postForm(server, '/upload', { bytes: large, headers })).status === 200)
  const { rows } = await server.db.query(`select from images.files`)
  assert.equal(rows.length, 2)
})
