/**
 * Makes everything that is asked of one file, in as few passes through it as give the same quality: what needs no more
 * than a smaller image is made of one that is just large enough for all of it, held uncompressed in memory. Crops, what
 * keeps moving, and what would have to be held too large, are made of the file itself.
 */
import sharp, { type OutputInfo, type Sharp, type SharpOptions } from 'sharp'
import type { ImageFacts } from '../types.ts'
import { glanceAt, glanceSideMax } from './describing.ts'
import { encode } from './encoding.ts'
import { pixelsOf, type Sides, scaled, scaleOf, sidesMade, staysMoving } from './geometry.ts'
import type { Order, Results } from './order.ts'
import { holdsProfile } from './profiles.ts'
import { sideMax } from './transform.ts'
import type { FixedTransform, Made, Output } from './types.ts'
import { heldPixelsMax } from './weigh.ts'

/** An opened file, of which nothing was decoded yet. */
interface Source extends Sides {
  /** Upright. */
  open(options?: { moving: boolean }): Sharp
  keepsProfile: boolean
  /** Turned or mirrored as it is stored: moving images are not. */
  isTurned: boolean
  facts: ImageFacts
}

/** What a pass begins with. */
type Begin = () => Sharp

interface Held {
  begin: Begin
  release(): void
}

/** What has no more pixels than that is a few megabytes at most, however badly it can be packed. */
export const inlinePixelsMax = 2 ** 20

const glance = { width: glanceSideMax, height: glanceSideMax, fit: 'inside' } as const

export async function makeAll(order: Order): Promise<Results> {
  const source = await openSource(order)
  const held = await hold(order, source)
  try {
    const made: Made[] = []
    for (const output of order.outputs) {
      const { transform } = output
      const isMoving = movesOn(transform, source)
      const begin = held && mayUseHeld(transform, source) ? held.begin : () => source.open({ moving: isMoving })
      made.push(await makeOne({ begin, output, isMoving, source }))
    }
    const description = order.describe ? await describe(held?.begin ?? source.open, source) : undefined
    return { made, description }
  } finally {
    held?.release()
  }
}

async function openSource({ path, facts }: Order): Promise<Source> {
  const options = ({ moving }: { moving: boolean }): SharpOptions => ({
    failOn: 'error',
    // The header was believed when the memory was counted.
    limitInputPixels: facts.width * facts.height * (moving ? facts.frames : 1),
    ...(moving && { pages: -1 }),
  })
  return {
    ...(await readHeader(path, options({ moving: false }))),
    facts,
    open: (how = { moving: false }) => {
      const image = sharp(path, options(how))
      return how.moving ? image : image.autoOrient()
    },
  }
}

type Header = Pick<Source, 'width' | 'height' | 'isTurned' | 'keepsProfile'>

/** By path. One image is often asked for in several sizes, and what a path leads to never changes. */
const headers = new Map<string, Header>()
const headersMax = 64

async function readHeader(path: string, options: SharpOptions): Promise<Header> {
  const known = headers.get(path)
  if (known) return known
  const { autoOrient, orientation = 1, icc, space } = await sharp(path, options).metadata()
  const header = { ...autoOrient, isTurned: orientation > 1, keepsProfile: holdsProfile({ icc, space }) }
  headers.set(path, header)
  if (headers.size > headersMax) headers.delete(headers.keys().next().value!)
  return header
}

function movesOn(transform: FixedTransform, source: Source): boolean {
  return staysMoving(transform, source.facts) && !source.isTurned
}

function mayUseHeld(transform: FixedTransform, source: Source): boolean {
  return transform.crop === undefined && !movesOn(transform, source)
}

/** The image just large enough for all that can be made of it; undefined where that is one thing at most. */
async function hold({ outputs, describe }: Order, source: Source): Promise<Held | undefined> {
  const users = [
    ...outputs.map(output => output.transform).filter(each => mayUseHeld(each, source)),
    ...(describe ? [glance] : []),
  ]
  if (users.length < 2) return undefined
  const scale = Math.max(...users.map(each => scaleOf(each, source)))
  const sides = scaled(source, scale)
  if (pixelsOf(sides) > heldPixelsMax) return undefined
  const image = source.open()
  if (scale < 1) image.resize({ ...sides, fit: 'fill' })
  if (source.keepsProfile) image.keepIccProfile()
  // TIFF, because it keeps the profile and costs no more than a copy.
  const data = await image.tiff({ compression: 'none', predictor: 'none' }).toBuffer()
  return {
    begin: () => sharp(data, { limitInputPixels: heldPixelsMax }),
    // V8 does not know how large it is, and would free it when it pleases.
    release: () => void (data.buffer as ArrayBuffer).transfer(0),
  }
}

async function makeOne(given: { begin: Begin; output: Output; isMoving: boolean; source: Source }): Promise<Made> {
  const { output, source, isMoving } = given
  const { transform } = output
  const image = given.begin()
  if (transform.crop) image.extract(within(transform.crop, source))
  resize(image, { transform, isMoving })
  if (transform.background || transform.format === 'jpeg') image.flatten({ background: backgroundOf(transform) })
  if (source.keepsProfile) image.keepIccProfile()
  encode(image, transform, isMoving)
  if (!isInline(output, given)) return toMade(await image.toFile(output.path), transform)
  const { data, info } = await image.toBuffer({ resolveWithObject: true })
  return { ...toMade(info, transform), body: data }
}

function isInline({ inline, transform }: Output, { isMoving, source }: { isMoving: boolean; source: Source }): boolean {
  if (!inline || isMoving) return false
  return pixelsOf(sidesMade(transform, transform.crop ?? source)) <= inlinePixelsMax
}

/** Thrown where the transform does not go with this image. */
export class NotPossible extends Error {}

function within(crop: NonNullable<FixedTransform['crop']>, source: Source): NonNullable<FixedTransform['crop']> {
  if (crop.left + crop.width > source.width || crop.top + crop.height > source.height) {
    throw new NotPossible(`The crop reaches outside the image, which has ${source.width} × ${source.height} pixels.`)
  }
  return crop
}

function resize(image: Sharp, { transform, isMoving }: { transform: FixedTransform; isMoving: boolean }) {
  const { width, height, fit } = transform
  if (fit === 'inside') {
    image.resize({ width: width ?? sideMax, height: height ?? sideMax, fit, withoutEnlargement: true })
    return
  }
  const searches = transform.position === 'attention' || transform.position === 'entropy'
  // Each frame would be cut elsewhere.
  const position = isMoving && searches ? 'centre' : transform.position
  const background = transform.background || transform.format === 'jpeg' ? backgroundOf(transform) : transparent
  image.resize({ width: width!, height: height!, fit, position, background })
}

const transparent = { r: 0, g: 0, b: 0, alpha: 0 }

function backgroundOf({ background = 'ffffff' }: FixedTransform): string {
  return `#${background}`
}

function toMade(info: OutputInfo, { format }: FixedTransform): Made {
  return {
    format,
    width: info.width,
    height: info.pageHeight ?? info.height,
    bytes: info.size,
    frames: info.pages ?? 1,
  }
}

/** In sRGB, whatever the profile. */
async function describe(begin: Begin, { width, height }: Source): Promise<NonNullable<Results['description']>> {
  const { data, info } = await begin()
    .resize({ ...glance, withoutEnlargement: true })
    .raw()
    .toBuffer({ resolveWithObject: true })
  return { width, height, ...glanceAt({ data, ...info }) }
}
