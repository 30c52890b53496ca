import { AppError } from '#platform/errors.ts'

export const errors = {
  imageNotFound: () =>
    new AppError({ code: 'image_not_found', status: 404, message: 'There is no such image, or it is not yours.' }),
  imageNotReady: (status: string) =>
    new AppError({
      code: 'image_not_ready',
      status: 409,
      message: `The image is ${status}; try again in a moment, or follow the live topic \`images/<id>\`.`,
      details: { status },
      retryAfterSeconds: 1,
    }),
  imageUnusable: (status: string, reason: string) =>
    new AppError({
      code: 'image_unusable',
      status: 409,
      message: `The image is ${status}: ${reason}`,
      details: { status },
    }),
  bytesExceeded: (limitBytes: number) =>
    new AppError({
      code: 'image_too_large',
      status: 413,
      message: `The file has more than ${limitBytes} bytes, which is the most taken here.`,
      details: { limit_bytes: limitBytes },
    }),
  tooHeavy: (neededBytes: number, limitBytes: number) =>
    new AppError({
      code: 'image_too_heavy',
      status: 422,
      message: `Working on this image takes ${neededBytes} bytes of memory; at most ${limitBytes} are given here. Send it smaller, or not progressive.`,
      details: { needed_bytes: neededBytes, limit_bytes: limitBytes },
    }),
  bodyTooSlow: () =>
    new AppError({
      code: 'body_too_slow',
      status: 408,
      message: 'The body came too slowly. Nothing was accepted; send it in pieces to /v1/uploads (tus).',
    }),
  bodyCutOff: () => new AppError({ code: 'body_cut_off', status: 400, message: 'The body ended before the file did.' }),
  notAnImageBody: () =>
    new AppError({
      code: 'not_an_image_body',
      status: 415,
      message:
        'Send the file as the body (`Content-Type: image/jpeg` or `application/octet-stream`), or as `multipart/form-data`.',
    }),
  partMissing: (name: string) =>
    new AppError({
      code: 'part_missing',
      status: 400,
      message: `The form has no file in a part named \`${name}\`.`,
      details: { part: name },
    }),
  partUnexpected: (name: string) =>
    new AppError({
      code: 'part_unexpected',
      status: 400,
      message: `The form has a part that does not belong there: \`${name}\`. One file, and at most the fields of docs/images.md.`,
      details: { part: name },
    }),
  formMalformed: () =>
    new AppError({ code: 'form_malformed', status: 400, message: 'The body is not a whole multipart/form-data form.' }),
  uploadsFull: () =>
    new AppError({
      code: 'uploads_full',
      status: 503,
      message: 'Too many uploads at once just now. Nothing was accepted; try again shortly.',
      retryAfterSeconds: 2,
    }),
  queueFull: () =>
    new AppError({
      code: 'image_queue_full',
      status: 429,
      message: 'Too many images wait to be worked on just now. Nothing was accepted; try again shortly.',
      retryAfterSeconds: 5,
    }),
  noWorkerFree: () =>
    new AppError({
      code: 'no_worker_free',
      status: 429,
      message: 'No worker is free just now. Nothing was accepted; try again shortly.',
      retryAfterSeconds: 1,
    }),
  quotaExceeded: (limitBytes: number) =>
    new AppError({
      code: 'image_quota_exceeded',
      status: 403,
      message: `You have ${limitBytes} bytes for your images and the uploads you have begun, and this would exceed them. Delete some first.`,
      details: { limit_bytes: limitBytes },
    }),
  visibilityUnknown: () =>
    new AppError({ code: 'visibility_unknown', status: 400, message: '`visibility` is `private` or `public`.' }),
  uploadRefused: (message: string) => new AppError({ code: 'upload_refused', status: 400, message }),
  notJpeg: () => new AppError({ code: 'not_a_jpeg', status: 400, message: 'The part `image` is not a JPEG image.' }),
}
