import type { FastifyBaseLogger, FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { type Static, Type } from 'typebox'
import { isConnectionLoss, sqlState } from '../database/pool.ts'
import { AppError, errors, isAppError, messageOf } from '../errors.ts'

/** An RFC 9457 problem document. */
export const Problem = Type.Object(
  {
    type: Type.String({ description: 'Names this kind of error; docs/errors.md explains each.' }),
    title: Type.String(),
    status: Type.Integer(),
    code: Type.String({ description: 'Stable; programs compare this.' }),
    detail: Type.String({ description: 'What happened and what to do, for a person.' }),
    request_id: Type.String(),
    details: Type.Optional(Type.Record(Type.String(), Type.Unknown())),
  },
  { $id: 'Problem', description: 'What every error looks like (RFC 9457).' },
)

const titles: Record<number, string> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  409: 'Conflict',
  413: 'Content Too Large',
  415: 'Unsupported Media Type',
  422: 'Unprocessable Content',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  503: 'Service Unavailable',
}

/** The one place where errors become answers. */
export function installErrorRendering(app: FastifyInstance) {
  app.setErrorHandler((error: FastifyError, request, reply) => render(translate(error, request), request, reply))
  app.setNotFoundHandler((request, reply) => render(errors.notFound(), request, reply))
}

function render(error: AppError, request: FastifyRequest, reply: FastifyReply) {
  if (error.retryAfterSeconds !== undefined) reply.header('retry-after', String(error.retryAfterSeconds))
  if (error.status === 401) reply.header('www-authenticate', 'Bearer realm="capstan"')
  reply.status(error.status)
  if (request.routeOptions.config?.errorShape === 'legacy') {
    return reply.type('application/json; charset=utf-8').send(JSON.stringify({ error: error.message }))
  }
  const problem: Static<typeof Problem> = {
    type: `urn:capstan:error:${error.code}`,
    title: titles[error.status] ?? 'Error',
    status: error.status,
    code: error.code,
    detail: error.message,
    request_id: request.id,
    ...(error.details ? { details: error.details } : {}),
  }
  return reply.type('application/problem+json; charset=utf-8').send(JSON.stringify(problem))
}

/** Anything thrown becomes an AppError; what nobody foresaw becomes a bare 500 and a log line. */
function translate(error: FastifyError, request: FastifyRequest): AppError {
  if (isAppError(error)) return error
  if (error.validation) return validationError(error)
  const known = fastifyErrors[error.code]
  if (known) return known(error)
  // A client that goes away in the middle of its body is no lost database, though both are ECONNRESET.
  if (error.statusCode === 400 && error.code === 'ECONNRESET') return errors.badRequest('The body was cut off.')
  const trouble = databaseTrouble(error, request.log)
  if (trouble) return trouble
  if (error.statusCode !== undefined && error.statusCode >= 400 && error.statusCode < 500) {
    return new AppError({ code: 'bad_request', status: error.statusCode, message: error.message })
  }
  request.log.error({ err: error }, 'unexpected error')
  return errors.internal()
}

/** What the database cannot do just now, as the error it becomes; `undefined` for anything else. */
export function databaseTrouble(error: unknown, log: Pick<FastifyBaseLogger, 'warn' | 'error'>): AppError | undefined {
  if (isConnectionLoss(error)) {
    log.warn({ err: error }, 'the database is away')
    return errors.unavailable('The database is not reachable just now. Nothing was lost; try again shortly.')
  }
  // A read-only or full database refuses writes: 53100 disk_full, 25006 read_only_sql_transaction.
  if (['53100', '53200', '25006'].includes(sqlState(error) ?? '')) {
    log.error({ err: error }, 'the database takes no writes')
    return errors.unavailable('The database takes no writes just now.', 10)
  }
  return undefined
}

const fastifyErrors: Record<string, (error: FastifyError) => AppError> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: () => errors.unsupportedMediaType(),
  FST_ERR_CTP_EMPTY_JSON_BODY: () => errors.malformedJson(),
  FST_ERR_CTP_INVALID_JSON_BODY: () => errors.malformedJson(),
  FST_ERR_CTP_BODY_TOO_LARGE: () => errors.bodyTooLarge(),
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: () => errors.badRequest('Content-Length does not match the body.'),
}

function validationError(error: FastifyError): AppError {
  const where = error.validationContext ?? 'request'
  const fields = (error.validation ?? []).map(issue => ({
    field: fieldName(issue),
    message: issue.keyword === 'additionalProperties' ? 'is not a known field' : (issue.message ?? 'is not valid'),
  }))
  const first = fields[0]
  const message = first ? `In the ${where}, ${first.field || 'the whole'} ${first.message}.` : messageOf(error)
  return errors.validation(message, fields)
}

function fieldName(issue: { instancePath: string; params: Record<string, unknown> }): string {
  const path = issue.instancePath.slice(1).replaceAll('/', '.')
  const extra = issue.params.additionalProperty ?? issue.params.missingProperty
  return [path, typeof extra === 'string' ? extra : ''].filter(Boolean).join('.')
}
