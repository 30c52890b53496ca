/** What is weighed by the header bounds what is really taken. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import sharp from 'sharp'
import { makePicture, type PictureAsked } from '../../../../test/support/pictures.ts'
import { startChild } from './child.ts'
import { fixed, keepPicture, makeFolder } from './test-support.ts'
import { defaultPresets, parsePresets } from './transform.ts'
import type { FixedTransform } from './types.ts'
import { decodeBytesOf, workBytesOf } from './weigh.ts'

const folder = await makeFolder()
const mib = 1024 * 1024
/** More than any of it may take. */
const dataBytesMax = 4096 * mib

const photo = (more: Partial<PictureAsked>) => () =>
  makePicture({ width: 3000, height: 2000, format: 'jpeg', kind: 'photo', seed: 1, ...more })
/** As `makePicture` does not make them. */
const flat = () => sharp({ create: { width: 4000, height: 3000, channels: 3, background: '#357' } })
const pictures: Record<string, () => Promise<Buffer>> = {
  jpeg: photo({}),
  'progressive jpeg': photo({ progressive: true }),
  'progressive jpeg, all colours': () => flat().jpeg({ progressive: true, chromaSubsampling: '4:4:4' }).toBuffer(),
  'jpeg of inks': () => flat().toColourspace('cmyk').jpeg().toBuffer(),
  png: photo({ format: 'png' }),
  'interlaced png': photo({ format: 'png', progressive: true }),
  'png of 16 bits': () => flat().toColourspace('rgb16').png().toBuffer(),
  webp: photo({ format: 'webp' }),
  'webp without loss': () => flat().webp({ lossless: true, effort: 0 }).toBuffer(),
  'webp with transparency': photo({ format: 'webp', alpha: true }),
  avif: () => flat().avif({ effort: 0 }).toBuffer(),
  gif: photo({ format: 'gif', width: 2000, height: 1500 }),
  tiff: photo({ format: 'tiff' }),
  'animated gif': photo({ format: 'gif', width: 400, height: 300, frames: 20 }),
  'animated webp': photo({ format: 'webp', width: 400, height: 300, frames: 20 }),
}

test('nothing takes more memory than it weighs', async () => {
  const presets = [...parsePresets(defaultPresets)].map(([name, transform]) => ({
    transform: transform as FixedTransform,
    path: `${folder}/${name}`,
  }))
  const alone = (words: string) => [{ transform: fixed(words), path: `${folder}/alone`, inline: true }]
  for (const [name, make] of Object.entries(pictures)) {
    const picture = await keepPicture(folder, name.replaceAll(/\W/g, '-'), await make())
    for (const [outputs, describe] of [
      [presets, true],
      [alone('width=512,height=512,format=jpeg'), false],
      [alone('width=1500,format=webp'), false],
    ] as const) {
      const child = startChild({ dataBytesMax })
      await child.ready
      const answer = await child.run({ ...picture, outputs, describe })
      child.kill()
      assert.equal(answer.kind, 'done', `${name}: ${JSON.stringify(answer)}`)
      const { peakBytes } = answer as Extract<typeof answer, { kind: 'done' }>
      const weight = workBytesOf({ ...picture, outputs, describe })
      assert.ok(peakBytes <= weight, `${name}: ${peakBytes / mib} of ${weight / mib} MiB`)
      assert.ok(workBytesOf({ ...picture, outputs: presets, describe: true }) <= decodeBytesOf(picture.facts), name)
    }
  }
})

test('a progressive JPEG weighs several times what a plain one does', () => {
  const facts = { width: 6000, height: 4000, orientation: 1, frames: 1, bitsPerSample: 8, channels: 3 }
  const plain = decodeBytesOf({ ...facts, format: 'jpeg', progressive: false })
  const progressive = decodeBytesOf({ ...facts, format: 'jpeg', progressive: true })
  assert.ok(plain < 100 * mib && progressive > 2 * plain, `${plain} ${progressive}`)
})
