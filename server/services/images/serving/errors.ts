import { AppError } from '#platform/errors.ts'

export const errors = {
  linkInvalid: () =>
    new AppError({
      code: 'link_invalid',
      status: 403,
      message: 'This link was not signed here, or was changed since. Ask the image’s owner for a new one.',
    }),
  linkExpired: () =>
    new AppError({
      code: 'link_expired',
      status: 403,
      message: 'This link has expired. Ask the image’s owner for a new one.',
    }),
  rangeNotSatisfiable: (bytes: number) =>
    new AppError({
      code: 'range_not_satisfiable',
      status: 416,
      message: `The Range begins after the end: there are ${bytes} bytes.`,
      details: { bytes },
    }),
  transformFailed: (reason: string) =>
    new AppError({
      code: 'transform_failed',
      status: 422,
      message: `This transform of the image cannot be made: ${reason}`,
      details: { reason },
    }),
  makersFull: () =>
    new AppError({
      code: 'image_makers_full',
      status: 503,
      message: 'Too many transforms are being made just now; try again shortly.',
      retryAfterSeconds: 1,
    }),
  tooManyTransforms: () =>
    new AppError({
      code: 'too_many_transforms',
      status: 429,
      message: 'As many transforms are being made for you as are left for others. Try again when some are ready.',
      retryAfterSeconds: 1,
    }),
  makersAway: () =>
    new AppError({
      code: 'image_makers_away',
      status: 503,
      message: 'The transform could not be made just now; try again shortly. The log says why.',
      retryAfterSeconds: 2,
    }),
  bytesMissing: () =>
    new AppError({
      code: 'image_bytes_missing',
      status: 500,
      message:
        'The image is known, but its bytes are not in the blob store. Whoever runs this server must restore them.',
    }),
  clientGone: () =>
    new AppError({ code: 'client_gone', status: 499, message: 'The client closed the connection before the answer.' }),
}
