import { flag, integer, type Settings, type SettingsTable, text, type Variable } from '#platform/config.ts'

const secret: Variable<string | undefined> = {
  about:
    'Root of all secrets of identity, the same for every process; at least 32 characters, such as `openssl rand -base64 32`. ' +
    'Needed in production with DATABASE_URL; else one is made once and kept in DATA_DIR.',
  fallback: undefined,
  secret: true,
  parse: value => {
    if (value.length < 32) throw new Error('it must have at least 32 characters.')
    return value
  },
}

export const identitySettings = {
  AUTH_SECRET: secret,
  OPEN_REGISTRATION: flag(true, 'Whether anybody may register; when false, only `capstan user create` makes users.'),
  ACCESS_TOKEN_MINUTES: integer(15, { min: 1, max: 60 }, 'How long an access token works, in minutes.'),
  SESSION_DAYS: integer(30, { min: 1, max: 365 }, 'How long a session lives after its last renewal, in days.'),
  SIGNING_KEY_DAYS: integer(
    90,
    { min: 1, max: 3650 },
    'Age at which the key that signs access tokens is replaced, in days.',
  ),
  TOKEN_ISSUER: text('capstan', 'The `iss` of access tokens.'),
  LOGIN_ATTEMPTS_PER_ACCOUNT: integer(
    10,
    { min: 0, max: 1_000_000 },
    'Passwords that may be tried on one account in 15 minutes; a right one starts the count again; 0 is no limit.',
  ),
  LOGIN_ATTEMPTS_PER_ADDRESS: integer(
    100,
    { min: 0, max: 1_000_000 },
    'Wrong passwords that may come from one address in 15 minutes; 0 is no limit.',
  ),
  PASSWORD_QUEUE_MAX: integer(
    200,
    { min: 1, max: 100_000 },
    'Passwords that may wait to be hashed in a process; past it the answer is 503.',
  ),
} satisfies SettingsTable

export type IdentitySettings = Settings<typeof identitySettings>
