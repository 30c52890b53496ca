/**
 * Better Auth, on the tables of our migration. It makes accounts and sessions, so that its plugins (second factors,
 * passkeys, OAuth) can take part. It is not mounted as a router: `routes.ts` is the only way in from outside.
 * What must be one transaction with the end of sessions (roles, passwords, disabling) is SQL in `store.ts`.
 */
import { runWithTransaction } from '@better-auth/core/context'
import { betterAuth } from 'better-auth'
import { isAPIError } from 'better-auth/api'
import { PostgresDialect } from 'kysely'
import type { Database } from '#platform/database/pool.ts'
import { uuidv7 } from '#platform/ids.ts'
import type { Log } from '#platform/log.ts'
import { errors } from './errors.ts'
import { internalEmail } from './names.ts'
import type { Passwords } from './passwords.ts'
import type { Role } from './store.ts'

/** Where somebody signs in from. */
export interface Origin {
  address: string
  userAgent: string
}

export interface NewUser {
  username: string
  email: string | undefined
  passwordHash: string
  fullName: string | undefined
  role: Role
  registrationKey: string | undefined
}

export interface Auth {
  /** Makes the user, and a session where `origin` is given, in one transaction. Answers ids. */
  createUser(user: NewUser, origin: Origin | undefined): Promise<{ userId: string; sessionToken: string | undefined }>
  /**
   * Checks the password and makes a session. Without an email it takes as long and fails.
   * @throws invalid_credentials
   */
  signIn(given: { email: string | undefined; password: string }, origin: Origin): Promise<{ sessionToken: string }>
  /** Rejects when the tables are not what Better Auth expects. */
  checkSchema(): Promise<void>
}

const addressHeader = 'x-capstan-address'

export function makeAuth(options: {
  db: Database
  secret: string
  passwords: Passwords
  sessionDays: number
  publicUrl: string | undefined
  log: Log
  checksSchema?: boolean
}): Auth {
  const auth = configure(options)
  return {
    async createUser(user, origin) {
      const { adapter, internalAdapter } = await auth.$context
      return runWithTransaction(adapter, async () => {
        const created = await internalAdapter.createUser(
          {
            name: user.username,
            username: user.username.toLowerCase(),
            email: user.email ?? internalEmail(uuidv7()),
            emailVerified: false,
            ...(user.fullName === undefined ? {} : { fullName: user.fullName }),
            role: user.role,
            registrationKey: user.registrationKey,
          },
          { method: 'email-password' },
        )
        await internalAdapter.linkAccount({
          userId: created.id,
          providerId: 'credential',
          accountId: created.id,
          password: user.passwordHash,
        })
        const session = origin
          ? await internalAdapter.createSession(created.id, false, {
              ipAddress: origin.address,
              userAgent: origin.userAgent,
            })
          : undefined
        return { userId: created.id, sessionToken: session?.token }
      })
    },
    async signIn({ email, password }, origin) {
      const headers = new Headers({ [addressHeader]: origin.address, 'user-agent': origin.userAgent })
      try {
        const body = { email: email ?? internalEmail('nobody'), password }
        const { token } = await auth.api.signInEmail({ body, headers })
        return { sessionToken: token }
      } catch (error) {
        if (isAPIError(error) && error.statusCode === 401) throw errors.invalidCredentials()
        throw error
      }
    },
    async checkSchema() {
      const { checkSchema } = await auth.$context
      await checkSchema?.()
    },
  }
}

function configure(options: Parameters<typeof makeAuth>[0]) {
  const { db, secret, passwords, log } = options
  return betterAuth({
    appName: 'Capstan',
    baseURL: options.publicUrl ?? 'http://localhost',
    basePath: '/v1/auth',
    secret,
    // The app's own pool: tables are named with their schema, so that no connection needs a search_path.
    database: {
      dialect: new PostgresDialect({ pool: db.pool }),
      type: 'postgres',
      schemaName: 'identity',
      transaction: true,
    },
    telemetry: { enabled: false },
    // Messages only: what follows them may hold an address or a name.
    logger: { level: 'warn', disableColors: true, log: (_level, message) => log.debug(`better-auth: ${message}`) },
    rateLimit: { enabled: false },
    advanced: {
      database: { generateId: () => uuidv7(), validateSchema: options.checksSchema ?? false },
      ipAddress: { ipAddressHeaders: [addressHeader], ipv6Subnet: 128 },
    },
    emailAndPassword: {
      enabled: true,
      minPasswordLength: passwords.length.min,
      maxPasswordLength: passwords.length.max,
      password: { hash: passwords.hash, verify: passwords.verify },
    },
    user: {
      modelName: 'users',
      fields: { emailVerified: 'email_verified', createdAt: 'created_at', updatedAt: 'updated_at' },
      additionalFields: {
        username: { type: 'string', required: true, unique: true, input: false },
        role: { type: 'string', required: true, input: false },
        fullName: { type: 'string', required: false, input: false, fieldName: 'full_name' },
        registrationKey: {
          type: 'string',
          required: false,
          unique: true,
          input: false,
          returned: false,
          fieldName: 'registration_key',
        },
      },
    },
    account: {
      modelName: 'accounts',
      fields: {
        accountId: 'account_id',
        providerId: 'provider_id',
        userId: 'user_id',
        accessToken: 'access_token',
        refreshToken: 'refresh_token',
        idToken: 'id_token',
        accessTokenExpiresAt: 'access_token_expires_at',
        refreshTokenExpiresAt: 'refresh_token_expires_at',
        createdAt: 'created_at',
        updatedAt: 'updated_at',
      },
    },
    session: {
      modelName: 'sessions',
      expiresIn: options.sessionDays * 24 * 60 * 60,
      fields: {
        userId: 'user_id',
        expiresAt: 'expires_at',
        ipAddress: 'ip_address',
        userAgent: 'user_agent',
        createdAt: 'created_at',
        updatedAt: 'updated_at',
      },
    },
    verification: {
      modelName: 'verifications',
      fields: { expiresAt: 'expires_at', createdAt: 'created_at', updatedAt: 'updated_at' },
    },
  })
}
