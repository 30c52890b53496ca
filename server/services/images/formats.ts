import { heicIsReadable } from './processing/loaders.ts'
import { canonical, parsePresets } from './processing/transform.ts'
import type { ImagesSettings } from './settings.ts'
import { type InputFormat, inputFormats, outputFormats } from './types.ts'

/** What this machine reads and writes. */
export interface Formats {
  input: string[]
  output: string[]
  presets: Record<string, string>
}

/** HEIC only where libvips has its decoder. */
export function takenFormats(): InputFormat[] {
  return inputFormats.filter(format => format !== 'heic' || heicIsReadable())
}

export function listFormats(settings: ImagesSettings): Formats {
  const presets = [...parsePresets(settings.IMAGE_PRESETS)].map(([name, transform]) => [name, canonical(transform)])
  return {
    input: takenFormats(),
    output: [...outputFormats],
    presets: Object.fromEntries(presets),
  }
}
