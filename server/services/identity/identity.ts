import type { Database, Tx } from '#platform/database/pool.ts'
import { sqlState } from '#platform/database/pool.ts'
import { isAppError, errors as platformErrors } from '#platform/errors.ts'
import type { ApiKeys } from './api-keys.ts'
import type { Auth, Origin } from './auth.ts'
import { errors } from './errors.ts'
import { makeGate } from './gate.ts'
import type { Attempt, LoginLimits } from './login-limits.ts'
import { assertEmail, assertFullName, assertUsername, signInName } from './names.ts'
import type { Passwords } from './passwords.ts'
import type { Revocations } from './revocations.ts'
import type { IdentitySettings } from './settings.ts'
import * as store from './store.ts'
import { isGenuine, parseRefreshToken, type Tokens, writeRefreshToken } from './tokens.ts'

/** What somebody gets who signs in or renews. */
export interface Grant {
  user: store.UserRow
  sessionId: string
  accessToken: string
  accessTokenExpiresAt: Date
  refreshToken: string
  /** Also the session's and the cookie's end. */
  refreshTokenExpiresAt: Date
  /** For the cookie. */
  sessionToken: string
}

export interface Identity {
  /** @throws username_taken, email_taken, weak_password, bad_username, bad_email, bad_full_name, idempotency_key_reused */
  register(wish: {
    username: string
    password: string
    email: string | undefined
    fullName: string | undefined
    idempotencyKey: string | undefined
    origin: Origin
  }): Promise<Grant>
  /** Makes a user and no session, as an old contract has it. @throws as `register` does */
  registerOnly(wish: { username: string; password: string; email?: string; fullName?: string }): Promise<store.UserRow>
  /** For whoever runs the server: also when registration is closed. @throws as `register` does */
  createUser(wish: {
    username: string
    password: string
    email?: string
    fullName?: string
    role: store.Role
  }): Promise<store.UserRow>
  /** @param given.name a username or an email address. @throws invalid_credentials, account_disabled, too_many_attempts */
  login(given: { name: string; password: string; origin: Origin }): Promise<Grant>
  /**
   * @param given.rotate false leaves the refresh token as it is, as an old contract has it.
   * @throws invalid_refresh_token, refresh_token_reused
   */
  renew(given: { refreshToken: string; rotate?: boolean }): Promise<Grant>
  /** For a browser, which has the session in its cookie. @throws invalid_refresh_token */
  renewSession(sessionId: string): Promise<Grant>
  changePassword(given: {
    userId: string
    sessionId: string
    current: string
    next: string
    address: string
  }): Promise<void>
  listSessions(given: { userId: string; beforeId: string | undefined; limit: number }): Promise<store.SessionListing[]>
  /** @throws not_found */
  endSession(given: { userId: string; sessionId: string }): Promise<void>
  endOtherSessions(given: { userId: string; exceptSessionId: string }): Promise<number>
  /** @throws not_found */
  getUser(id: string): Promise<store.UserRow>
  findUserByName(name: string): Promise<store.UserRow | undefined>
  listUsers(given: { beforeId: string | undefined; limit: number }): Promise<store.UserRow[]>
  /** Ends the user's sessions, so that no token tells an old role. @throws not_found, last_admin */
  setRole(given: { userId: string; role: store.Role }): Promise<store.UserRow>
  /** @throws not_found, last_admin */
  setDisabled(given: { userId: string; disabled: boolean }): Promise<store.UserRow>
}

const dayMs = 86_400_000
/**
 * How long the refresh token that was just replaced still works: a client whose answer was lost asks again and gets the
 * same successor. Later, its use means that two parties hold it.
 */
const replayGraceMs = 60_000

export function makeDecisions(given: {
  db: Database
  auth: Auth
  tokens: Tokens
  passwords: Passwords
  limits: LoginLimits
  revocations: Revocations
  apiKeys: ApiKeys
  refreshKey: Buffer
  settings: IdentitySettings
  clock: () => number
}): Identity {
  const { db, auth, tokens, passwords, limits, revocations, apiKeys, refreshKey, settings, clock } = given
  const accessMs = settings.ACCESS_TOKEN_MINUTES * 60_000
  // An attempt is counted only when its turn has come, so that many right ones at once for one account, as a load test
  // makes them, do not use up the allowance before the first of them is found right.
  const loginGate = makeGate({
    name: 'logins',
    concurrency: Math.max(1, Math.min(passwords.concurrency * 2, settings.LOGIN_ATTEMPTS_PER_ACCOUNT || 1000)),
    waitingMax: settings.PASSWORD_QUEUE_MAX,
  })

  function checkPassword<T>(attempt: Attempt, check: () => Promise<T>): Promise<T> {
    return loginGate.run(() => limits.count(attempt, check))
  }

  async function grant({ session, user }: store.SignedIn): Promise<Grant> {
    const subject = {
      userId: user.id,
      sessionId: session.id,
      name: user.name,
      role: user.role,
      number: user.number,
    }
    const sessionEndsMs = session.expires_at.getTime()
    // Whole seconds, as the token itself has them.
    const accessEndsMs = Math.floor(Math.min(clock() + accessMs, sessionEndsMs) / 1000) * 1000
    return {
      user,
      sessionId: session.id,
      accessToken: await tokens.issue('access', subject, accessEndsMs),
      accessTokenExpiresAt: new Date(accessEndsMs),
      refreshToken: writeRefreshToken(refreshKey, {
        sessionId: session.id,
        generation: session.generation,
        sessionSecret: session.token,
      }),
      refreshTokenExpiresAt: session.expires_at,
      sessionToken: await tokens.issue('session', subject, sessionEndsMs),
    }
  }

  async function create(
    wish: {
      username: string
      password: string
      email: string | undefined
      fullName: string | undefined
      role: store.Role
      idempotencyKey: string | undefined
    },
    origin: Origin | undefined,
  ) {
    const { username, email, fullName } = wish
    assertUsername(username)
    if (fullName !== undefined) assertFullName(fullName)
    if (email !== undefined) assertEmail(email)
    passwords.assertFit(wish.password, username)
    // Asked before hashing, which is dear. The unique indexes decide between those who come at once.
    const taken = await store.findTaken(db, { username: username.toLowerCase(), email: email?.toLowerCase() })
    if (taken.username) throw errors.usernameTaken()
    if (taken.email) throw errors.emailTaken()
    const passwordHash = await passwords.hash(wish.password)
    const { role, idempotencyKey } = wish
    try {
      return await auth.createUser(
        { username, email, fullName, passwordHash, role, registrationKey: idempotencyKey },
        origin,
      )
    } catch (error) {
      throw translateTaken(error)
    }
  }

  /** The first request with this key made a user: the same wish gets the same user, another is refused. */
  async function registerAgain(earlier: store.UserRow, wish: Parameters<Identity['register']>[0]): Promise<Grant> {
    const isSame =
      earlier.username === wish.username.toLowerCase() &&
      (wish.email === undefined || earlier.email === wish.email.toLowerCase()) &&
      (wish.fullName === undefined || earlier.full_name === wish.fullName)
    if (!isSame) throw platformErrors.idempotencyMismatch()
    try {
      return await self.login({ name: earlier.username, password: wish.password, origin: wish.origin })
    } catch (error) {
      if (isAppError(error) && error.code === 'invalid_credentials') throw platformErrors.idempotencyMismatch()
      throw error
    }
  }

  /**
   * The session was made by a transaction that knew nothing of one which disabled the user or changed the password
   * meanwhile. Those lock the user's row, so that either they ended this session or what they did is seen here.
   */
  async function confirm(sessionToken: string, before: store.UserRow): Promise<store.SignedIn> {
    const signedIn = await store.findSignedInByToken(db, sessionToken)
    const samePassword = signedIn?.user.password_changed_at.getTime() === before.password_changed_at.getTime()
    if (signedIn && samePassword && !signedIn.user.disabled_at) return signedIn
    if (signedIn) await store.deleteSessions(db, { userId: signedIn.user.id, sessionId: signedIn.session.id })
    throw signedIn?.user.disabled_at ? errors.accountDisabled() : errors.invalidCredentials()
  }

  async function extend(tx: Tx, { session, user }: store.SignedIn, rotate: boolean): Promise<store.SignedIn> {
    const now = new Date(clock())
    const renewed = {
      ...session,
      generation: rotate ? session.generation + 1 : session.generation,
      rotated_at: rotate ? now : session.rotated_at,
      expires_at: new Date(now.getTime() + settings.SESSION_DAYS * dayMs),
    }
    await store.updateRenewal(tx, {
      sessionId: session.id,
      generation: renewed.generation,
      rotatedAt: renewed.rotated_at,
      expiresAt: renewed.expires_at,
      usedAt: now,
    })
    return { session: renewed, user }
  }

  function isLive(signedIn: store.SignedIn | undefined): signedIn is store.SignedIn {
    return signedIn !== undefined && signedIn.session.expires_at.getTime() > clock() && !signedIn.user.disabled_at
  }

  /** Ends sessions inside the caller's transaction and tells everybody after its commit. */
  async function endSessions(tx: Tx, which: Parameters<typeof store.deleteSessions>[1]): Promise<number> {
    const ended = await store.deleteSessions(tx, which)
    tx.afterCommit(() => revocations.announce(ended))
    return ended.length
  }

  /** Changes a user in a way that ends all sessions; `takesAdmin` says whether it may take an admin away. */
  async function alterUser(
    userId: string,
    options: { takesAdmin: boolean; isDone: (user: store.UserRow) => boolean; change: (tx: Tx) => Promise<void> },
  ): Promise<store.UserRow> {
    return db.tx(async tx => {
      const admins = options.takesAdmin ? await store.lockSomeAdmins(tx) : []
      const user = await store.lockUser(tx, userId)
      if (!user) throw platformErrors.notFound('User')
      if (options.isDone(user)) return user
      if (options.takesAdmin && admins.length === 1 && admins[0] === userId) throw errors.lastAdmin()
      await options.change(tx)
      await endSessions(tx, { userId })
      tx.afterCommit(() => apiKeys.forgetUser(userId))
      return (await store.findUser(tx, userId))!
    })
  }

  const self: Identity = {
    async register(wish) {
      if (!settings.OPEN_REGISTRATION) throw errors.registrationClosed()
      try {
        const { sessionToken } = await create({ ...wish, role: 'user' }, wish.origin)
        return await grant((await store.findSignedInByToken(db, sessionToken!))!)
      } catch (error) {
        if (wish.idempotencyKey === undefined || !isAppError(error)) throw error
        const earlier = await store.findUserByRegistrationKey(db, wish.idempotencyKey)
        if (!earlier) throw error
        return registerAgain(earlier, wish)
      }
    },
    async registerOnly(wish) {
      if (!settings.OPEN_REGISTRATION) throw errors.registrationClosed()
      return self.createUser({ ...wish, role: 'user' })
    },
    async createUser(wish) {
      const { userId } = await create(
        { ...wish, email: wish.email, fullName: wish.fullName, idempotencyKey: undefined },
        undefined,
      )
      return self.getUser(userId)
    },
    async login({ name, password, origin }) {
      const wanted = signInName(name)
      const user = wanted && (await store.findUserBySignIn(db, wanted))
      const attempt = { account: user?.id ?? name, address: origin.address }
      const signedIn = await checkPassword(attempt, async () => {
        const { sessionToken } = await auth.signIn({ email: user?.email, password }, origin)
        return confirm(sessionToken, user!)
      })
      return grant(signedIn)
    },
    async renew({ refreshToken, rotate = true }) {
      const token = parseRefreshToken(refreshToken)
      if (!token) throw errors.invalidRefreshToken()
      const outcome = await db.tx(async tx => {
        const signedIn = await store.lockSession(tx, token.sessionId)
        if (!isLive(signedIn) || !isGenuine(refreshKey, token, signedIn.session.token))
          throw errors.invalidRefreshToken()
        const { session } = signedIn
        if (token.generation === session.generation) return extend(tx, signedIn, rotate)
        const rotatedAtMs = session.rotated_at?.getTime() ?? 0
        if (token.generation === session.generation - 1 && clock() - rotatedAtMs <= replayGraceMs) return signedIn
        // Committed, so that the error does not take it back.
        await endSessions(tx, { userId: session.user_id, sessionId: session.id })
        return 'reused' as const
      })
      if (outcome === 'reused') throw errors.refreshTokenReused()
      return grant(outcome)
    },
    async renewSession(sessionId) {
      const renewed = await db.tx(async tx => {
        const signedIn = await store.lockSession(tx, sessionId)
        if (!isLive(signedIn)) throw errors.invalidRefreshToken()
        return extend(tx, signedIn, false)
      })
      return grant(renewed)
    },
    async changePassword({ userId, sessionId, current, next, address }) {
      const user = await self.getUser(userId)
      passwords.assertFit(next, user.username)
      const attempt = { account: userId, address }
      const was = await checkPassword(attempt, async () => {
        const hash = await store.findPasswordHash(db, userId)
        if (!hash || !(await passwords.verify({ hash, password: current }))) throw errors.wrongPassword()
        return hash
      })
      const hash = await passwords.hash(next)
      await db.tx(async tx => {
        await store.lockUser(tx, userId)
        const changed = await store.updatePassword(tx, { userId, was, hash, at: new Date(clock()) })
        if (!changed) throw platformErrors.conflict('The password was changed by another request just now.')
        await endSessions(tx, { userId, exceptSessionId: sessionId })
      })
    },
    listSessions: which => store.listSessions(db, { ...which, now: new Date(clock()) }),
    async endSession(which) {
      const ended = await db.tx(tx => endSessions(tx, which))
      if (ended === 0) throw platformErrors.notFound('Session')
    },
    endOtherSessions: which => db.tx(tx => endSessions(tx, which)),
    async getUser(id) {
      const user = await store.findUser(db, id)
      if (!user) throw platformErrors.notFound('User')
      return user
    },
    async findUserByName(name) {
      const wanted = signInName(name)
      return wanted && store.findUserBySignIn(db, wanted)
    },
    listUsers: which => store.listUsers(db, which),
    setRole: ({ userId, role }) =>
      alterUser(userId, {
        takesAdmin: role !== 'admin',
        isDone: user => user.role === role,
        change: tx => store.updateRole(tx, { userId, role }),
      }),
    setDisabled: ({ userId, disabled }) =>
      alterUser(userId, {
        takesAdmin: disabled,
        isDone: user => (user.disabled_at !== null) === disabled,
        change: tx => store.updateDisabled(tx, { userId, disabled }),
      }),
  }
  return self
}

/** Somebody else was quicker: the unique index says which field. */
function translateTaken(error: unknown): unknown {
  if (sqlState(error) !== '23505') return error
  const { constraint = '' } = error as { constraint?: string }
  if (constraint.includes('registration_key')) return platformErrors.idempotencyMismatch()
  return constraint.includes('email') ? errors.emailTaken() : errors.usernameTaken()
}
