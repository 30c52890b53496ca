/** AVIF and HEIC: a picture is an item, or a grid of items, that a `meta` box describes. */
import type { ImageFacts } from '../types.ts'
import { type BoxHead, fieldsOf, skipBody, walkTopBoxes } from './boxes.ts'
import { errors } from './errors.ts'
import { full, type Item, type Items, readItems } from './items.ts'
import { checkSize, makeAllowance, type ProbeLimits, type Sides } from './limits.ts'
import type { Reader, Walk } from './reader.ts'

const metaBytesMax = 1024 * 1024
const brandsBytesMax = 4096
const codings = new Map<string, 'avif' | 'heic'>([
  ['av01', 'avif'],
  ['hvc1', 'heic'],
])
/** What a grid is cut into may reach over its edges; more than so many times its pixels it cannot sensibly be. */
const tilesRatioMax = 2
const tilesMax = 4096
/** A picture of one tile may be small and the tile large. */
const tilePixelsLeast = 4096 * 4096

export function* walkIsobmff(reader: Reader, limits: ProbeLimits): Walk<ImageFacts> {
  let facts: ImageFacts | undefined
  let end = 0
  yield* walkTopBoxes(reader, function* (head): Walk<void> {
    if (head.type === 'meta') {
      if (facts) throw errors.malformed('it is described twice')
      const items = readItems(yield* takeBody(reader, head, metaBytesMax))
      facts = factsOf(items, limits)
      checkMetadata(items, limits)
      end = Math.max(...[...items.byId.values()].flatMap(item => item.extents.map(extent => extent.end)), 0)
    } else if (head.type === 'ftyp') {
      checkBrand((yield* takeBody(reader, head, brandsBytesMax)).toString('latin1', 0, 4))
    } else if (head.type === 'moov' || head.type === 'moof') {
      throw errors.variantUnsupported('a sequence of images or a film')
    } else {
      yield* skipBody(reader, head)
    }
  })
  if (!facts) throw errors.malformed('it has no picture in it')
  if (end > reader.offset) throw errors.truncated()
  return facts
}

function* takeBody(reader: Reader, { type, bodyBytes }: BoxHead, bytesMax: number): Walk<Buffer> {
  if (bodyBytes > bytesMax) throw errors.malformed(`a box is larger than any image needs (${type})`)
  return yield* reader.take(bodyBytes)
}

function checkBrand(brand: string) {
  if (['avis', 'hevc', 'hevx', 'msf1'].includes(brand)) throw errors.variantUnsupported('a sequence of images')
}

function factsOf(items: Items, limits: ProbeLimits): ImageFacts {
  const { primary } = items
  const size = sizeOf(primary)
  checkSize({ ...size, frames: 1 }, limits)
  const coded = primary.type === 'grid' ? checkGrid(items, size, limits) : primary
  const format = codings.get(coded.type)
  if (!format)
    throw errors.variantUnsupported(`an image coded in a way that is not known here (${printable(coded.type)})`)
  const { bitsPerSample, channels } = samplesOf(coded)
  const hasAlpha = items.references.some(({ kind, from, to }) => {
    return kind === 'auxl' && items.byId.get(to[0] ?? -1) === primary && isAlpha(from)
  })
  return {
    format,
    ...size,
    orientation: orientationOf(primary),
    frames: 1,
    progressive: false,
    bitsPerSample,
    channels: channels + (hasAlpha ? 1 : 0),
  }
}

function printable(type: string): string {
  return type.replace(/[^a-zA-Z0-9]/g, '?')
}

function findProperty(item: Item, type: string): Buffer | undefined {
  return item.properties.find(property => property.type === type)?.body
}

function sizeOf(item: Item): Sides {
  const ispe = findProperty(item, 'ispe')
  if (!ispe) throw errors.malformed('it does not say its size')
  const { fields } = full(ispe)
  return { width: fields.number(4), height: fields.number(4) }
}

/** @returns one of the tiles: all are coded alike */
function checkGrid(items: Items, size: Sides, limits: ProbeLimits): Item {
  const tiles = items.references
    .filter(({ kind, from }) => kind === 'dimg' && from === items.primary)
    .flatMap(({ to }) => to)
  const { inner } = items.primary
  if (tiles.length === 0) throw errors.malformed('its tiles are missing')
  if (tiles.length > tilesMax) throw errors.malformed('its tiles are more than the picture')
  if (inner) checkGridSize(inner, size, tiles.length)
  let pixels = 0
  for (const id of tiles) {
    const tile = items.byId.get(id)
    if (!tile || !codings.has(tile.type)) throw errors.malformed('one of its tiles is missing')
    const { width, height } = sizeOf(tile)
    checkSize({ width, height, frames: 1 }, limits)
    pixels += width * height
  }
  const pixelsMax = Math.max(tilesRatioMax * size.width * size.height, tilePixelsLeast)
  if (pixels > pixelsMax) throw errors.malformed('its tiles are more than the picture')
  return items.byId.get(tiles[0]!)!
}

const longSides = 1

/** version, flags, rows − 1, columns − 1, width, height */
function checkGridSize(inner: Buffer, size: Sides, tiles: number) {
  const fields = fieldsOf(inner)
  fields.number(1)
  const sideBytes = fields.number(1) & longSides ? 4 : 2
  const expected = (fields.number(1) + 1) * (fields.number(1) + 1)
  const width = fields.number(sideBytes)
  const height = fields.number(sideBytes)
  if (expected !== tiles) throw errors.malformed('its tiles are not as many as it says')
  if (width !== size.width || height !== size.height) throw errors.malformed('its parts disagree about its size')
}

/** The bytes of items that are no pictures, wherever they lie. */
function checkMetadata({ byId }: Items, limits: ProbeLimits) {
  const allowance = makeAllowance(limits)
  for (const { type, extents, properties } of byId.values()) {
    const profile = properties.find(property => property.type === 'colr')
    if (profile && profile.body.length > limits.profileBytesMax) throw errors.profileTooLarge(limits.profileBytesMax)
    if (type !== 'Exif' && type !== 'mime' && type !== 'uri ') continue
    for (const { start, end } of extents) allowance.addMetadata(end - start)
  }
}

const alphaNames = ['urn:mpeg:mpegB:cicp:systems:auxiliary:alpha', 'urn:mpeg:hevc:2015:auxid:1']

function isAlpha(item: Item): boolean {
  const name = findProperty(item, 'auxC')?.toString('latin1', 4).split('\0')[0]
  return name !== undefined && alphaNames.includes(name)
}

const grey = 1
const colour = 3

function samplesOf(item: Item): { bitsPerSample: number; channels: number } {
  const pixi = findProperty(item, 'pixi')
  if (pixi) {
    const { fields } = full(pixi)
    const count = fields.number(1)
    const bits = Array.from({ length: count }, () => fields.number(1))
    return { bitsPerSample: Math.max(8, ...bits), channels: count === 1 ? grey : colour }
  }
  const av1 = findProperty(item, 'av1C')
  if (av1 && av1.length > 2) {
    const isDeep = (av1[2]! & 0x40) !== 0
    const isDeepest = (av1[2]! & 0x20) !== 0
    const isGrey = (av1[2]! & 0x10) !== 0
    return { bitsPerSample: isDeep ? (isDeepest ? 12 : 10) : 8, channels: isGrey ? grey : colour }
  }
  const hevc = findProperty(item, 'hvcC')
  const bitsAt = 17
  return { bitsPerSample: 8 + ((hevc?.[bitsAt] ?? 0) & 7), channels: colour }
}

/** By quarters that it is turned clockwise, without and with its left and right exchanged before. */
const upright = [1, 6, 3, 8]
const mirrored = [2, 7, 4, 5]

/** `irot` turns anticlockwise by quarters; `imir` exchanges top and bottom (0) or left and right (1). As EXIF has it. */
function orientationOf(item: Item): number {
  let turns = 0
  let isMirrored = false
  for (const { type, body } of item.properties) {
    if (type === 'irot') turns += 4 - ((body[0] ?? 0) & 3)
    if (type !== 'imir') continue
    const exchangesSides = ((body[0] ?? 0) & 1) === 1
    turns = (exchangesSides ? 0 : 2) - turns
    isMirrored = !isMirrored
  }
  return (isMirrored ? mirrored : upright)[((turns % 4) + 4) % 4]!
}
