/** Errors as gRPC has them: a status code, and the stable code of docs/errors.md in a google.rpc.ErrorInfo. */
import { Code, ConnectError } from '@connectrpc/connect'
import { ErrorInfoSchema, RetryInfoSchema } from '../../proto/google/rpc/error_details_pb.js'
import { type AppError, errors, isAppError } from '../errors.ts'
import { databaseTrouble } from '../http/problem.ts'
import type { Log } from '../log.ts'

const domain = 'capstan'

const codes: Record<number, Code> = {
  400: Code.InvalidArgument,
  401: Code.Unauthenticated,
  403: Code.PermissionDenied,
  404: Code.NotFound,
  408: Code.DeadlineExceeded,
  409: Code.FailedPrecondition,
  413: Code.ResourceExhausted,
  415: Code.InvalidArgument,
  422: Code.FailedPrecondition,
  429: Code.ResourceExhausted,
  500: Code.Internal,
  503: Code.Unavailable,
}

/** Anything thrown as what the client is told; what nobody foresaw becomes a bare `internal` and a log line. */
export function toStatus(error: unknown, log: Log): ConnectError {
  // Connect's own: a message that is too large or malformed, a deadline, a client that went away.
  if (error instanceof ConnectError) return error
  if (isAppError(error)) return statusOf(error)
  const trouble = databaseTrouble(error, log)
  if (trouble) return statusOf(trouble)
  log.error({ err: error }, 'unexpected error')
  return statusOf(errors.internal())
}

export function statusOf(error: AppError): ConnectError {
  const info = { reason: error.code, domain, metadata: textsOf(error.details) }
  const details = [{ desc: ErrorInfoSchema, value: info }]
  const { retryAfterSeconds } = error
  if (retryAfterSeconds === undefined) return new ConnectError(error.message, codeOf(error), undefined, details)
  const retry = { desc: RetryInfoSchema, value: { retryDelay: { seconds: BigInt(retryAfterSeconds) } } }
  return new ConnectError(error.message, codeOf(error), undefined, [...details, retry])
}

function codeOf({ code, status }: AppError): Code {
  if (status === 409 && code.endsWith('_exists')) return Code.AlreadyExists
  return codes[status] ?? (status < 500 ? Code.InvalidArgument : Code.Internal)
}

/** An error's details as the texts that an ErrorInfo and its like hold. */
export function textsOf(details: Record<string, unknown> | undefined): Record<string, string> {
  return Object.fromEntries(
    Object.entries(details ?? {}).map(([name, value]) => [
      name,
      typeof value === 'string' ? value : JSON.stringify(value),
    ]),
  )
}
