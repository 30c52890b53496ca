/** What the last word of an image's address asks for, and what results are called. */
import { createHash } from 'node:crypto'
import sharp from 'sharp'
import { type AppError, isAppError } from '#platform/errors.ts'
import { canonical, parseTransform } from '../processing/transform.ts'
import type { FixedTransform, Transform } from '../processing/types.ts'
import { outputFormats } from '../types.ts'

export type Presets = ReadonlyMap<string, Transform>

export type Word =
  | { kind: 'original' }
  | { kind: 'preset'; name: string; transform: Transform }
  | { kind: 'transform'; transform: Transform }
  /** No preset of now, but perhaps of the time when the image came; `fault` says what is wrong with it otherwise. */
  | { kind: 'variant'; name: string; fault: AppError }

const variantName = /^[a-z0-9][a-z0-9_-]{0,63}$/i

/** @throws bad_transform */
export function readWord(text: string, presets: Presets): Word {
  if (text === 'original') return { kind: 'original' }
  const preset = presets.get(text)
  if (preset) return { kind: 'preset', name: text, transform: preset }
  try {
    return { kind: 'transform', transform: parseTransform(text, presets) }
  } catch (error) {
    if (isAppError(error) && variantName.test(text)) return { kind: 'variant', name: text, fault: error }
    throw error
  }
}

/** Raise it when the same transform makes other bytes than before. */
const revision = 1
/** Other code or another libvips makes other bytes, so what is kept and every ETag belong to this. */
export const pipeline = digest(`${revision} ${sharp.versions.sharp} ${sharp.versions.vips}`).slice(0, 8)

/** The name under which a transform is kept. */
export function transformName(transform: FixedTransform): string {
  return `${pipeline}-${digest(canonical(transform)).slice(0, 32)}.${transform.format}`
}

/** The names that a transform may have, once its format is decided. */
export function transformNames(word: Word): string[] {
  if (!('transform' in word)) return []
  const { transform } = word
  const formats = transform.format === 'auto' ? outputFormats : [transform.format]
  return formats.map(format => transformName({ ...transform, format }))
}

/** A strong ETag: equal only for equal bytes. It is known before they are read or made. */
export function etagOf(sha256: Buffer, what: string): string {
  return `"${createHash('sha256').update(sha256).update(what).digest('base64url').slice(0, 27)}"`
}

function digest(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}
