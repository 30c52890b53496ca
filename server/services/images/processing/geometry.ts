/** How large things become. */
import type { ImageFacts } from '../types.ts'
import { moves, sideMax } from './transform.ts'
import type { FixedTransform, Transform } from './types.ts'

export interface Sides {
  width: number
  height: number
}

/** How much smaller the image may be made before this transform; at most 1. */
export function scaleOf(transform: Pick<Transform, 'fit' | 'width' | 'height'>, source: Sides): number {
  const horizontal = (transform.width ?? sideMax) / source.width
  const vertical = (transform.height ?? sideMax) / source.height
  const isWithin = transform.fit === 'inside' || transform.fit === 'contain'
  return Math.min(1, isWithin ? Math.min(horizontal, vertical) : Math.max(horizontal, vertical))
}

/** Of what is made; a crop counts as the whole image. */
export function sidesMade(transform: Pick<Transform, 'fit' | 'width' | 'height'>, source: Sides): Sides {
  if (transform.fit !== 'inside') return { width: transform.width!, height: transform.height! }
  return scaled(source, scaleOf(transform, source))
}

export function scaled({ width, height }: Sides, scale: number): Sides {
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) }
}

export function pixelsOf({ width, height }: Sides): number {
  return width * height
}

/** As it is seen. */
export function uprightSides({
  width,
  height,
  orientation,
}: Pick<ImageFacts, 'width' | 'height' | 'orientation'>): Sides {
  return orientation > 4 ? { width: height, height: width } : { width, height }
}

/** Libvips holds all frames that it makes. */
export const movingPixelsMax = 2 ** 24

/** Whether all frames are made, or only the first. */
export function staysMoving(transform: FixedTransform, facts: ImageFacts): boolean {
  if (!moves(facts) || facts.orientation > 1 || (transform.format !== 'gif' && transform.format !== 'webp'))
    return false
  return pixelsOf(sidesMade(transform, transform.crop ?? facts)) * facts.frames <= movingPixelsMax
}
