import type { FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { decodeCursor, encodeCursor } from '#platform/http/cursor.ts'
import { callerOf } from '#platform/http/guard.ts'
import { idempotencyKeyOf } from '#platform/http/idempotency.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { ApiKeys } from './api-keys.ts'
import type { Origin } from './auth.ts'
import { type Authenticator, cookieName } from './authenticator.ts'
import { errors } from './errors.ts'
import type { Grant, Identity } from './identity.ts'
import { isId } from './names.ts'
import * as shapes from './shapes.ts'
import type { SigningKeys } from './signing-keys.ts'

export interface RouteParts {
  identity: Identity
  apiKeys: ApiKeys
  authenticator: Authenticator
  keys: SigningKeys
  cookies: Cookies
}

/** A scope that no API key can have: who holds a key may not make another or change the password. */
const sessionsOnly = { access: 'user', scope: 'account:manage' } as const
const publicly = { access: 'public' } as const
const adminReads = { access: 'admin', scope: 'users:read' } as const
const adminWrites = { access: 'admin', scope: 'users:write' } as const

export async function addRoutes(app: HttpApp, parts: RouteParts) {
  addSigningIn(app, parts)
  addSessions(app, parts)
  addApiKeys(app, parts)
  addUsers(app, parts)
}

function addSigningIn(app: HttpApp, { identity, authenticator, keys, cookies }: RouteParts) {
  const tags = ['auth']

  app.post(
    '/v1/auth/register',
    {
      config: publicly,
      schema: {
        tags,
        summary: 'Make an account and sign in',
        body: shapes.Registration,
        response: { 201: shapes.Tokens },
      },
    },
    async (request, reply) => {
      const { username, password, email, full_name: fullName } = request.body
      const idempotencyKey = idempotencyKeyOf(request)?.key
      const grant = await identity.register({
        username,
        password,
        email,
        fullName,
        idempotencyKey,
        origin: originOf(request),
      })
      cookies.set(reply, grant)
      return reply.status(201).send(shapes.showGrant(grant))
    },
  )

  app.post(
    '/v1/auth/login',
    {
      config: publicly,
      schema: {
        tags,
        summary: 'Sign in with a username or an email address',
        body: shapes.Login,
        response: { 200: shapes.Tokens },
      },
    },
    async (request, reply) => {
      const { username, password } = request.body
      const grant = await identity.login({ name: username, password, origin: originOf(request) })
      cookies.set(reply, grant)
      return shapes.showGrant(grant)
    },
  )

  app.post(
    '/v1/auth/renew',
    {
      config: publicly,
      schema: {
        tags,
        summary: 'Get a new access token for a refresh token, or for the cookie',
        description:
          'A refresh token is replaced by each use. Used again within a minute it answers the same successor; later, ' +
          'it ends the session.',
        body: Type.Union([shapes.Renewal, shapes.Nothing]),
        response: { 200: shapes.Tokens },
      },
    },
    async (request, reply) => {
      const refreshToken = request.body?.refresh_token
      if (refreshToken !== undefined) {
        const grant = await identity.renew({ refreshToken })
        return shapes.showGrant(grant)
      }
      const caller = await authenticator.authenticate(request)
      if (caller?.by !== 'session' || request.headers.authorization !== undefined) throw errors.invalidRefreshToken()
      const grant = await identity.renewSession(caller.credentialId)
      cookies.set(reply, grant)
      return shapes.showGrant(grant, { refreshToken: false })
    },
  )

  app.post(
    '/v1/auth/logout',
    {
      config: sessionsOnly,
      schema: { tags, summary: 'End this session', response: { 204: shapes.Nothing } },
    },
    async (request, reply) => {
      const { userId, credentialId } = callerOf(request)
      await identity.endSession({ userId, sessionId: credentialId })
      cookies.clear(reply)
      return reply.status(204).send(null)
    },
  )

  app.get(
    '/v1/auth/me',
    { config: { access: 'user' }, schema: { tags, summary: 'Who you are', response: { 200: shapes.User } } },
    async request => shapes.showUser(await identity.getUser(callerOf(request).userId)),
  )

  app.post(
    '/v1/auth/password',
    {
      config: sessionsOnly,
      schema: {
        tags,
        summary: 'Change the password; ends all other sessions',
        body: shapes.PasswordChange,
        response: { 204: shapes.Nothing },
      },
    },
    async (request, reply) => {
      const { userId, credentialId } = callerOf(request)
      const { current_password: current, new_password: next } = request.body
      await identity.changePassword({ userId, sessionId: credentialId, current, next, address: request.ip })
      return reply.status(204).send(null)
    },
  )

  app.get(
    '/.well-known/jwks.json',
    {
      config: publicly,
      schema: {
        tags,
        summary: 'The keys that access tokens are signed with (RFC 7517)',
        response: { 200: shapes.Jwks },
      },
    },
    async (_request, reply) => {
      reply.header('cache-control', 'public, max-age=300')
      return (await keys.jwks()) as never
    },
  )
}

function addSessions(app: HttpApp, { identity }: RouteParts) {
  const tags = ['sessions']

  app.get(
    '/v1/auth/sessions',
    {
      config: sessionsOnly,
      schema: {
        tags,
        summary: 'Your sessions, newest first',
        querystring: shapes.Page,
        response: { 200: Type.Object({ sessions: Type.Array(shapes.Session), next_cursor: shapes.NextCursor }) },
      },
    },
    async request => {
      const { userId, credentialId } = callerOf(request)
      const { limit } = request.query
      const rows = await identity.listSessions({ userId, beforeId: beforeOf(request.query.cursor), limit })
      return { sessions: rows.map(row => shapes.showSession(row, credentialId)), next_cursor: nextOf(rows, limit) }
    },
  )

  app.delete(
    '/v1/auth/sessions/:id',
    {
      config: sessionsOnly,
      schema: { tags, summary: 'End a session of yours', params: shapes.ById, response: { 204: shapes.Nothing } },
    },
    async (request, reply) => {
      await identity.endSession({ userId: callerOf(request).userId, sessionId: request.params.id })
      return reply.status(204).send(null)
    },
  )

  app.delete(
    '/v1/auth/sessions',
    {
      config: sessionsOnly,
      schema: {
        tags,
        summary: 'End all your sessions but this one',
        response: { 200: Type.Object({ ended: Type.Integer() }) },
      },
    },
    async request => {
      const { userId, credentialId } = callerOf(request)
      return { ended: await identity.endOtherSessions({ userId, exceptSessionId: credentialId }) }
    },
  )
}

function addApiKeys(app: HttpApp, { apiKeys }: RouteParts) {
  const tags = ['api-keys']

  app.post(
    '/v1/auth/api-keys',
    {
      config: sessionsOnly,
      schema: { tags, summary: 'Make an API key', body: shapes.ApiKeyWish, response: { 201: shapes.NewApiKey } },
    },
    async (request, reply) => {
      const { userId, role } = callerOf(request)
      const { name, scopes, expires_in_days: expiresInDays } = request.body
      const idempotencyKey = idempotencyKeyOf(request)?.key
      const made = await apiKeys.create({ owner: { userId, role }, name, scopes, expiresInDays, idempotencyKey })
      return reply.status(201).send({ ...shapes.showApiKey(made.row), key: made.key })
    },
  )

  app.get(
    '/v1/auth/api-keys',
    {
      config: sessionsOnly,
      schema: {
        tags,
        summary: 'Your API keys, newest first',
        querystring: shapes.Page,
        response: { 200: Type.Object({ api_keys: Type.Array(shapes.ApiKey), next_cursor: shapes.NextCursor }) },
      },
    },
    async request => {
      const { limit } = request.query
      const { userId } = callerOf(request)
      const rows = await apiKeys.list({ userId, beforeId: beforeOf(request.query.cursor), limit })
      return { api_keys: rows.map(shapes.showApiKey), next_cursor: nextOf(rows, limit) }
    },
  )

  app.delete(
    '/v1/auth/api-keys/:id',
    {
      config: sessionsOnly,
      schema: { tags, summary: 'Delete an API key', params: shapes.ById, response: { 204: shapes.Nothing } },
    },
    async (request, reply) => {
      await apiKeys.delete({ userId: callerOf(request).userId, id: request.params.id })
      return reply.status(204).send(null)
    },
  )
}

function addUsers(app: HttpApp, { identity }: RouteParts) {
  const tags = ['users']

  app.get(
    '/v1/users',
    {
      config: adminReads,
      schema: {
        tags,
        summary: 'All users, newest first',
        querystring: shapes.Page,
        response: { 200: Type.Object({ users: Type.Array(shapes.User), next_cursor: shapes.NextCursor }) },
      },
    },
    async request => {
      const { limit } = request.query
      const rows = await identity.listUsers({ beforeId: beforeOf(request.query.cursor), limit })
      return { users: rows.map(shapes.showUser), next_cursor: nextOf(rows, limit) }
    },
  )

  app.get(
    '/v1/users/:id',
    { config: adminReads, schema: { tags, summary: 'A user', params: shapes.ById, response: { 200: shapes.User } } },
    async request => shapes.showUser(await identity.getUser(request.params.id)),
  )

  app.post(
    '/v1/users/:id/role',
    {
      config: adminWrites,
      schema: {
        tags,
        summary: 'Give a user a role; ends the user’s sessions',
        params: shapes.ById,
        body: shapes.RoleChange,
        response: { 200: shapes.User },
      },
    },
    async request => shapes.showUser(await identity.setRole({ userId: request.params.id, role: request.body.role })),
  )

  for (const [verb, disabled] of [
    ['disable', true],
    ['enable', false],
  ] as const) {
    app.post(
      `/v1/users/:id/${verb}`,
      {
        config: adminWrites,
        schema: {
          tags,
          summary: disabled ? 'Disable a user: no sign-in, no token, no API key' : 'Enable a user again',
          params: shapes.ById,
          response: { 200: shapes.User },
        },
      },
      async request => {
        const { id } = request.params as { id: string }
        return shapes.showUser(await identity.setDisabled({ userId: id, disabled }))
      },
    )
  }
}

/** Where a request comes from, fit for a header and a column. */
export function originOf(request: FastifyRequest): Origin {
  const userAgent = (request.headers['user-agent'] ?? '').replace(/[^\x20-\x7e]/g, '').slice(0, 300)
  return { address: request.ip, userAgent }
}

function beforeOf(cursor: string | undefined): string | undefined {
  return decodeCursor(cursor, (values): values is [string] => values.length === 1 && isId(values[0]))?.[0]
}

function nextOf(rows: readonly { id: string }[], limit: number): string | null {
  return rows.length < limit ? null : encodeCursor([rows.at(-1)!.id])
}

export interface Cookies {
  set(reply: FastifyReply, grant: Grant): void
  clear(reply: FastifyReply): void
}

/** @param options.secure whether browsers reach this server by HTTPS. */
export function makeCookies(options: { secure: boolean; clock: () => number }): Cookies {
  const common = { path: '/', httpOnly: true, sameSite: 'lax', secure: options.secure } as const
  return {
    set(reply, grant) {
      const maxAge = Math.floor((grant.refreshTokenExpiresAt.getTime() - options.clock()) / 1000)
      reply.setCookie(cookieName, grant.sessionToken, { ...common, maxAge })
    },
    clear(reply) {
      reply.clearCookie(cookieName, common)
    },
  }
}
