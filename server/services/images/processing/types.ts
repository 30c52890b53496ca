import type { ImageFacts, OutputFormat } from '../types.ts'

/** What becomes of the image's shape when both sides are given. */
export const fits = ['inside', 'cover', 'contain', 'fill'] as const
export type Fit = (typeof fits)[number]

/** What stays when `cover` cuts something off. `attention` and `entropy` look for it. */
export const positions = ['centre', 'top', 'right', 'bottom', 'left', 'attention', 'entropy'] as const
export type Position = (typeof positions)[number]

/** A transform as asked for: `width=512,height=512,fit=inside,format=auto,quality=80`. */
export interface Transform {
  /** Cut out first, in pixels of the upright original. */
  crop?: { left: number; top: number; width: number; height: number }
  width?: number
  height?: number
  fit: Fit
  position: Position
  /** `auto` takes the best that the Accept header allows. */
  format: OutputFormat | 'auto'
  /** 1 to 100. Without one, the format's own usual value. */
  quality?: number
  /** RRGGBB, for what `contain` adds and behind what is transparent. Without one it stays so, but in JPEG: that is white. */
  background?: string
}

/** A transform whose format is decided: it always makes the same bytes of the same file. */
export type FixedTransform = Transform & { format: OutputFormat }

export interface Made {
  format: OutputFormat
  width: number
  height: number
  bytes: number
  frames: number
  /** All of it, where it was wanted so. */
  body?: Buffer
}

/** What is seen at a glance, of the upright image. */
export interface Description {
  width: number
  height: number
  /** See https://evanw.github.io/thumbhash/ */
  thumbhash: Buffer
  /** RRGGBB */
  dominantColour: string
  hasAlpha: boolean
}

/** Something to make. */
export interface Output {
  transform: FixedTransform
  /** Written there, whole. */
  path: string
  /** Answered as `body`, and nothing written, where it has few pixels: see `inlinePixelsMax`. */
  inline?: boolean
}

export interface Work {
  /** Names it whenever it is tried; see `kills.ts`. */
  id: string
  /** The original, of this machine. */
  path: string
  facts: ImageFacts
  /** Made in one go through the original where that is possible. */
  outputs: readonly Output[]
  /** Whether to describe it too. */
  describe?: boolean
  /** Somebody waits for the answer: goes before what does not say so. */
  urgent?: boolean
  signal?: AbortSignal
}

export interface WorkDone {
  /** In the order of `outputs`. */
  made: Made[]
  description: Description | undefined
  /** Most memory the work had, in bytes, above the idle process. */
  peakBytes: number
}

/**
 * Makes images of images, in processes of its own: a file that crashes a decoder, hangs it or makes it eat memory costs
 * itself alone.
 */
export interface Processor {
  /**
   * Waits for a free process and for memory, then works.
   * @throws PictureBroken where the file is to blame and another try would end the same
   * @throws an Error otherwise, and another try may end well: aborted, closed, the disk full, its process killed
   */
  work(work: Work): Promise<WorkDone>
  /** Work that waits, whether urgent or not. */
  readonly waiting: number
  /** Ends what runs, at the latest after the grace. */
  close(graceMs?: number): Promise<void>
}

/** The file cannot be decoded, or not within the limits of memory and time. The message may be shown to its owner. */
export class PictureBroken extends Error {}
