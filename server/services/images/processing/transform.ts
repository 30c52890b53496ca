/** Transforms as text: `width=512,height=512,fit=cover,format=webp`, the presets' names, and which format `auto` is. */
import { isAppError } from '#platform/errors.ts'
import { type ImageFacts, type OutputFormat, outputFormats } from '../types.ts'
import { readAccept } from './accept.ts'
import { errors } from './errors.ts'
import { fits, positions, type Transform } from './types.ts'

/** Longest side of anything that is made, in pixels. */
export const sideMax = 8192
const qualityMax = 100
/** Past the largest side of any image that is taken. */
const cropMax = 1_000_000
const presetsMax = 32
const presetName = /^[a-z][a-z0-9_-]{0,31}$/
/** What else stands at a preset's place in an address. */
const reservedNames = ['original']
/** Longest part of what was sent that an error repeats. */
const echoMax = 40

/** What is taken where no quality is asked for; formats without one are always the same. */
export const usualQuality: Partial<Record<OutputFormat, number>> = { jpeg: 80, webp: 80, avif: 50 }

/**
 * The thumbnail and the card are what lists show, so they are small and WebP. `full` is JPEG: as WebP it would make an
 * upload two thirds more work.
 */
export const defaultPresets = [
  'thumbnail:width=256,height=256,fit=cover,format=webp',
  'card:width=640,format=webp',
  'full:width=2048,height=2048,format=jpeg',
].join(';')

type Fields = Partial<Record<string, string>>
const words = ['width', 'height', 'fit', 'position', 'crop', 'format', 'quality', 'background'] as const

/**
 * @param text a preset's name, or words such as `width=512,height=512,fit=cover`
 * @throws bad_transform
 */
export function parseTransform(text: string, presets: ReadonlyMap<string, Transform>): Transform {
  const preset = presets.get(text)
  if (preset) return preset
  if (!text.includes('=')) {
    const names = [...presets.keys()].map(name => `\`${name}\``)
    throw errors.badTransform(
      `there is no preset \`${shorten(text)}\`. Name one (${names.join(', ')}) or say what you want, such as \`width=512,format=webp\`.`,
    )
  }
  return toTransform(splitWords(text))
}

/** @throws bad_transform */
function splitWords(text: string): Fields {
  const fields: Fields = {}
  for (const word of text.split(',')) {
    const [, name = '', value = ''] = /^([^=]*)=?(.*)$/s.exec(word) ?? []
    if (!words.includes(name as (typeof words)[number])) {
      throw errors.badTransform(`there is no \`${shorten(name)}\`. There are ${words.join(', ')}.`)
    }
    if (fields[name] !== undefined) throw errors.badTransform(`\`${name}\` stands in it twice. Say it once.`)
    fields[name] = value
  }
  return fields
}

function toTransform(fields: Fields): Transform {
  const transform: Transform = {
    ...(fields.crop !== undefined && { crop: parseCrop(fields.crop) }),
    ...(fields.width !== undefined && { width: parseNumber('width', fields.width, 1, sideMax) }),
    ...(fields.height !== undefined && { height: parseNumber('height', fields.height, 1, sideMax) }),
    fit: parseChoice('fit', fields.fit ?? 'inside', fits),
    position: parseChoice('position', fields.position ?? 'centre', positions),
    format: parseChoice('format', fields.format ?? 'auto', [...outputFormats, 'auto'] as const),
    ...(fields.quality !== undefined && { quality: parseNumber('quality', fields.quality, 1, qualityMax) }),
    ...(fields.background !== undefined && { background: parseColour(fields.background) }),
  }
  const { fit, position, width, height } = transform
  if (fit !== 'inside' && (width === undefined || height === undefined)) {
    throw errors.badTransform(
      `\`fit=${fit}\` needs both \`width\` and \`height\`. With one of them only \`fit=inside\` goes.`,
    )
  }
  if (position !== 'centre' && fit !== 'cover') {
    throw errors.badTransform(
      `\`position\` says what \`fit=cover\` keeps; \`fit=${fit}\` cuts nothing off. Leave it out.`,
    )
  }
  return transform
}

function parseNumber(name: string, text: string, min: number, max: number): number {
  const value = Number(text)
  if (/^\d{1,9}$/.test(text) && value >= min && value <= max) return value
  throw errors.badTransform(`\`${name}=${shorten(text)}\` is no whole number from ${min} to ${max}.`)
}

function parseChoice<T extends string>(name: string, text: string, choices: readonly T[]): T {
  if (choices.includes(text as T)) return text as T
  throw errors.badTransform(`\`${name}=${shorten(text)}\` is unknown. It is one of ${choices.join(', ')}.`)
}

function parseCrop(text: string): NonNullable<Transform['crop']> {
  const parts = text.split('.')
  if (parts.length !== 4) {
    throw errors.badTransform(
      `\`crop=${shorten(text)}\` is not of the form \`left.top.width.height\`, such as \`crop=10.20.300.400\`.`,
    )
  }
  const [left, top] = parts.slice(0, 2).map(part => parseNumber('crop', part, 0, cropMax))
  const [width, height] = parts.slice(2).map(part => parseNumber('crop', part, 1, cropMax))
  return { left: left!, top: top!, width: width!, height: height! }
}

function parseColour(text: string): string {
  if (/^[0-9a-f]{6}$/i.test(text)) return text.toLowerCase()
  throw errors.badTransform(
    `\`background=${shorten(text)}\` is no colour of six hexadecimal digits, such as \`ffffff\`.`,
  )
}

function shorten(text: string): string {
  return text.length > echoMax ? `${text.slice(0, echoMax)}…` : text
}

/** One text for all ways to say the same: in a fixed order, without what holds anyway. */
export function canonical(transform: Transform): string {
  const { crop, width, height, fit, position, format, quality, background } = transform
  const isUsual = format !== 'auto' && (usualQuality[format] === undefined || quality === usualQuality[format])
  const said = [
    crop && `crop=${crop.left}.${crop.top}.${crop.width}.${crop.height}`,
    width !== undefined && `width=${width}`,
    height !== undefined && `height=${height}`,
    fit !== 'inside' && `fit=${fit}`,
    position !== 'centre' && `position=${position}`,
    `format=${format}`,
    quality !== undefined && !isUsual && `quality=${quality}`,
    background !== undefined && `background=${background}`,
  ]
  return said.filter(word => typeof word === 'string').join(',')
}

/**
 * @param text presets as `name:transform;name:transform`
 * @throws an Error that ends the sentence "IMAGE_PRESETS is …, but"
 */
export function parsePresets(text: string): Map<string, Transform> {
  const presets = new Map<string, Transform>()
  for (const entry of text.split(';').filter(part => part.trim() !== '')) {
    const [, name = '', words = ''] = /^\s*([^:]*):\s*(.*?)\s*$/s.exec(entry) ?? []
    if (!presetName.test(name) || reservedNames.includes(name)) {
      throw new Error(
        `it must be \`name:transform;name:transform\`; \`${shorten(entry)}\` does not begin with a name of at most 32 of a-z 0-9 _ -.`,
      )
    }
    if (presets.has(name)) throw new Error(`the preset \`${name}\` stands in it twice.`)
    presets.set(name, parsePreset(name, words))
  }
  if (presets.size > presetsMax) throw new Error(`at most ${presetsMax} presets are made of an image.`)
  return presets
}

function parsePreset(name: string, words: string): Transform {
  try {
    return toTransform(splitWords(words))
  } catch (error) {
    if (!isAppError(error)) throw error
    throw new Error(`the preset \`${name}\` is wrong. ${error.message}`)
  }
}

/** Of `auto`, the best first, where a client names several as equally good. */
const offered = ['webp', 'avif'] as const

/**
 * The format a transform is made in. `auto` is WebP for who names it in its Accept header, AVIF for who likes it better
 * or names it alone: encoding AVIF takes four times as long, so browsers, which name both alike, get WebP. A wildcard is
 * no such naming. Else it is JPEG, PNG where something may be transparent, and GIF where something moves.
 */
export function chooseFormat(transform: Transform, accept: string | undefined, facts: ImageFacts): OutputFormat {
  if (transform.format !== 'auto') return transform.format
  const likes = readAccept(accept ?? '*/*')
  const isMoving = moves(facts)
  const others: OutputFormat[] = isMoving ? ['gif'] : mayBeTransparent(facts) ? ['png'] : ['jpeg', 'png']
  const otherwise = others.find(format => likes.quality(format) > 0) ?? others[0]!
  let best: OutputFormat = otherwise
  for (const format of offered.toReversed()) {
    // AVIF is made of the first frame alone.
    if (isMoving && format === 'avif') continue
    if (likes.names(format) && likes.quality(format) > 0 && likes.quality(format) >= likes.quality(best)) best = format
  }
  return best
}

/** Frames that are shown one after another; pages of a TIFF are not. */
export function moves({ format, frames }: Pick<ImageFacts, 'format' | 'frames'>): boolean {
  return frames > 1 && (format === 'gif' || format === 'webp')
}

/** A JPEG's fourth channel is black ink. */
function mayBeTransparent({ format, channels }: ImageFacts): boolean {
  return format !== 'jpeg' && channels % 2 === 0
}
