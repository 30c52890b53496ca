import type { FastifyInstance, FastifyRequest, RouteOptions } from 'fastify'
import { errors } from '../errors.ts'

/** What a user may do beyond the own: bankers bring money in and out, admins do everything. */
export const userRoles = ['user', 'banker', 'admin'] as const
export type UserRole = (typeof userRoles)[number]

/** Who makes a request. */
export interface Caller {
  userId: string
  name: string
  role: UserRole
  /** How the caller proved it. */
  by: 'session' | 'api_key'
  /** The session's or API key's id. */
  credentialId: string
  /** `undefined` allows everything the role does; API keys carry a list. */
  scopes?: readonly string[]
  /** The integer by which the old contracts know the caller. */
  number?: number
}

/**
 * Who may call a route. Every route states it, or the server does not start.
 * - `public`: anybody; the caller is not looked at.
 * - `optional`: anybody; the caller is known when a token came, and a bad token is refused.
 * - `user`: whoever is logged in.
 * - `banker`: the role banker or admin.
 * - `admin`: the role admin.
 */
export type Access = 'public' | 'optional' | 'user' | 'banker' | 'admin'

/** What a request says about who makes it, whatever carried it. */
export type Credentials = Pick<FastifyRequest, 'headers' | 'method' | 'host'>

/** Answers the caller, `undefined` when no credential came, or throws `unauthenticated` for a bad one. */
export type Authenticate = (request: Credentials) => Promise<Caller | undefined>

/** What stands behind `authorization:` where there is no HTTP request: a live connection's token, a gRPC call's. */
export function asBearer(authorization: string): Credentials {
  return { headers: { authorization }, method: 'POST', host: '' }
}

declare module 'fastify' {
  interface FastifyContextConfig {
    access?: Access
    /** The scope an API key needs for this route, such as `runs:write`. A key reaches a route of a role only by its scope. */
    scope?: string
    /** `legacy` renders errors as `{"error": "…"}`, as the old contracts do. */
    errorShape?: 'problem' | 'legacy'
    /** For probes and scrapers: answered to the end, and counted against nobody. */
    isOperation?: boolean
    /** Answered for as long as the client stays, which is no time to answer: not measured. */
    isStream?: boolean
    /** Tells requests whose bodies may take as long as the client likes: the route sees to clients that send nothing. */
    isUnending?: (request: FastifyRequest) => boolean
  }
  interface FastifyRequest {
    caller: Caller | undefined
  }
}

/**
 * Adds the guard to every route registered afterwards.
 * @param onRefused counts a refused credential against whoever sent it
 */
export function installGuard(
  app: FastifyInstance,
  given: { authenticate: Authenticate; onRefused: (request: FastifyRequest) => Promise<void> },
) {
  app.decorateRequest('caller', undefined)
  const routes: RouteOptions[] = []
  app.addHook('onRoute', route => {
    routes.push(route)
  })
  // Looked at when all is registered: a plugin's routes get their access from the plugin's own hook.
  app.addHook('onReady', async () => {
    const open = routes.find(route => route.config?.access === undefined)
    if (open) throw new Error(`The route ${open.method} ${open.url} does not state who may call it (config.access).`)
  })
  app.addHook('onRequest', async request => {
    const { access, scope } = request.routeOptions.config
    if (access === 'public' || request.is404) return
    if (access === undefined) throw errors.forbidden()
    try {
      request.caller = await given.authenticate(request)
    } catch (error) {
      await given.onRefused(request)
      throw error
    }
    admit(request.caller, access, scope)
  })
}

/** @throws unauthenticated, forbidden, missing_scope */
export function admit(caller: Caller | undefined, access: Access, scope: string | undefined) {
  if (caller === undefined) {
    if (access === 'optional') return
    throw errors.unauthenticated()
  }
  if (access === 'admin' && caller.role !== 'admin') throw errors.forbidden('Only admins may do this.')
  if (access === 'banker' && caller.role === 'user') throw errors.forbidden('Only bankers and admins may do this.')
  const isOfRole = access === 'admin' || access === 'banker'
  if (isOfRole && scope === undefined && caller.scopes !== undefined) {
    throw errors.forbidden('No API key may do this; log in.')
  }
  if (scope !== undefined) assertScope(caller, scope)
}

/** @throws missing_scope for an API key that lacks it */
export function assertScope(caller: Caller, scope: string) {
  if (caller.scopes !== undefined && !caller.scopes.includes(scope)) throw errors.missingScope(scope)
}

/** The caller of a route whose access is `user` or a role. */
export function callerOf(request: FastifyRequest): Caller {
  if (request.caller === undefined) throw errors.unauthenticated()
  return request.caller
}
