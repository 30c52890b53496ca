/**
 * The error every layer throws on purpose. `http/problem.ts` renders it; anything else that reaches the
 * renderer is a bug and becomes a bare 500.
 */
export class AppError extends Error {
  readonly code: string
  readonly status: number
  readonly details: Record<string, unknown> | undefined
  /** Whole seconds after which trying again makes sense; becomes `Retry-After`. */
  readonly retryAfterSeconds: number | undefined

  constructor(fields: {
    code: string
    status: number
    message: string
    details?: Record<string, unknown>
    retryAfterSeconds?: number
    cause?: unknown
  }) {
    super(fields.message, { cause: fields.cause })
    this.name = 'AppError'
    this.code = fields.code
    this.status = fields.status
    this.details = fields.details
    this.retryAfterSeconds = fields.retryAfterSeconds
  }
}

/** The platform's own catalogue. Services have theirs beside them. */
export const errors = {
  badRequest: (message: string, details?: Record<string, unknown>) =>
    new AppError({ code: 'bad_request', status: 400, message, details }),
  validation: (message: string, fields: { field: string; message: string }[]) =>
    new AppError({ code: 'validation_failed', status: 400, message, details: { fields } }),
  malformedJson: () =>
    new AppError({ code: 'malformed_json', status: 400, message: 'The body is not valid JSON in UTF-8.' }),
  unsupportedMediaType: () =>
    new AppError({
      code: 'unsupported_media_type',
      status: 415,
      message: 'This route takes `Content-Type: application/json`.',
    }),
  bodyTooLarge: (limitBytes?: number) =>
    new AppError({
      code: 'body_too_large',
      status: 413,
      message: limitBytes ? `The body is larger than ${limitBytes} bytes.` : 'The body is too large.',
      details: limitBytes ? { limit_bytes: limitBytes } : undefined,
    }),
  unauthenticated: (message = 'Send a valid access token or API key: `Authorization: Bearer …`.') =>
    new AppError({ code: 'unauthenticated', status: 401, message }),
  forbidden: (message = 'You may not do this.') => new AppError({ code: 'forbidden', status: 403, message }),
  missingScope: (scope: string) =>
    new AppError({
      code: 'missing_scope',
      status: 403,
      message: `This API key lacks the scope \`${scope}\`.`,
      details: { scope },
    }),
  notFound: (what = 'Route') => new AppError({ code: 'not_found', status: 404, message: `${what} not found.` }),
  conflict: (message: string) => new AppError({ code: 'conflict', status: 409, message }),
  rateLimited: (retryAfterSeconds: number) =>
    new AppError({
      code: 'rate_limited',
      status: 429,
      message: `Too many requests. Try again in ${retryAfterSeconds} s.`,
      retryAfterSeconds,
    }),
  overloaded: (what: string, retryAfterSeconds = 1) =>
    new AppError({
      code: 'overloaded',
      status: 503,
      message: `${what} is full just now. Nothing was accepted; try again shortly.`,
      retryAfterSeconds,
    }),
  unavailable: (message: string, retryAfterSeconds = 2) =>
    new AppError({ code: 'unavailable', status: 503, message, retryAfterSeconds }),
  blobStoreUnavailable: (why: string, cause?: unknown) =>
    new AppError({
      code: 'blob_store_unavailable',
      status: 503,
      message: `Files cannot be kept or read just now: ${why}. Nothing was kept; try again shortly. If it stays so, whoever runs this server finds the reason in its log.`,
      retryAfterSeconds: 5,
      cause,
    }),
  idempotencyMismatch: () =>
    new AppError({
      code: 'idempotency_key_reused',
      status: 422,
      message: 'This Idempotency-Key was used before with another request. Use a new key for a new request.',
    }),
  badIdempotencyKey: () =>
    new AppError({
      code: 'bad_idempotency_key',
      status: 400,
      message: 'An Idempotency-Key is 1 to 255 printable ASCII characters.',
    }),
  badCursor: () =>
    new AppError({ code: 'bad_cursor', status: 400, message: 'This cursor is not one that a list here answered.' }),
  internal: () =>
    new AppError({
      code: 'internal',
      status: 500,
      message: 'Something broke on our side. The request id helps whoever runs this server to find it in the log.',
    }),
}

export function isAppError(error: unknown): error is AppError {
  return error instanceof AppError
}

/** What is told of an item of a list that failed by something nobody foresaw. */
export function asAppError(error: unknown): AppError {
  return isAppError(error) ? error : errors.unavailable('It could not be done just now. Try again shortly.')
}

/** The message of anything thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
