import type { InputFormat } from '../types.ts'
import { errors, type Size } from './errors.ts'

export interface ProbeLimits {
  /** Width × height × frames. */
  pixelsMax: number
  /** What is taken; anything else is refused by its first bytes. */
  formats: readonly InputFormat[]
  framesMax: number
  /** In pixels, of width and of height. */
  sideMax: number
  /** Of a JPEG. libjpeg's time grows with pixels × scans; encoders make about ten. */
  scansMax: number
  /** Of the colour profile, unpacked. */
  profileBytesMax: number
  /** Of everything else that is no picture: EXIF, XMP, texts; packed texts count unpacked. */
  metadataBytesMax: number
}

export type Sides = Pick<Size, 'width' | 'height'>

const mib = 1024 * 1024

/** Profiles of printers reach 3 MiB, metadata of phones (depth maps, previews) a little more. */
export const defaultLimits = {
  formats: ['jpeg', 'png', 'webp', 'avif', 'gif', 'tiff'],
  framesMax: 1000,
  sideMax: 30_000,
  scansMax: 100,
  profileBytesMax: 4 * mib,
  metadataBytesMax: 8 * mib,
} as const satisfies Omit<ProbeLimits, 'pixelsMax'>

/**
 * Parts a file may have beside its frames, and for each frame. A part costs a little however short it is. Cameras write a
 * few dozen; an extended XMP of the largest size taken has some 130.
 */
const partsMax = 2000
const partsPerFrame = 2

/** @throws image_malformed, image_side_too_long, image_too_many_frames, image_too_large_in_pixels */
export function checkSize(size: Size, limits: ProbeLimits) {
  const { width, height, frames } = size
  if (width === 0 || height === 0) throw errors.malformed(`it says that it has ${width} × ${height} pixels`)
  if (Math.max(width, height) > limits.sideMax) throw errors.sideTooLong(size, limits.sideMax)
  if (frames > limits.framesMax) throw errors.tooManyFrames(limits.framesMax)
  if (width * height * frames > limits.pixelsMax) throw errors.tooManyPixels(size, limits.pixelsMax)
}

/** What a file may still spend on what is no picture. */
export interface Allowance {
  /** @throws image_profile_too_large */
  addProfile(bytes: number): void
  /** One part, however long. @throws image_metadata_too_large */
  addMetadata(bytes: number): void
  /** Bytes of metadata that are left. */
  readonly metadataLeft: number
}

export function makeAllowance({ profileBytesMax, metadataBytesMax, framesMax }: ProbeLimits): Allowance {
  let profileLeft = profileBytesMax
  let metadataLeft = metadataBytesMax
  let partsLeft = partsMax + partsPerFrame * framesMax
  return {
    addProfile(bytes) {
      profileLeft -= bytes
      if (profileLeft < 0) throw errors.profileTooLarge(profileBytesMax)
    },
    addMetadata(bytes) {
      metadataLeft -= bytes
      partsLeft--
      if (metadataLeft < 0 || partsLeft < 0) throw errors.metadataTooLarge(metadataBytesMax)
    },
    get metadataLeft() {
      return metadataLeft
    },
  }
}
