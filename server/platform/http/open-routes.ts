import type { FastifyRequest } from 'fastify'
import type { PlatformSettings } from '../config.ts'
import { errors } from '../errors.ts'
import type { Caller } from './guard.ts'

/** The routes of old contracts that take requests without a token. Their `access` is `optional`. */
export interface OpenRoutes {
  has(path: string): boolean
}

/** Those that OPEN_ROUTES names; where it is not set, all but in production. */
export function makeOpenRoutes(settings: Pick<PlatformSettings, 'OPEN_ROUTES' | 'NODE_ENV'>): OpenRoutes {
  const named = settings.OPEN_ROUTES
  return { has: path => (named ? named.includes(path) : settings.NODE_ENV !== 'production') }
}

/** The caller, undefined where the route is open and no token came. @throws unauthenticated */
export function callerUnlessOpen(request: FastifyRequest, openRoutes: OpenRoutes): Caller | undefined {
  if (!request.caller && !openRoutes.has(request.routeOptions.url ?? '')) throw errors.unauthenticated()
  return request.caller
}
