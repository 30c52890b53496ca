import { mkdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import sharp from 'sharp'
import { thumbHashToRGBA } from 'thumbhash'
import { makePicture } from '../../test/support/pictures.ts'
import { expect, type Stop } from '../stop.ts'
import { pad } from '../support/terminal.ts'

interface Image {
  id: string
  status: string
  width: number
  height: number
  thumbhash: string
  dominant_colour: string
  variants: { name: string; url: string; format: string; width: number; height: number; bytes: number }[]
}

const root = path.resolve(import.meta.dirname, '../..')
/** Where the results stay, for whoever takes the tour to look at. */
export const picturesFolder = 'demo/pictures'
const photo = { width: 3000, height: 2000, format: 'jpeg', kind: 'photo', seed: 7 } as const

export const picture: Stop = {
  title: 'An image',
  async run({ capstan, makeUser, signal, say }) {
    const ansel = await makeUser('ansel')
    const authorization = `Bearer ${ansel.token}`
    const bytes = await makePicture(photo)
    const begun = performance.now()
    const upload = await fetch(`${capstan.url}/v1/images?wait=30&name=mountains.jpg`, {
      method: 'POST',
      headers: { authorization, 'content-type': 'image/jpeg' },
      body: new Uint8Array(bytes),
      signal,
    })
    const image = (await upload.json()) as Image
    const tookMs = performance.now() - begun
    expect(upload.status === 200 && image.status === 'ready', `The image is ${image.status}.`)
    say(
      `${image.width}×${image.height}, ${kib(bytes.length)}: ready in ${tookMs.toFixed(0)} ms, mostly ${image.dominant_colour}`,
    )

    const folder = path.join(root, picturesFolder)
    await rm(folder, { recursive: true, force: true })
    await mkdir(folder, { recursive: true })
    const save = async (name: string, url: string) => {
      const answer = await fetch(capstan.url + url, { headers: { authorization }, signal })
      expect(answer.ok, `${url} was answered ${answer.status}.`)
      const content = Buffer.from(await answer.arrayBuffer())
      await writeFile(path.join(folder, name), content)
      return content
    }
    for (const { name, url, format, width, height } of image.variants) {
      const content = await save(`${name}.${format}`, url)
      say(`  ${pad(name, 10)} ${pad(`${width}×${height}`, 10)} ${kib(content.length)} ${format}`)
    }
    const square = 'width=500,height=500,fit=cover,position=attention,format=jpeg'
    const made = await save('square.jpeg', `/v1/images/${image.id}/${square}`)
    say(`  on the fly 500×500    ${kib(made.length)} jpeg`)
    const { w, h, rgba } = thumbHashToRGBA(Buffer.from(image.thumbhash, 'base64'))
    await sharp(rgba, { raw: { width: w, height: h, channels: 4 } }).toFile(path.join(folder, 'placeholder.png'))
    say(`  placeholder ${Buffer.from(image.thumbhash, 'base64').length} bytes, as a picture ${w}×${h}`)

    const refused = await fetch(`${capstan.url}/v1/images`, {
      method: 'POST',
      headers: { authorization, 'content-type': 'image/svg+xml' },
      body: '<svg xmlns="http://www.w3.org/2000/svg"/>',
      signal,
    })
    const { code, detail } = (await refused.json()) as { code: string; detail: string }
    expect(refused.status >= 400 && refused.status < 500, 'An SVG was taken.')
    say(`an SVG: ${refused.status} ${code}, ${detail}`)
    return `${image.variants.length} variants in ${tookMs.toFixed(0)} ms; they are in ${picturesFolder}/`
  },
}

function kib(bytes: number): string {
  return `${(bytes / 1024).toFixed(0).padStart(4)} KiB`
}
