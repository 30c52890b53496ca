/** What is seen of an image at a glance: its placeholder and its colour. */
import { rgbaToThumbHash } from 'thumbhash'

/** Thumbhash takes no more. */
export const glanceSideMax = 100

export interface Pixels {
  data: Buffer
  width: number
  height: number
  /** 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA. */
  channels: number
}

export interface Glance {
  /** Base64. */
  thumbhash: string
  dominantColour: string
  hasAlpha: boolean
}

export function glanceAt(pixels: Pixels): Glance {
  const rgba = toRgba(pixels)
  return {
    thumbhash: Buffer.from(rgbaToThumbHash(pixels.width, pixels.height, rgba)).toString('base64'),
    dominantColour: dominantColour(rgba),
    hasAlpha: rgba.some((value, at) => at % 4 === 3 && value < 255),
  }
}

function toRgba({ data, width, height, channels }: Pixels): Uint8Array {
  const rgba = new Uint8Array(width * height * 4)
  const isGrey = channels < 3
  for (let from = 0, to = 0; to < rgba.length; from += channels, to += 4) {
    rgba[to] = data[from]!
    rgba[to + 1] = data[isGrey ? from : from + 1]!
    rgba[to + 2] = data[isGrey ? from : from + 2]!
    rgba[to + 3] = channels % 2 === 0 ? data[from + channels - 1]! : 255
  }
  return rgba
}

/** Of each channel, so that colours which look alike are counted together. */
const bitsPerChannel = 4
const opaqueFrom = 128

/** The mean of the largest group of like colours. Of an image that is transparent all over, of all its colours. */
function dominantColour(rgba: Uint8Array): string {
  const groups = new Map<number, [count: number, red: number, green: number, blue: number]>()
  const isVisible = rgba.some((value, at) => at % 4 === 3 && value >= opaqueFrom)
  const shift = 8 - bitsPerChannel
  for (let at = 0; at < rgba.length; at += 4) {
    const [red, green, blue] = [rgba[at]!, rgba[at + 1]!, rgba[at + 2]!]
    if (isVisible && rgba[at + 3]! < opaqueFrom) continue
    const key = ((red >> shift) << (2 * bitsPerChannel)) | ((green >> shift) << bitsPerChannel) | (blue >> shift)
    const group = groups.get(key) ?? [0, 0, 0, 0]
    group[0]++
    group[1] += red
    group[2] += green
    group[3] += blue
    groups.set(key, group)
  }
  let most: [number, number, number, number] = [0, 0, 0, 0]
  for (const group of groups.values()) if (group[0] > most[0]) most = group
  return most
    .slice(1)
    .map(sum =>
      Math.round(sum / most[0])
        .toString(16)
        .padStart(2, '0'),
    )
    .join('')
}
