/** The routes of the old code-runner's contract. The runner has the rest of it. */
import { Type } from 'typebox'
import { AppError, isAppError, errors as platformErrors } from '#platform/errors.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Identity } from './identity.ts'
import { type Cookies, originOf } from './routes.ts'

const config = { access: 'public', errorShape: 'legacy' } as const
const tags = ['old contracts']
const Credentials = Type.Object({
  username: Type.String({ maxLength: 320 }),
  password: Type.String({ maxLength: 1024 }),
})
const LegacyError = Type.Object({ error: Type.String() })
const LegacyUser = Type.Object({
  ID: Type.Integer(),
  CreatedAt: Type.String(),
  UpdatedAt: Type.String(),
  DeletedAt: Type.Null(),
  username: Type.String(),
})

export async function addCompatRoutes(app: HttpApp, parts: { identity: Identity; cookies: Cookies }) {
  const { identity, cookies } = parts

  app.get('/auth/health', { config, schema: { tags, response: { 200: Type.Object({}) } } }, async () => ({}))

  await app.register(async scope => {
    // The contract knows one answer to every bad input.
    scope.addContentTypeParser('*', (_request, _body, done) => done(platformErrors.badRequest('Send JSON.')))

    scope.post(
      '/auth/register',
      {
        config,
        schema: {
          tags,
          body: Credentials,
          response: { 201: Type.Object({ user: LegacyUser }), '4xx': LegacyError },
        },
      },
      async (request, reply) => {
        const { username, password } = request.body as { username: string; password: string }
        const user = await as400(identity.registerOnly({ username, password }))
        const at = user.created_at.toISOString()
        return reply
          .status(201)
          .send({ user: { ID: user.number, CreatedAt: at, UpdatedAt: at, DeletedAt: null, username: user.name } })
      },
    )

    scope.post(
      '/auth/login',
      { config, schema: { tags, body: Credentials, response: { 200: Type.Object({}), '4xx': LegacyError } } },
      async (request, reply) => {
        const { username, password } = request.body as { username: string; password: string }
        const grant = await as400(identity.login({ name: username, password, origin: originOf(request) }))
        cookies.set(reply, grant)
        return {}
      },
    )
  })
}

/** The contract says 400 where the native routes say 401 or 409. */
async function as400<T>(work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    if (!isAppError(error) || (error.status !== 401 && error.status !== 409)) throw error
    throw new AppError({ code: error.code, status: 400, message: error.message, cause: error })
  }
}
