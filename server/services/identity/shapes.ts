/** What goes over the wire. */
import { type Static, Type } from 'typebox'
import { userRoles } from '#platform/http/guard.ts'
import type { Grant } from './identity.ts'
import { shownEmail } from './names.ts'
import type { ApiKeyRow, SessionListing, UserRow } from './store.ts'

const Time = Type.String({ format: 'date-time' })
const Id = Type.String({ format: 'uuid' })
const Role = Type.Enum([...userRoles])

export const User = Type.Object({
  id: Id,
  number: Type.Integer({ description: 'The integer id that the old contracts show.' }),
  username: Type.String(),
  email: Type.Union([Type.String(), Type.Null()]),
  full_name: Type.Union([Type.String(), Type.Null()]),
  role: Role,
  disabled: Type.Boolean(),
  created_at: Time,
  password_changed_at: Time,
})

export function showUser(user: UserRow): Static<typeof User> {
  return {
    id: user.id,
    number: user.number,
    username: user.name,
    email: shownEmail(user.email),
    full_name: user.full_name,
    role: user.role,
    disabled: user.disabled_at !== null,
    created_at: user.created_at.toISOString(),
    password_changed_at: user.password_changed_at.toISOString(),
  }
}

export const Tokens = Type.Object({
  user: User,
  session_id: Id,
  access_token: Type.String({ description: 'For `Authorization: Bearer`.' }),
  access_token_expires_at: Time,
  refresh_token: Type.Optional(
    Type.String({ description: 'For POST /v1/auth/renew. Not given where the session was renewed by its cookie.' }),
  ),
  refresh_token_expires_at: Time,
})

export function showGrant(
  grant: Grant,
  options: { refreshToken: boolean } = { refreshToken: true },
): Static<typeof Tokens> {
  return {
    user: showUser(grant.user),
    session_id: grant.sessionId,
    access_token: grant.accessToken,
    access_token_expires_at: grant.accessTokenExpiresAt.toISOString(),
    ...(options.refreshToken ? { refresh_token: grant.refreshToken } : {}),
    refresh_token_expires_at: grant.refreshTokenExpiresAt.toISOString(),
  }
}

export const Session = Type.Object({
  id: Id,
  current: Type.Boolean(),
  created_at: Time,
  last_used_at: Type.String({ format: 'date-time', description: 'To the minute.' }),
  expires_at: Time,
  user_agent: Type.String(),
  address: Type.String(),
})

export function showSession(row: SessionListing, currentId: string): Static<typeof Session> {
  return {
    id: row.id,
    current: row.id === currentId,
    created_at: row.created_at.toISOString(),
    last_used_at: row.last_used_at.toISOString(),
    expires_at: row.expires_at.toISOString(),
    user_agent: row.user_agent ?? '',
    address: row.ip_address ?? '',
  }
}

const apiKeyFields = {
  id: Id,
  name: Type.String(),
  hint: Type.String({ description: 'The key’s first characters.' }),
  scopes: Type.Array(Type.String()),
  created_at: Time,
  expires_at: Type.Union([Time, Type.Null()]),
  last_used_at: Type.Union([Type.String({ format: 'date-time', description: 'To the minute.' }), Type.Null()]),
}

export const ApiKey = Type.Object(apiKeyFields)
export const NewApiKey = Type.Object({ ...apiKeyFields, key: Type.String({ description: 'Shown this once.' }) })

export function showApiKey(row: ApiKeyRow): Static<typeof ApiKey> {
  return {
    id: row.id,
    name: row.name,
    hint: row.hint,
    scopes: row.scopes,
    created_at: row.created_at.toISOString(),
    expires_at: row.expires_at?.toISOString() ?? null,
    last_used_at: row.last_used_at?.toISOString() ?? null,
  }
}

export const Jwks = Type.Object({
  keys: Type.Array(
    Type.Object({
      kid: Type.String(),
      kty: Type.String(),
      crv: Type.String(),
      x: Type.String(),
      alg: Type.String(),
      use: Type.String(),
    }),
  ),
})

// ── requests ──

const strict = { additionalProperties: false }
/** Names and passwords have rules of their own; these bounds only keep nonsense out. */
const Name = Type.String({ maxLength: 320 })
const Password = Type.String({ maxLength: 1024 })

export const Registration = Type.Object(
  {
    username: Name,
    password: Password,
    email: Type.Optional(Type.String({ maxLength: 320 })),
    full_name: Type.Optional(Type.String({ maxLength: 1000 })),
  },
  strict,
)
export const Login = Type.Object(
  { username: Type.String({ maxLength: 320, description: 'The username or the email address.' }), password: Password },
  strict,
)
export const Renewal = Type.Object({ refresh_token: Type.Optional(Type.String({ maxLength: 512 })) }, strict)
export const PasswordChange = Type.Object({ current_password: Password, new_password: Password }, strict)
export const ApiKeyWish = Type.Object(
  {
    // No control characters and no half of a surrogate pair, which PostgreSQL could not store.
    name: Type.String({ minLength: 1, maxLength: 100, pattern: '^[^\\u0000-\\u001f\\u007f\\ud800-\\udfff]+$' }),
    scopes: Type.Array(Type.String({ maxLength: 100 }), { minItems: 1, maxItems: 50 }),
    expires_in_days: Type.Optional(Type.Integer({ minimum: 1, maximum: 3650 })),
  },
  strict,
)
export const RoleChange = Type.Object({ role: Role }, strict)
export const ById = Type.Object({ id: Id }, strict)
export const Page = Type.Object(
  {
    limit: Type.Integer({ minimum: 1, maximum: 100, default: 50 }),
    cursor: Type.Optional(Type.String({ maxLength: 500 })),
  },
  strict,
)
export const Nothing = Type.Null({ description: 'No content.' })

export const NextCursor = Type.Union([Type.String(), Type.Null()], {
  description: 'For the next page; null on the last.',
})
