/** Pictures made by code, always the same ones: for tests, benchmarks, the demo and the load tool. */
import sharp from 'sharp'
import { makeRandom } from '#platform/random.ts'

export interface PictureAsked {
  width: number
  height: number
  format: 'jpeg' | 'png' | 'webp' | 'avif' | 'gif' | 'tiff'
  /** `photo` has the detail and grain of a camera's picture; what comes of the others is far smaller. */
  kind: 'photo' | 'gradient' | 'flat'
  /** Another seed, another picture. */
  seed: number
  /** 1 to 100; without one 85. */
  quality?: number
  /** Progressive as a JPEG, interlaced as a PNG. */
  progressive?: boolean
  /** Of an animation, or pages of a TIFF: gif, webp and tiff only. */
  frames?: number
  /** More and more transparent to the right. */
  alpha?: boolean
  /** EXIF, 1 to 8. The pixels stay as they are. */
  orientation?: number
  /** The colour profile that is put into it. */
  icc?: 'srgb' | 'p3'
}

/** Pixels, row by row. */
interface Raw {
  data: Buffer
  width: number
  height: number
  channels: 3 | 4
}

const rgb = 3

export async function makePicture(asked: PictureAsked): Promise<Buffer> {
  const { width, height, frames = 1, alpha = false } = asked
  const colours = await makeColours(asked)
  let raw: Raw = { data: colours, width, height, channels: rgb }
  if (alpha) raw = addAlpha(raw)
  if (frames > 1) raw = repeat(raw, frames)
  return encode(raw, asked)
}

/** A flat picture has one colour, a gradient goes from one to another. */
async function makeColours({ width, height, kind, seed }: PictureAsked): Promise<Buffer> {
  if (kind === 'photo') return makePhoto({ width, height, seed })
  const random = makeRandom(seed)
  const from = Array.from({ length: rgb }, () => random() * 256)
  const to = kind === 'flat' ? from : from.map(() => random() * 256)
  const data = Buffer.allocUnsafe(width * height * rgb)
  for (let x = 0, at = 0; x < width; x++)
    for (let channel = 0; channel < rgb; channel++)
      data[at++] = from[channel]! + ((to[channel]! - from[channel]!) * x) / width
  const rowBytes = width * rgb
  for (let row = 1; row < height; row++) data.copy(data, row * rowBytes, 0, rowBytes)
  return data
}

/** Shapes are drawn no larger than this and then scaled up; what is finer is added to every pixel. */
const shapesSideMax = 1000

async function makePhoto({ width, height, seed }: { width: number; height: number; seed: number }): Promise<Buffer> {
  const random = makeRandom(seed)
  const scale = Math.min(1, shapesSideMax / Math.max(width, height))
  const small = { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) }
  const shapes = drawShapes(small, random)
  const scaled =
    scale === 1
      ? shapes
      : await sharp(shapes, { raw: { ...small, channels: rgb } })
          .resize(width, height, { fit: 'fill' })
          .raw()
          .toBuffer()
  addGrain({ data: scaled, width, height, random })
  return scaled
}

/** Light in several octaves, colour in fewer, a sky that ends at a horizon: mean sizes of detail as in a landscape. */
function drawShapes({ width, height }: { width: number; height: number }, random: () => number): Buffer {
  const light = makeNoise([2, 5, 11, 23, 60, 140, 330], random)
  const [warmth, green] = [makeNoise([2, 5, 9], random), makeNoise([3, 7], random)]
  const horizon = 0.3 + random() * 0.3
  const data = Buffer.allocUnsafe(width * height * rgb)
  const side = Math.max(width, height)
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [u, v] = [x / side, y / side]
      const isSky = y / height < horizon + 0.2 * (warmth(u, 0) - 0.5)
      const value = isSky ? 190 + 40 * warmth(u, v) - 60 * v : 20 + 200 * light(u, v)
      const [red, blue] = [70 * (warmth(v, u) - 0.5), 60 * (green(u, v) - 0.5)]
      data[at++] = bounded(value + (isSky ? -30 : red))
      data[at++] = bounded(value - blue / 2)
      data[at++] = bounded(value + (isSky ? 25 : blue - 30))
    }
  }
  return data
}

function bounded(value: number): number {
  return Math.max(0, Math.min(255, value))
}

/** Value noise: each octave is a lattice of random numbers, smoothly joined, and half as strong as the one before. */
function makeNoise(cells: number[], random: () => number): (u: number, v: number) => number {
  const octaves = cells.map((count, index) => {
    const side = count + 2
    return { count, side, strength: 0.5 ** (index * 0.7), lattice: Float32Array.from({ length: side * side }, random) }
  })
  const total = octaves.reduce((sum, { strength }) => sum + strength, 0)
  return (u, v) => {
    let sum = 0
    for (const { count, side, strength, lattice } of octaves) {
      const [x, y] = [u * count, v * count]
      const [left, top] = [x | 0, y | 0]
      const at = top * side + left
      const [across, down] = [smooth(x - left), smooth(y - top)]
      const above = lattice[at]! + (lattice[at + 1]! - lattice[at]!) * across
      const below = lattice[at + side]! + (lattice[at + side + 1]! - lattice[at + side]!) * across
      sum += strength * (above + (below - above) * down)
    }
    return sum / total
  }
}

function smooth(t: number): number {
  return t * t * (3 - 2 * t)
}

/** A sensor's noise: chosen so that a JPEG of quality 85 has about a third of a byte a pixel. */
const grainStrength = 11
const grainPeriod = 65_536

function addGrain(given: { data: Buffer; width: number; height: number; random: () => number }) {
  const { data, width, height, random } = given
  const grain = Int8Array.from(
    { length: grainPeriod },
    () => (random() + random() + random() - 1.5) * 2 * grainStrength,
  )
  for (let row = 0, at = 0; row < height; row++) {
    // Every row begins elsewhere, so that no pattern is seen.
    let next = (random() * grainPeriod) | 0
    for (let x = 0; x < width; x++, at += rgb) {
      const noise = grain[next++ & (grainPeriod - 1)]!
      for (let channel = 0; channel < rgb; channel++) {
        const value = data[at + channel]! + noise
        data[at + channel] = bounded(value)
      }
    }
  }
}

/** Odd, so that no two of 256 frames are the same. */
const brighterBy = 3

function addAlpha({ data, width, height }: Raw): Raw {
  const channels = 4
  const withAlpha = Buffer.allocUnsafe(width * height * channels)
  for (let from = 0, to = 0; from < data.length; from += rgb, to += channels) {
    data.copy(withAlpha, to, from, from + rgb)
    withAlpha[to + rgb] = (255 - (255 * ((to / channels) % width)) / width) | 0
  }
  return { data: withAlpha, width, height, channels }
}

/** Each frame is a little brighter than the one before. */
function repeat({ data, width, height, channels }: Raw, frames: number): Raw {
  const all = Buffer.allocUnsafe(data.length * frames)
  for (let frame = 0, to = 0; frame < frames; frame++)
    for (let from = 0; from < data.length; from++) all[to++] = data[from]! + frame * brighterBy
  return { data: all, width, height, channels }
}

function encode({ data, width, channels, height }: Raw, asked: PictureAsked): Promise<Buffer> {
  const { format, quality = 85, progressive = false, orientation, icc } = asked
  const rows = data.length / (width * channels)
  const raw = { width, height: rows, channels, ...(rows > height && { pageHeight: height }) }
  const picture = sharp(data, { raw, limitInputPixels: false })
  if (orientation !== undefined) picture.withMetadata({ orientation })
  if (icc !== undefined) picture.withIccProfile(icc)
  switch (format) {
    case 'jpeg':
      return picture.jpeg({ quality, progressive }).toBuffer()
    case 'png':
      return picture.png({ progressive, compressionLevel: 4 }).toBuffer()
    case 'webp':
      return picture.webp({ quality, effort: 1 }).toBuffer()
    case 'avif':
      return picture.avif({ quality, effort: 0 }).toBuffer()
    case 'gif':
      return picture.gif({ effort: 1 }).toBuffer()
    case 'tiff':
      return picture.tiff({ quality, compression: 'lzw' }).toBuffer()
  }
}

const bases = new Map<number, Promise<Buffer>>()

/** A photo in exactly so many bytes, from 2000 on. Another seed makes another file of the same pixels, at no cost. */
export async function makeJpegOfSize(bytes: number, seed: number): Promise<Buffer> {
  let base = bases.get(bytes)
  if (!base) {
    base = makeBase(bytes)
    bases.set(bytes, base)
  }
  const jpeg = Buffer.from(await base)
  jpeg.write(seed.toString(16).padStart(seedChars, '0'), seedAt, 'latin1')
  return jpeg
}

const seedChars = 16
const segmentHeadBytes = 4
const startBytes = 2
/** Behind the start marker and the head of a comment. */
const seedAt = startBytes + segmentHeadBytes
const commentBytesMax = 65_533
const bytesPerPixelGuessed = 0.29
const fillingLeast = 0.97

/** The largest photo that fits, with comments that fill what is left; the first has room for a seed. */
async function makeBase(bytes: number): Promise<Buffer> {
  const room = bytes - segmentHeadBytes - seedChars
  let pixels = room / bytesPerPixelGuessed
  let photo: Buffer
  for (let tries = 0; ; tries++) {
    const width = Math.max(1, Math.round(Math.sqrt(pixels * 1.5)))
    const height = Math.max(1, Math.round(width / 1.5))
    photo = await makePicture({ width, height, format: 'jpeg', kind: 'photo', seed: 1 })
    const filling = photo.length / room
    if (filling <= 1 && (filling >= fillingLeast || tries > 3)) break
    if (tries > 20) throw new Error(`No photo fits into ${bytes} bytes.`)
    pixels *= (fillingLeast + 1) / 2 / filling
  }
  const start = photo.subarray(0, startBytes)
  return Buffer.concat([start, ...commentsOf(bytes - photo.length), photo.subarray(startBytes)])
}

/** Comments of zeros that have so many bytes with their heads. */
function commentsOf(bytes: number): Buffer[] {
  const comments: Buffer[] = []
  for (let left = bytes; left > 0; ) {
    let payload = Math.min(left - segmentHeadBytes, commentBytesMax)
    const rest = left - segmentHeadBytes - payload
    // What is left for the next one must hold its head.
    if (rest > 0 && rest < segmentHeadBytes) payload -= segmentHeadBytes
    const comment = Buffer.alloc(segmentHeadBytes + payload)
    comment.writeUInt16BE(0xfffe)
    comment.writeUInt16BE(payload + 2, 2)
    comments.push(comment)
    left -= comment.length
  }
  return comments
}
