import { AppError } from '#platform/errors.ts'
import type { ImageFacts } from '../types.ts'

/** What a file says of its size before all of it is known. */
export type Size = Pick<ImageFacts, 'width' | 'height' | 'frames'>

/** Why a file is not taken, known from its bytes alone. */
export const errors = {
  empty: () =>
    new AppError({ code: 'image_empty', status: 422, message: 'The file is empty: it has no bytes. Send it again.' }),
  formatUnknown: (found: string, formats: readonly string[]) =>
    new AppError({
      code: 'image_format_unknown',
      status: 415,
      message: `This is ${found}, by its first bytes. Send an image of one of these formats: ${formats.join(', ')}.`,
      details: { formats },
    }),
  truncated: () =>
    new AppError({
      code: 'image_truncated',
      status: 422,
      message: 'The image ends too early: a part of the file is missing. Send it again, whole.',
    }),
  /** @param what is wrong, as the end of a sentence */
  malformed: (what: string) =>
    new AppError({
      code: 'image_malformed',
      status: 422,
      message: `The image is damaged: ${what}. Open it in a program that shows images and save it anew.`,
    }),
  variantUnsupported: (what: string) =>
    new AppError({
      code: 'image_variant_unsupported',
      status: 422,
      message: `This kind of image is not taken: ${what}. Save it as an ordinary JPEG or PNG.`,
    }),
  tooManyPixels: ({ width, height, frames }: Size, limit: number) =>
    new AppError({
      code: 'image_too_large_in_pixels',
      status: 422,
      message: `The image has ${width} × ${height} pixels in ${frames} frames; at most ${limit} pixels are taken, all frames together. Send it smaller.`,
      details: { width, height, frames, limit_pixels: limit },
    }),
  sideTooLong: ({ width, height }: Size, limit: number) =>
    new AppError({
      code: 'image_side_too_long',
      status: 422,
      message: `The image has ${width} × ${height} pixels; no side may have more than ${limit}. Send it smaller.`,
      details: { width, height, limit_pixels: limit },
    }),
  tooManyFrames: (limit: number) =>
    new AppError({
      code: 'image_too_many_frames',
      status: 422,
      message: `The image has more than ${limit} frames or pages. Send fewer.`,
      details: { limit_frames: limit },
    }),
  tooManyScans: (limit: number) =>
    new AppError({
      code: 'image_too_many_scans',
      status: 422,
      message: `The JPEG has more than ${limit} scans. Save it anew, not progressive.`,
      details: { limit_scans: limit },
    }),
  profileTooLarge: (limit: number) =>
    new AppError({
      code: 'image_profile_too_large',
      status: 422,
      message: `The image's colour profile has more than ${limit} bytes. Save it with another one, such as sRGB.`,
      details: { limit_bytes: limit },
    }),
  metadataTooLarge: (limit: number) =>
    new AppError({
      code: 'image_metadata_too_large',
      status: 422,
      message: `What the file holds beside the image (EXIF, XMP, texts, previews) has more than ${limit} bytes or too many parts. Save it without.`,
      details: { limit_bytes: limit },
    }),
  hasMarkup: (found: string) =>
    new AppError({
      code: 'image_has_markup',
      status: 422,
      message: `The image's texts hold \`${found}\`, which a browser or a server might run. Save it without its texts.`,
    }),
  hasTrailingData: (found: string) =>
    new AppError({
      code: 'image_has_trailing_data',
      status: 422,
      message: `The file goes on after the end of the image: ${found}. Save the image alone.`,
    }),
}
