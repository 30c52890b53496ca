import type { Sharp } from 'sharp'
import { usualQuality } from './transform.ts'
import type { FixedTransform } from './types.ts'

/** How hard encoders try. Each step makes files a few percent smaller and takes a half longer. */
const webpEffort = 4
/** Of many frames, whose time adds up. */
const movingWebpEffort = 1
const avifEffort = 2
const pngCompression = 6
const gifEffort = 2

export function encode(image: Sharp, { format, quality }: FixedTransform, isMoving: boolean): Sharp {
  const asked = { quality: quality ?? usualQuality[format] ?? 0 }
  switch (format) {
    case 'jpeg':
      return image.jpeg({ ...asked })
    case 'webp':
      return image.webp({ ...asked, effort: isMoving ? movingWebpEffort : webpEffort })
    case 'avif':
      return image.avif({ ...asked, effort: avifEffort })
    case 'png':
      return image.png({ compressionLevel: pngCompression })
    case 'gif':
      return image.gif({ effort: gifEffort })
  }
}
