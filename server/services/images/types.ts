/** What can be uploaded. `heic` only where this machine's libvips can decode it. */
export const inputFormats = ['jpeg', 'png', 'webp', 'avif', 'heic', 'gif', 'tiff'] as const
export type InputFormat = (typeof inputFormats)[number]

/** What can be made. */
export const outputFormats = ['jpeg', 'png', 'webp', 'avif', 'gif'] as const
export type OutputFormat = (typeof outputFormats)[number]

/** What an image's header says; nothing was decoded to know it. */
export interface ImageFacts {
  format: InputFormat
  /** As stored, in pixels: the orientation is not applied. */
  width: number
  height: number
  /** EXIF orientation 1 to 8; 1 where there is none or a wrong one. */
  orientation: number
  /** 1 for a still image. */
  frames: number
  /** A progressive JPEG, an interlaced PNG, or a WebP without loss: all of it is held while it is decoded. */
  progressive: boolean
  bitsPerSample: number
  /** 1 grey, 2 grey and alpha, 3 RGB or YCbCr, 4 RGBA or CMYK. */
  channels: number
}

export const fileStatuses = ['waiting', 'processing', 'ready', 'failed', 'refused'] as const
export type FileStatus = (typeof fileStatuses)[number]

export const visibilities = ['private', 'public'] as const
/** Who may see an image without a signed link: its owner, or everybody. */
export type Visibility = (typeof visibilities)[number]

/** `presets`: the variants of IMAGE_PRESETS. `upload`: the old contract's one. */
export type Profile = 'presets' | 'upload'

/** Something made of every file when it came. */
export interface Variant {
  name: string
  format: InputFormat | OutputFormat
  width: number
  height: number
  bytes: number
}

/** As kept with a file. */
export interface StoredDescription {
  /** Of the upright image, in pixels. */
  width: number
  height: number
  /** Base64. */
  thumbhash: string
  /** RRGGBB */
  dominant_colour: string
  has_alpha: boolean
}
