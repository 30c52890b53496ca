import { AppError } from '#platform/errors.ts'

export const errors = {
  uploadNotFound: () =>
    new AppError({
      code: 'upload_not_found',
      status: 404,
      message: 'There is no such upload, or it is not yours. Begin a new one with POST /v1/uploads.',
    }),
  uploadExpired: () =>
    new AppError({
      code: 'upload_expired',
      status: 410,
      message: 'The upload was not finished in time. Begin a new one with POST /v1/uploads.',
    }),
  offsetWrong: () =>
    new AppError({
      code: 'upload_offset_wrong',
      status: 409,
      message: 'The upload does not stand at this Upload-Offset. HEAD tells where it stands; go on from there.',
    }),
  lengthExceeded: () =>
    new AppError({
      code: 'upload_length_exceeded',
      status: 413,
      message:
        'The body goes past the end that Upload-Length states, or past the most that is taken of a file. Nothing of it was kept.',
    }),
  tooManyParts: (partsMax: number) =>
    new AppError({
      code: 'upload_in_too_many_parts',
      status: 413,
      message: `The upload came in ${partsMax} pieces, which is the most taken here. Begin a new one and send it in larger ones.`,
      details: { parts_max: partsMax },
    }),
  tooManyOpen: (openMax: number) =>
    new AppError({
      code: 'too_many_uploads_open',
      status: 429,
      message: `You have ${openMax} uploads that are not finished, which is the most. Finish some, or end them with DELETE.`,
      details: { open_max: openMax },
    }),
  requestInvalid: (reason: string) =>
    new AppError({
      code: 'upload_request_invalid',
      status: 400,
      message: `This is not a request of the tus protocol as it works here: ${reason}`,
    }),
  versionUnsupported: () =>
    new AppError({
      code: 'tus_version_unsupported',
      status: 412,
      message: 'Send `Tus-Resumable: 1.0.0`, the version of the tus protocol spoken here.',
    }),
  bodyTypeWrong: () =>
    new AppError({
      code: 'upload_body_type_wrong',
      status: 415,
      message: 'A piece of a file is sent with `Content-Type: application/offset+octet-stream`.',
    }),
  uploadBusy: () =>
    new AppError({
      code: 'upload_busy',
      status: 423,
      message: 'Another request works on this upload just now. Ask with HEAD where it stands, and go on from there.',
      retryAfterSeconds: 1,
    }),
  finishesLater: (reason: string, retryAfterSeconds: number | undefined) =>
    new AppError({
      code: 'upload_finishes_later',
      status: 423,
      message: `All bytes are here, but the image cannot be taken just now: ${reason} A HEAD tries again.`,
      retryAfterSeconds: retryAfterSeconds ?? 1,
    }),
}
