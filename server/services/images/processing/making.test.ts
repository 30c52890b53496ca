/** What is made is what was asked for: sizes, colours, orientation, and nothing else of the file. */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { type TestContext, test } from 'node:test'
import sharp, { type Color, type Sharp } from 'sharp'
import { thumbHashToAverageRGBA } from 'thumbhash'
import { outputFormats } from '../types.ts'
import { colourAt, fixed, keepPicture, makeFolder, makeOf, makeTestProcessor } from './test-support.ts'
import { defaultPresets, parsePresets } from './transform.ts'
import type { FixedTransform } from './types.ts'

const folder = await makeFolder()
const [red, green, blue, white] = ['#ff0000', '#00ff00', '#0000ff', '#ffffff']
const near = (a: number[], b: number[], by = 12) =>
  a.length === b.length && a.every((v, at) => Math.abs(v - b[at]!) <= by)

/** Four quarters: red and green above, blue and white below. */
function quarters(width: number, height: number) {
  const [w, h] = [width / 2, height / 2]
  const part = (background: string, left: number, top: number) => ({
    input: { create: { width: w, height: h, channels: 3 as const, background } },
    left,
    top,
  })
  return sharp({ create: { width, height, channels: 3, background: red! } })
    .composite([part(green!, w, 0), part(blue!, 0, h), part(white!, w, h)])
    .removeAlpha()
}

const wide = await keepPicture(folder, 'wide.png', await quarters(400, 200).png().toBuffer())

test('every format and fit gives the sizes that were asked for', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const cases: [words: string, width: number, height: number][] = [
    ['width=100', 100, 50],
    ['height=100', 200, 100],
    ['width=100,height=100', 100, 50],
    ['width=5000,height=5000', 400, 200],
    ['width=1', 1, 1],
    ['width=120,height=90,fit=cover', 120, 90],
    ['width=500,height=600,fit=cover', 500, 600],
    ['width=120,height=90,fit=contain', 120, 90],
    ['width=120,height=90,fit=fill', 120, 90],
    ['width=50,height=50,fit=cover,position=attention', 50, 50],
    ['width=50,height=50,fit=cover,position=entropy', 50, 50],
    ['crop=10.20.30.40', 30, 40],
    ['crop=200.0.200.200,width=50', 50, 50],
  ]
  for (const format of outputFormats) {
    for (const [words, width, height] of cases) {
      const { made, bytes, metadata } = await makeOf(processor, wide, `${words},format=${format}`)
      assert.deepEqual(made, { format, width, height, bytes: bytes.length, frames: 1 }, words)
      assert.equal(metadata.format, format === 'avif' ? 'heif' : format)
      assert.deepEqual([metadata.width, metadata.height], [width, height])
    }
  }
})

test('positions, crops and borders are where they should be', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const cases: [words: string, at: [number, number], colour: number[]][] = [
    ['width=100,height=100,fit=cover,position=left', [0.9, 0.1], [255, 0, 0]],
    ['width=100,height=100,fit=cover,position=right', [0.1, 0.1], [0, 255, 0]],
    ['width=100,height=100,fit=cover', [0.1, 0.1], [255, 0, 0]],
    ['width=100,height=25,fit=cover,position=bottom', [0.1, 0.1], [0, 0, 255]],
    ['crop=200.0.100.100', [0.5, 0.5], [0, 255, 0]],
    ['crop=0.100.200.100,width=20', [0.5, 0.5], [0, 0, 255]],
    ['width=100,height=100,fit=contain,background=102030', [0.5, 0.05], [16, 32, 48]],
    ['width=100,height=100,fit=contain', [0.5, 0.05], [0, 0, 0, 0]],
  ]
  for (const [words, at, colour] of cases) {
    const { bytes } = await makeOf(processor, wide, `${words},format=png`)
    const found = await colourAt(bytes, ...at)
    assert.ok(near(found, colour), `${words}: ${found}`)
  }
})

test('all eight orientations come out upright, and nothing of the metadata is left', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const exif = { IFD0: { Copyright: 'me' }, IFD3: { GPSLatitudeRef: 'N', GPSLatitude: '51/1 30/1 3230/100' } }
  // How upright pixels are stored for each orientation: EXIF's table, backwards.
  const storing: Record<number, (image: Sharp) => Sharp> = {
    1: image => image,
    2: image => image.flop(),
    3: image => image.rotate(180),
    4: image => image.flip(),
    5: image => image.rotate(270).flop(),
    6: image => image.rotate(270),
    7: image => image.rotate(90).flop(),
    8: image => image.rotate(90),
  }
  for (const [orientation, store] of Object.entries(storing)) {
    const upright = await quarters(400, 200).png().toBuffer()
    const stored = store(sharp(upright))
      .withExif(exif)
      .withMetadata({ orientation: Number(orientation) })
    const picture = await keepPicture(folder, `o${orientation}.jpg`, await stored.jpeg({ quality: 95 }).toBuffer())
    assert.equal(picture.facts.orientation, Number(orientation))
    for (const words of ['width=100,format=jpeg', 'crop=0.0.400.200,width=100,format=webp', 'format=png']) {
      const { made, bytes, metadata } = await makeOf(processor, picture, words)
      assert.equal(made.width, made.height * 2, words)
      for (const [x, y, colour] of [
        [0.1, 0.1, [255, 0, 0]],
        [0.9, 0.1, [0, 255, 0]],
        [0.1, 0.9, [0, 0, 255]],
      ] as const) {
        const found = await colourAt(bytes, x, y)
        assert.ok(near(found.slice(0, 3), [...colour], 20), `orientation ${orientation}, ${words}: ${found}`)
      }
      assert.deepEqual([metadata.exif, metadata.xmp, metadata.iptc, metadata.orientation], Array(4).fill(undefined))
      assert.ok(!bytes.includes('GPS') && !bytes.includes('Exif'))
    }
    const { description } = await processor.work({ ...picture, outputs: [], describe: true })
    assert.deepEqual([description?.width, description?.height], [400, 200])
  }
})

test('a profile of wide colours is kept, one of inks or nonsense is not', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const p3 = await keepPicture(folder, 'p3.jpg', await quarters(400, 200).withIccProfile('p3').jpeg().toBuffer())
  for (const format of ['jpeg', 'png', 'webp', 'avif']) {
    const { metadata } = await makeOf(processor, p3, `width=100,format=${format}`)
    const { icc } = await sharp(p3.path).metadata()
    assert.deepEqual(metadata.icc, icc, format)
  }
  const both = await processor.work({ ...p3, outputs: presetsTo('p3') })
  assert.equal(both.made.length, 3)
  assert.ok((await sharp(presetsTo('p3')[2]!.path).metadata()).icc)
  const inks = quarters(400, 200).toColourspace('cmyk').withIccProfile('cmyk').jpeg({ quality: 95 })
  const cmyk = await keepPicture(folder, 'cmyk.jpg', await inks.toBuffer())
  const { bytes, metadata } = await makeOf(processor, cmyk, 'width=100,format=jpeg')
  assert.deepEqual([metadata.space, metadata.icc], ['srgb', undefined])
  const [r, g, b] = await colourAt(bytes, 0.1, 0.1)
  assert.ok(r! > 200 && g! < 80 && b! < 80, `${r} ${g} ${b}`)
})

function presetsTo(name: string): { transform: FixedTransform; path: string }[] {
  return [...parsePresets(defaultPresets)].map(([preset, transform]) => ({
    transform: transform as FixedTransform,
    path: `${folder}/${name}-${preset}`,
  }))
}

test('transparency stays where the format has it, and lies on the background where not', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const clear = sharp({
    create: { width: 200, height: 200, channels: 4, background: { r: 255, g: 0, b: 0, alpha: 0 } },
  })
  const picture = await keepPicture(folder, 'clear.png', await clear.png().toBuffer())
  for (const [words, colour] of [
    ['format=png', [255, 0, 0, 0]],
    ['format=jpeg', [255, 255, 255]],
    ['format=jpeg,background=00ff00', [0, 255, 0]],
    ['format=png,background=00ff00', [0, 255, 0]],
    ['width=50,height=20,fit=contain,format=jpeg', [255, 255, 255]],
  ] as const) {
    const found = await colourAt((await makeOf(processor, picture, words)).bytes, 0.5, 0.5)
    const seen = colour.length === 4 ? [found[3]!] : found
    assert.ok(near(seen, colour.length === 4 ? [0] : [...colour]), `${words}: ${found}`)
  }
  for (const format of ['webp', 'avif', 'gif']) {
    const { metadata } = await makeOf(processor, picture, `width=50,format=${format}`)
    assert.ok(metadata.hasAlpha, format)
  }
})

const frames = 5

async function animation(format: 'gif' | 'webp') {
  const pages = await Promise.all(
    Array.from({ length: frames }, (_, n) =>
      sharp({ create: { width: 120, height: 80, channels: 3, background: { r: n * 50, g: 0, b: 255 - n * 50 } } })
        .png()
        .toBuffer(),
    ),
  )
  const moving = sharp(pages, { join: { animated: true } })
  const bytes = await (format === 'gif' ? moving.gif({ delay: 70 }) : moving.webp({ delay: 70 })).toBuffer()
  return keepPicture(folder, `moving.${format}`, bytes)
}

test('what moves keeps moving as GIF and WebP, and is its first frame in the rest', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  for (const from of ['gif', 'webp'] as const) {
    const picture = await animation(from)
    assert.equal(picture.facts.frames, frames)
    for (const format of outputFormats) {
      const expected = format === 'gif' || format === 'webp' ? frames : 1
      for (const [words, width, height] of [
        ['width=60', 60, 40],
        ['width=30,height=30,fit=cover,position=attention', 30, 30],
        ['crop=20.0.80.80,width=40', 40, 40],
      ] as const) {
        const { made, metadata, bytes } = await makeOf(processor, picture, `${words},format=${format}`)
        assert.deepEqual(
          [made.frames, made.width, made.height],
          [expected, width, height],
          `${from} ${format} ${words}`,
        )
        if (expected > 1) assert.deepEqual([metadata.pages, metadata.delay?.[0]], [frames, 70])
        else assert.ok(near((await colourAt(bytes, 0.5, 0.5)).slice(0, 3), [0, 0, 255], 20))
      }
    }
  }
})

test('the same is made alone and with others, and what is seen at a glance is right', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const outputs = presetsTo('wide')
  const { made, description } = await processor.work({ ...wide, outputs, describe: true })
  assert.deepEqual(
    made.map(({ width, height }) => [width, height]),
    [
      [256, 256],
      [400, 200],
      [400, 200],
    ],
  )
  for (const { transform, path } of outputs) {
    const alone = `${path}-alone`
    await processor.work({ ...wide, outputs: [{ transform, path: alone }] })
    const [a, b] = await Promise.all([path, alone].map(async file => colourAt(await readFile(file), 0.1, 0.1)))
    assert.ok(near(a!, b!, 4), `${a} ${b}`)
  }
  assert.deepEqual([description?.width, description?.height, description?.hasAlpha], [400, 200, false])
  const average = thumbHashToAverageRGBA(description!.thumbhash)
  assert.ok(near([average.r, average.g, average.b], [0.5, 0.5, 0.5], 0.1), JSON.stringify(average))
})

async function glance(t: TestContext, image: Sharp, name: string) {
  const processor = makeTestProcessor(t, { workers: 1 })
  const picture = await keepPicture(folder, name, await image.png().toBuffer())
  return (await processor.work({ ...picture, outputs: [], describe: true })).description!
}

test('what is small comes as bytes where that is wanted, the same as in a file', async t => {
  const processor = makeTestProcessor(t, { workers: 1 })
  const turned = await keepPicture(
    folder,
    'turned.jpg',
    await quarters(1600, 1000).withMetadata({ orientation: 6 }).withIccProfile('p3').jpeg().toBuffer(),
  )
  for (const format of outputFormats) {
    const inFile = await makeOf(processor, turned, `width=300,format=${format}`)
    const output = { transform: fixed(`width=300,format=${format}`), path: path.join(folder, 'inline'), inline: true }
    const [inline] = (await processor.work({ ...turned, outputs: [output] })).made
    assert.deepEqual(inline, { ...inFile.made, body: inFile.bytes })
    assert.equal(existsSync(output.path), false)
  }
  // Upright it has 1000 × 1600 pixels.
  const output = { transform: fixed('format=png'), path: path.join(folder, 'large'), inline: true }
  const [large] = (await processor.work({ ...turned, outputs: [output] })).made
  assert.equal(large!.body, undefined)
  assert.equal((await readFile(output.path)).length, large!.bytes)
})

test('the colour is the one that there is most of', async t => {
  const of = (channels: 3 | 4, background: Color) =>
    sharp({ create: { width: 300, height: 200, channels, background } })
  assert.equal((await glance(t, of(3, '#c08040'), 'brown.png')).dominantColour, 'c08040')
  const patch = { input: { create: { width: 90, height: 90, channels: 3 as const, background: '#000000' } } }
  assert.equal((await glance(t, of(3, '#c08040').composite([patch]), 'patch.png')).dominantColour, 'c08040')
  assert.equal((await glance(t, of(3, '#808080').toColourspace('b-w'), 'grey.png')).dominantColour, '808080')
  const clear = await glance(t, of(4, { r: 0, g: 0, b: 255, alpha: 0 }).composite([patch]), 'clear2.png')
  assert.deepEqual([clear.dominantColour, clear.hasAlpha], ['000000', true])
  assert.equal((await glance(t, of(4, { r: 0, g: 0, b: 255, alpha: 1 }), 'opaque.png')).hasAlpha, false)
})
