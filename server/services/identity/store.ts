import type { Queryable, Tx } from '#platform/database/pool.ts'
import type { UserRole } from '#platform/http/guard.ts'

export type Role = UserRole

export interface UserRow {
  id: string
  number: number
  username: string
  name: string
  email: string
  full_name: string | null
  role: Role
  disabled_at: Date | null
  password_changed_at: Date
  created_at: Date
}

export interface SessionRow {
  id: string
  token: string
  user_id: string
  generation: number
  rotated_at: Date | null
  expires_at: Date
}

/** A session with its user. */
export interface SignedIn {
  session: SessionRow
  user: UserRow
}

export interface SessionListing {
  id: string
  created_at: Date
  last_used_at: Date
  expires_at: Date
  user_agent: string | null
  ip_address: string | null
}

export interface ApiKeyRow {
  id: string
  user_id: string
  name: string
  hint: string
  scopes: string[]
  expires_at: Date | null
  last_used_at: Date | null
  created_at: Date
}

const userColumns =
  'u.id, u.number, u.username, u.name, u.email, u.full_name, u.role, u.disabled_at, u.password_changed_at, u.created_at'
const sessionColumns = 's.id, s.token, s.user_id, s.generation, s.rotated_at, s.expires_at'

// ── users ──

export async function findUserBySignIn(db: Queryable, name: { username: string } | { email: string }) {
  const { rows } =
    'username' in name
      ? await db.query<UserRow & Row>(`select ${userColumns} from identity.users u where u.username = $1`, [
          name.username,
        ])
      : await db.query<UserRow & Row>(`select ${userColumns} from identity.users u where u.email = $1`, [name.email])
  return rows[0]
}

export async function findUser(db: Queryable, id: string) {
  const { rows } = await db.query<UserRow & Row>(`select ${userColumns} from identity.users u where u.id = $1`, [id])
  return rows[0]
}

export async function findUserByRegistrationKey(db: Queryable, key: string) {
  const { rows } = await db.query<UserRow & Row>(
    `select ${userColumns} from identity.users u where u.registration_key = $1`,
    [key],
  )
  return rows[0]
}

/** Which of the two are in use. */
export async function findTaken(db: Queryable, given: { username: string; email: string | undefined }) {
  const { rows } = await db.query<{ username: boolean; email: boolean }>(
    `select exists (select from identity.users where username = $1) as username,
            exists (select from identity.users where email = $2) as email`,
    [given.username, given.email ?? null],
  )
  return rows[0]!
}

/** Newest first. */
export async function listUsers(db: Queryable, given: { beforeId: string | undefined; limit: number }) {
  const { rows } = await db.query<UserRow & Row>(
    `select ${userColumns} from identity.users u where $1::uuid is null or u.id < $1 order by u.id desc limit $2`,
    [given.beforeId ?? null, given.limit],
  )
  return rows
}

/**
 * Waits for, and then keeps out, whoever makes a session of this user: a new session's foreign key needs the row.
 */
export async function lockUser(tx: Tx, id: string) {
  const { rows } = await tx.query<UserRow & Row>(
    `select ${userColumns} from identity.users u where u.id = $1 for update`,
    [id],
  )
  return rows[0]
}

/** Two of them, which is all that matters; locked, so that two admins cannot demote each other at once. */
export async function lockSomeAdmins(tx: Tx): Promise<string[]> {
  const { rows } = await tx.query<{ id: string }>(
    `select id from identity.users where role = 'admin' and disabled_at is null order by id limit 2 for update`,
  )
  return rows.map(row => row.id)
}

export async function updateRole(tx: Tx, given: { userId: string; role: Role }) {
  await tx.query(`update identity.users set role = $2, updated_at = now() where id = $1`, [given.userId, given.role])
}

export async function updateDisabled(tx: Tx, given: { userId: string; disabled: boolean }) {
  await tx.query(
    `update identity.users set disabled_at = case when $2 then coalesce(disabled_at, now()) end, updated_at = now()
     where id = $1`,
    [given.userId, given.disabled],
  )
}

export async function findPasswordHash(db: Queryable, userId: string): Promise<string | undefined> {
  const { rows } = await db.query<{ password: string | null }>(
    `select password from identity.accounts where user_id = $1 and provider_id = 'credential'`,
    [userId],
  )
  return rows[0]?.password ?? undefined
}

/** False when the password is no longer the one whose hash is `was`. */
export async function updatePassword(tx: Tx, given: { userId: string; was: string; hash: string; at: Date }) {
  const { rowCount } = await tx.query(
    `with changed as (
       update identity.accounts set password = $3, updated_at = $4
       where user_id = $1 and provider_id = 'credential' and password = $2 returning user_id)
     update identity.users set password_changed_at = $4, updated_at = $4 where id in (select user_id from changed)`,
    [given.userId, given.was, given.hash, given.at],
  )
  return rowCount === 1
}

export async function forgetRegistrationKeys(db: Queryable, given: { hours: number; limit: number }): Promise<number> {
  const { rowCount } = await db.query(
    `update identity.users set registration_key = null where id in (
       select id from identity.users
       where registration_key is not null and created_at < now() - make_interval(hours => $1) limit $2
       for no key update skip locked)`,
    [given.hours, given.limit],
  )
  return rowCount
}

// ── sessions ──

export async function findSignedInByToken(db: Queryable, token: string): Promise<SignedIn | undefined> {
  return findSignedIn(db, 's.token = $1', token)
}

export async function findSignedInById(db: Queryable, sessionId: string): Promise<SignedIn | undefined> {
  return findSignedIn(db, 's.id = $1', sessionId)
}

async function findSignedIn(db: Queryable, condition: string, value: string): Promise<SignedIn | undefined> {
  const { rows } = await db.query<{ session: SessionJson; user: UserJson } & Row>(
    `select to_jsonb(s) as session, to_jsonb(u) as user
     from (select ${sessionColumns} from identity.sessions s where ${condition}) s
     join (select ${userColumns} from identity.users u) u on u.id = s.user_id`,
    [value],
  )
  return rows[0] && { session: sessionFromJson(rows[0].session), user: userFromJson(rows[0].user) }
}

export async function lockSession(tx: Tx, sessionId: string): Promise<SignedIn | undefined> {
  const { rows } = await tx.query<SessionRow & Row>(
    `select ${sessionColumns} from identity.sessions s where s.id = $1 for update`,
    [sessionId],
  )
  if (!rows[0]) return undefined
  const user = await findUser(tx, rows[0].user_id)
  return user && { session: rows[0], user }
}

export async function updateRenewal(
  tx: Tx,
  given: { sessionId: string; generation: number; rotatedAt: Date | null; expiresAt: Date; usedAt: Date },
) {
  await tx.query(
    `update identity.sessions set generation = $2, rotated_at = $3, expires_at = $4,
       last_used_at = $5, updated_at = $5 where id = $1`,
    [given.sessionId, given.generation, given.rotatedAt, given.expiresAt, given.usedAt],
  )
}

/** Newest first. */
export async function listSessions(
  db: Queryable,
  given: { userId: string; now: Date; beforeId: string | undefined; limit: number },
) {
  const { rows } = await db.query<SessionListing & Row>(
    `select id, created_at, last_used_at, expires_at, user_agent, ip_address from identity.sessions
     where user_id = $1 and expires_at > $2 and ($3::uuid is null or id < $3) order by id desc limit $4`,
    [given.userId, given.now, given.beforeId ?? null, given.limit],
  )
  return rows
}

/** Answers the ids of those that were. The trigger `sessions_end` records them for every process. */
export async function deleteSessions(
  db: Queryable,
  given: { userId: string; sessionId?: string; exceptSessionId?: string },
): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `delete from identity.sessions
     where user_id = $1 and ($2::uuid is null or id = $2) and ($3::uuid is null or id <> $3) returning id`,
    [given.userId, given.sessionId ?? null, given.exceptSessionId ?? null],
  )
  return rows.map(row => row.id)
}

export async function deleteExpiredSessions(db: Queryable, given: { before: Date; limit: number }): Promise<number> {
  const { rowCount } = await db.query(
    `delete from identity.sessions where id in (
       select id from identity.sessions where expires_at < $1 limit $2 for update skip locked)`,
    [given.before, given.limit],
  )
  return rowCount
}

export async function touchSessions(db: Queryable, uses: readonly { sessionId: string; usedAt: Date }[]) {
  // What somebody else holds is left out: this is not worth waiting for, nor a deadlock.
  await db.query(
    `with held as (select id from identity.sessions where id = any($1) for no key update skip locked)
     update identity.sessions s set last_used_at = greatest(s.last_used_at, use.at)
     from held join unnest($1::uuid[], $2::timestamptz[]) as use (id, at) using (id) where s.id = held.id`,
    [uses.map(use => use.sessionId), uses.map(use => use.usedAt)],
  )
}

// ── revoked sessions ──

export interface Revocation {
  session_id: string
  /** As text: a Date would lose its microseconds. */
  revoked_at: string
}

/** In order of time, from `overlapSeconds` before the given one; from the beginning without one. */
export async function listRevocations(
  db: Queryable,
  given: { after: Revocation | undefined; overlapSeconds: number; limit: number },
): Promise<Revocation[]> {
  const { rows } = await db.query<Revocation & Row>(
    `select session_id, revoked_at::text as revoked_at from identity.revoked_sessions
     where (revoked_at, session_id) > ($1::timestamptz - make_interval(secs => $2), $3::uuid)
     order by revoked_at, session_id limit $4`,
    [
      given.after?.revoked_at ?? '-infinity',
      given.overlapSeconds,
      given.after?.session_id ?? '00000000-0000-0000-0000-000000000000',
      given.limit,
    ],
  )
  return rows
}

export async function deleteOldRevocations(db: Queryable, given: { minutes: number; limit: number }): Promise<number> {
  const { rowCount } = await db.query(
    `delete from identity.revoked_sessions where session_id in (
       select session_id from identity.revoked_sessions
       where revoked_at < now() - make_interval(mins => $1) limit $2 for update skip locked)`,
    [given.minutes, given.limit],
  )
  return rowCount
}

// ── API keys ──

const apiKeyColumns = 'k.id, k.user_id, k.name, k.hint, k.scopes, k.expires_at, k.last_used_at, k.created_at'

/** Answers undefined when the same key is there already. */
export async function insertApiKey(
  db: Queryable,
  given: {
    id: string
    userId: string
    name: string
    hash: Buffer
    hint: string
    scopes: readonly string[]
    expiresAt: Date | null
    at: Date
  },
) {
  const { rows } = await db.query<ApiKeyRow & Row>(
    `insert into identity.api_keys as k (id, user_id, name, hash, hint, scopes, expires_at, created_at)
     values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (hash) do nothing returning ${apiKeyColumns}`,
    [given.id, given.userId, given.name, given.hash, given.hint, given.scopes, given.expiresAt, given.at],
  )
  return rows[0]
}

export async function countApiKeys(db: Queryable, userId: string): Promise<number> {
  const { rows } = await db.query<{ count: number }>(
    `select count(*) as count from identity.api_keys where user_id = $1`,
    [userId],
  )
  return rows[0]!.count
}

/** Newest first. */
export async function listApiKeys(
  db: Queryable,
  given: { userId: string; beforeId: string | undefined; limit: number },
) {
  const { rows } = await db.query<ApiKeyRow & Row>(
    `select ${apiKeyColumns} from identity.api_keys k
     where k.user_id = $1 and ($2::uuid is null or k.id < $2) order by k.id desc limit $3`,
    [given.userId, given.beforeId ?? null, given.limit],
  )
  return rows
}

/** With its owner. */
export async function findApiKey(db: Queryable, hash: Buffer) {
  const { rows } = await db.query<
    ApiKeyRow & { owner_name: string; owner_role: Role; owner_number: number; owner_disabled: boolean } & Row
  >(
    `select ${apiKeyColumns}, u.name as owner_name, u.role as owner_role, u.number as owner_number,
       u.disabled_at is not null as owner_disabled
     from identity.api_keys k join identity.users u on u.id = k.user_id where k.hash = $1`,
    [hash],
  )
  return rows[0]
}

export async function deleteApiKey(db: Queryable, given: { id: string; userId: string }): Promise<boolean> {
  const { rowCount } = await db.query(`delete from identity.api_keys where id = $1 and user_id = $2`, [
    given.id,
    given.userId,
  ])
  return rowCount === 1
}

export async function touchApiKeys(db: Queryable, uses: readonly { id: string; usedAt: Date }[]) {
  await db.query(
    `with held as (select id from identity.api_keys where id = any($1) for no key update skip locked)
     update identity.api_keys k set last_used_at = greatest(k.last_used_at, use.at)
     from held join unnest($1::uuid[], $2::timestamptz[]) as use (id, at) using (id) where k.id = held.id`,
    [uses.map(use => use.id), uses.map(use => use.usedAt)],
  )
}

// ── signing keys ──

export interface SigningKeyRow {
  kid: string
  public_jwk: Record<string, unknown>
  private_key: Buffer
  /** By the database's clock, on which all processes agree. */
  age_seconds: number
}

/** Newest first. */
export async function listSigningKeys(db: Queryable, limit: number) {
  const { rows } = await db.query<SigningKeyRow & Row>(
    `select kid, public_jwk, private_key, extract(epoch from now() - created_at)::float8 as age_seconds
     from identity.signing_keys order by created_at desc, kid limit $1`,
    [limit],
  )
  return rows
}

export async function insertSigningKey(db: Queryable, key: { kid: string; publicJwk: object; privateKey: Buffer }) {
  await db.query(`insert into identity.signing_keys (kid, public_jwk, private_key) values ($1, $2, $3)`, [
    key.kid,
    JSON.stringify(key.publicJwk),
    key.privateKey,
  ])
}

/** Never the newest one. */
export async function deleteOldSigningKeys(db: Queryable, days: number): Promise<number> {
  const { rowCount } = await db.query(
    `delete from identity.signing_keys where created_at < now() - make_interval(days => $1)
       and created_at < (select max(created_at) from identity.signing_keys)`,
    [days],
  )
  return rowCount
}

// ── login attempts ──

/** Counts one attempt for each subject. */
export async function countAttempts(db: Queryable, given: { subjects: readonly string[]; windowSeconds: number }) {
  const { rows } = await db.query<{ subject: string; attempts: number; resets_in: number }>(
    `insert into identity.login_attempts as held (subject, attempts, resets_at)
     select subject, 1, now() + make_interval(secs => $2) from unnest($1::text[]) as subject order by subject
     on conflict (subject) do update set
       attempts = case when held.resets_at <= now() then 1 else held.attempts + 1 end,
       resets_at = case when held.resets_at <= now() then excluded.resets_at else held.resets_at end
     returning subject, attempts, extract(epoch from resets_at - now())::float8 as resets_in`,
    [given.subjects, given.windowSeconds],
  )
  return rows
}

/** One attempt of both; with `all`, the account's whole allowance. */
export async function giveBackAttempts(db: Queryable, given: { account: string; address: string; all: boolean }) {
  // Locked in the order in which `countAttempts` locks them, so that the two cannot deadlock.
  await db.query(
    `with held as (
       select subject from identity.login_attempts where subject in ($1, $2) order by subject for no key update)
     update identity.login_attempts a
     set attempts = case when a.subject = $1 and $3 then 0 else greatest(a.attempts - 1, 0) end
     from held where a.subject = held.subject`,
    [given.account, given.address, given.all],
  )
}

export async function deleteOldAttempts(db: Queryable, limit: number): Promise<number> {
  const { rowCount } = await db.query(
    `delete from identity.login_attempts where subject in (
       select subject from identity.login_attempts where resets_at < now() limit $1 for update skip locked)`,
    [limit],
  )
  return rowCount
}

type Row = Record<string, unknown>
type Jsoned<T> = { [K in keyof T]: T[K] extends Date ? string : T[K] extends Date | null ? string | null : T[K] }
type SessionJson = Jsoned<SessionRow>
type UserJson = Jsoned<UserRow>

function sessionFromJson(row: SessionJson): SessionRow {
  return {
    ...row,
    rotated_at: row.rotated_at === null ? null : new Date(row.rotated_at),
    expires_at: new Date(row.expires_at),
  }
}

function userFromJson(row: UserJson): UserRow {
  return {
    ...row,
    disabled_at: row.disabled_at === null ? null : new Date(row.disabled_at),
    password_changed_at: new Date(row.password_changed_at),
    created_at: new Date(row.created_at),
  }
}
