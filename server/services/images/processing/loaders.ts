/** What libvips may open here. Everything else it knows (SVG, PDF, ImageMagick, …) stays blocked in the processes that decode. */
import sharp from 'sharp'

/** Of libvips: the loaders of the input formats, from files, and the one that results are handed on with in memory. */
export const loaders = [
  'VipsForeignLoadJpegFile',
  'VipsForeignLoadPngFile',
  'VipsForeignLoadWebpFile',
  'VipsForeignLoadHeifFile',
  'VipsForeignLoadNsgifFile',
  'VipsForeignLoadTiffFile',
  'VipsForeignLoadTiffBuffer',
]

/** HEIC is HEVC inside, whose decoder the libvips that comes with sharp leaves out; one built with it says so. */
export function heicIsReadable(): boolean {
  return sharp.format.heif.input.fileSuffix?.includes('.heic') ?? false
}
