import { isUtf8 } from 'node:buffer'
import cookie from '@fastify/cookie'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import websocket from '@fastify/websocket'
import { Ajv } from 'ajv'
import addFormats from 'ajv-formats'
import {
  type FastifyBaseLogger,
  type FastifyInstance,
  fastify,
  LogController,
  type RawReplyDefaultExpression,
  type RawRequestDefaultExpression,
  type RawServerDefault,
} from 'fastify'
import type { PlatformSettings } from '../config.ts'
import { errors } from '../errors.ts'
import { requestIdOf } from '../ids.ts'
import type { Log } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import { limitBodyTime } from './body-time.ts'
import { type Authenticate, installGuard } from './guard.ts'
import { installErrorRendering, Problem } from './problem.ts'
import type { RateLimiter } from './rate-limit.ts'

/** The Fastify instance every service adds its routes to. */
export type HttpApp = FastifyInstance<
  RawServerDefault,
  RawRequestDefaultExpression,
  RawReplyDefaultExpression,
  FastifyBaseLogger,
  TypeBoxTypeProvider
>

export interface HttpOptions {
  settings: Pick<PlatformSettings, 'BODY_LIMIT_BYTES' | 'TRUST_PROXY' | 'NODE_ENV' | 'PUBLIC_URL'>
  log: Log
  metrics: Metrics
  authenticate: Authenticate
  /** Counted by caller, or by address where nobody is logged in. */
  rateLimiter: RateLimiter
  version: string
}

/** How long a request's headers may take to come. */
const headersMs = 60_000
/** How long a body may take to come. */
const bodyMs = 60_000
const sparingMs = 60_000

/** An HTTP server with everything but routes: ids, parsing, validation, guard, limits, errors, OpenAPI, metrics. */
export async function makeHttp(options: HttpOptions): Promise<HttpApp> {
  const app = fastify({
    loggerInstance: options.log as FastifyBaseLogger,
    bodyLimit: options.settings.BODY_LIMIT_BYTES,
    trustProxy: options.settings.TRUST_PROXY,
    genReqId: request => requestIdOf(request.headers['x-request-id']),
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'request_id' }),
    routerOptions: { maxParamLength: 200 },
    // `body-time.ts` sees to bodies, as Node's own limit knows no exceptions.
    requestTimeout: 0,
    http: { headersTimeout: headersMs },
    keepAliveTimeout: 65_000,
    forceCloseConnections: 'idle',
    // `app.ts` answers who comes while the process stops, with a problem document.
    return503OnClosing: false,
  }).withTypeProvider<TypeBoxTypeProvider>() as HttpApp

  installValidation(app)
  installJsonParser(app)
  installErrorRendering(app as unknown as FastifyInstance)
  // Before the guard: it reads cookies, and a handshake it refuses must still be answered and closed by the plugin.
  await app.register(cookie)
  await app.register(websocket, {
    options: { maxPayload: 65_536, perMessageDeflate: false },
    // `live` says goodbye to its clients itself, when the runs they follow have ended.
    preClose: done => done(),
  })
  installObservation(app, options)
  limitBodyTime(app, bodyMs)
  installGuard(app as unknown as FastifyInstance, {
    authenticate: options.authenticate,
    onRefused: request => options.rateLimiter.take(request.ip),
  })
  app.addHook('onRequest', async request => {
    if (request.routeOptions.config.isOperation) return
    await options.rateLimiter.take(request.caller?.userId ?? request.ip)
  })
  await installOpenApi(app, options)
  return app
}

/** Bodies are taken as they are; texts in a query or path become the number or boolean the schema asks for. */
function installValidation(app: HttpApp) {
  const common = { allErrors: false, removeAdditional: false as const, useDefaults: true, strict: false }
  const strict = new Ajv(common)
  const coercing = new Ajv({ ...common, coerceTypes: 'array' })
  for (const ajv of [strict, coercing]) addFormats.default(ajv)
  app.setValidatorCompiler(({ schema, httpPart }) =>
    (httpPart === 'body' ? strict : coercing).compile(schema as Record<string, unknown>),
  )
}

/** Like Fastify's own JSON parser, but refuses what is not UTF-8 instead of mending it silently. */
function installJsonParser(app: HttpApp) {
  const parse = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, body, done) => {
    const bytes = body as Buffer
    if (!isUtf8(bytes)) return done(errors.malformedJson())
    parse(request, bytes.toString('utf8'), (error, value) => (error ? done(errors.malformedJson()) : done(null, value)))
  })
}

/** While something is away every request is answered 503: of a route’s, one line a minute is more than debugging. */
function makeSparing() {
  const told = new Map<string, number>()
  return (route: string): 'warn' | 'debug' => {
    const now = performance.now()
    if (now - (told.get(route) ?? Number.NEGATIVE_INFINITY) < sparingMs) return 'debug'
    told.set(route, now)
    return 'warn'
  }
}

function levelOf(status: number, route: string, sparing: ReturnType<typeof makeSparing>) {
  if (status === 503) return sparing(route)
  return status >= 500 ? 'error' : status >= 400 ? 'info' : 'debug'
}

function installObservation(app: HttpApp, options: HttpOptions) {
  const sparing = makeSparing()
  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id)
  })
  app.addHook('onResponse', async (request, reply) => {
    const route = request.routeOptions.url ?? 'unmatched'
    if (!request.routeOptions.config.isStream) {
      const labels = { method: request.method, route, status: String(reply.statusCode) }
      options.metrics.httpDuration.observe(labels, reply.elapsedTime / 1000)
    }
    const level = levelOf(reply.statusCode, route, sparing)
    if (!options.log.isLevelEnabled(level)) return
    request.log[level](
      { method: request.method, route, status: reply.statusCode, ms: Math.round(reply.elapsedTime * 10) / 10 },
      'answered',
    )
  })
}

async function installOpenApi(app: HttpApp, options: HttpOptions) {
  app.addSchema(Problem)
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Capstan', version: options.version, description: 'One API, one login.' },
      ...(options.settings.PUBLIC_URL ? { servers: [{ url: options.settings.PUBLIC_URL }] } : {}),
      components: {
        securitySchemes: {
          bearer: { type: 'http', scheme: 'bearer', description: 'An access token or an API key.' },
          cookie: { type: 'apiKey', in: 'cookie', name: 'Authorization' },
        },
      },
    },
    refResolver: { buildLocalReference: (json, _base, _fragment, index) => String(json.$id ?? `def-${index}`) },
    transform: ({ schema, url, route }) => {
      const { access, scope } = route.config ?? {}
      if (url.startsWith('/docs')) return { schema: { ...schema, hide: true }, url }
      const needsLogin = access === 'user' || access === 'banker' || access === 'admin'
      return {
        url,
        schema: {
          ...schema,
          ...(needsLogin ? { security: [{ bearer: scope ? [scope] : [] }, { cookie: [] }] } : {}),
          response: { '4xx': { $ref: 'Problem#' }, ...(schema?.response as object) },
        },
      }
    },
  })
  app.get('/openapi.json', { config: { access: 'public' }, schema: { hide: true } }, async () => app.swagger())
  await app.register(async docs => {
    docs.addHook('onRoute', route => {
      route.config = { ...route.config, access: 'public' }
    })
    await docs.register(swaggerUi, { routePrefix: '/docs' })
  })
}
