import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { FastifyRequest } from 'fastify'
import { makeTestDatabase } from '../../../test/support/database.ts'
import {
  bearer,
  eventually,
  freshName,
  makeTestServer,
  type SignedUp,
  signUp,
  type TestServer,
  testScopes,
} from './test-support.ts'

const database = await makeTestDatabase()
const { db } = database
let offsetMs = 0
const clock = () => Date.now() + offsetMs
const here = await makeTestServer(database, { clock })
const there = await makeTestServer(database, { clock })
const bank = await makeTestServer(database, { clock, scopes: [...testScopes, 'ledger:bank'] })
const deaf = await makeTestServer(database, { clock, withoutBus: true })

async function makeKey(user: SignedUp, wish: object = {}, headers: Record<string, string> = {}) {
  const body = { name: 'my key', scopes: ['runs:read'], ...wish }
  return here.post('/v1/auth/api-keys', body, { ...bearer(user.token), ...headers })
}

const me = (server: TestServer, key: string) => server.call('GET', '/v1/auth/me', key)

test('a key is shown once, acts for its owner and is listed without its secret', async () => {
  const user = await signUp(here)
  const made = await makeKey(user, { scopes: ['runs:write', 'runs:read', 'runs:read'] })
  assert.equal(made.statusCode, 201)
  const { key, ...shown } = made.json()
  assert.match(key, /^capk_[\w-]{43}$/)
  assert.deepEqual(shown.scopes, ['runs:read', 'runs:write'])
  assert.equal((await me(there, key)).json().id, user.id)
  const listed = await here.call('GET', '/v1/auth/api-keys', user.token)
  assert.deepEqual(listed.json(), { api_keys: [shown], next_cursor: null })
  const { rows } = await db.query<{ hash: Buffer }>(`select hash from identity.api_keys where id = $1`, [shown.id])
  assert.equal(rows[0]!.hash.length, 32)
})

test('a key may not make keys, change the password, see sessions or do what no scope names', async () => {
  const user = await signUp(here)
  const { key } = (await makeKey(user)).json()
  const body = { name: 'another', scopes: ['runs:read'] }
  const answers = [
    await here.post('/v1/auth/api-keys', body, bearer(key)),
    await here.post('/v1/auth/password', { current_password: 'a', new_password: 'b' }, bearer(key)),
    await here.call('GET', '/v1/auth/api-keys', key),
    await here.call('GET', '/v1/auth/sessions', key),
    await here.call('DELETE', '/v1/auth/sessions', key),
    await here.call('POST', '/v1/auth/logout', key),
  ]
  for (const answer of answers) {
    assert.equal(answer.statusCode, 403)
    assert.equal(answer.json().code, 'missing_scope')
  }
  assert.equal((await here.post('/v1/auth/renew', {}, { cookie: `Authorization=${key}` })).statusCode, 401)
})

test('scopes are known ones and none its owner may not use', async () => {
  const user = await signUp(here)
  for (const scopes of [['runs:fly'], ['runs:read', 'users:read'], ['users:write'], ['account:manage'], ['*']]) {
    const answer = await makeKey(user, { scopes })
    assert.equal(answer.statusCode, 400, scopes.join())
    assert.equal(answer.json().code, 'unknown_scope')
  }
  for (const wish of [{ scopes: [] }, { name: '' }, { name: 'a\u0000b' }, { name: '\ud800' }, { expires_in_days: 0 }]) {
    assert.equal((await makeKey(user, wish)).json().code, 'validation_failed', JSON.stringify(wish))
  }
})

test('an admin’s key does what its scopes say and loses it with the role', async () => {
  const user = await signUp(here)
  await here.identity.createUser({ username: freshName(), password: 'correct horse', role: 'admin' })
  await here.identity.setRole({ userId: user.id, role: 'admin' })
  const login = await here.post('/v1/auth/login', { username: user.username, password: user.password })
  const admin = { ...user, token: login.json().access_token as string }
  const reader = (await makeKey(admin, { scopes: ['users:read'] })).json().key
  const runner = (await makeKey(admin, { scopes: ['runs:read'] })).json().key
  assert.equal((await here.call('GET', '/v1/users', reader)).statusCode, 200)
  assert.equal((await here.call('GET', '/v1/users', runner)).json().code, 'missing_scope')
  assert.equal((await here.call('POST', `/v1/users/${user.id}/disable`, reader)).json().code, 'missing_scope')
  assert.equal((await deaf.call('GET', '/v1/users', reader)).statusCode, 200)
  await here.identity.setRole({ userId: user.id, role: 'user' })
  assert.equal((await here.call('GET', '/v1/users', reader)).statusCode, 403)
  const request = { headers: bearer(reader), method: 'GET' } as FastifyRequest
  assert.deepEqual((await here.identity.authenticate(request))?.scopes, [])
  await eventually(
    () => deaf.call('GET', '/v1/users', reader),
    answer => answer.statusCode === 403,
  )
})

test('the bank’s scope is for keys of bankers and admins, and goes with the role', async () => {
  await here.identity.createUser({ username: freshName(), password: 'correct horse', role: 'admin' })
  const user = await signUp(here)
  const wish = { name: 'till', scopes: ['ledger:bank', 'runs:read'] }
  const makeTill = async () => {
    const login = await bank.post('/v1/auth/login', { username: user.username, password: user.password })
    return bank.post('/v1/auth/api-keys', wish, bearer(login.json().access_token))
  }
  const scopesOf = async (key: string) => {
    const request = { headers: bearer(key), method: 'GET' } as FastifyRequest
    return (await bank.identity.authenticate(request))?.scopes
  }

  assert.equal((await makeTill()).json().code, 'unknown_scope')
  for (const role of ['banker', 'admin'] as const) {
    await bank.identity.setRole({ userId: user.id, role })
    const made = await makeTill()
    assert.equal(made.statusCode, 201, made.body)
    assert.deepEqual(await scopesOf(made.json().key), wish.scopes)
  }
  const { key } = (await makeTill()).json()
  await bank.identity.setRole({ userId: user.id, role: 'banker' })
  assert.deepEqual(await scopesOf(key), wish.scopes)
  await bank.identity.setRole({ userId: user.id, role: 'user' })
  assert.deepEqual(await scopesOf(key), ['runs:read'])
})

test('a deleted key stops at once here and within five seconds elsewhere', async () => {
  const user = await signUp(here)
  const { key, id } = (await makeKey(user)).json()
  for (const server of [here, there, deaf]) assert.equal((await me(server, key)).statusCode, 200)
  const stranger = await signUp(here)
  assert.equal((await here.call('DELETE', `/v1/auth/api-keys/${id}`, stranger.token)).statusCode, 404)
  assert.equal((await here.call('DELETE', `/v1/auth/api-keys/${id}`, user.token)).statusCode, 204)
  assert.equal((await me(here, key)).statusCode, 401)
  for (const server of [there, deaf]) {
    await eventually(
      () => me(server, key),
      answer => answer.statusCode === 401,
    )
  }
})

test('the keys of a disabled user rest until the user is enabled again', async () => {
  const user = await signUp(here)
  const { key } = (await makeKey(user)).json()
  assert.equal((await me(deaf, key)).statusCode, 200)
  await here.identity.setDisabled({ userId: user.id, disabled: true })
  assert.equal((await me(here, key)).statusCode, 401)
  await eventually(
    () => me(deaf, key),
    answer => answer.statusCode === 401,
  )
  await here.identity.setDisabled({ userId: user.id, disabled: false })
  assert.equal((await me(here, key)).statusCode, 200)
})

test('a key ends on its day', async () => {
  const user = await signUp(here)
  const made = (await makeKey(user, { expires_in_days: 2 })).json()
  assert.ok(Math.abs(Date.parse(made.expires_at) - Date.now() - 2 * 86_400_000) < 60_000)
  offsetMs = 86_400_000
  assert.equal((await me(here, made.key)).statusCode, 200)
  offsetMs = 2 * 86_400_000 + 60_000
  assert.equal((await me(here, made.key)).statusCode, 401)
  offsetMs = 0
})

test('a wish that is sent again with its key gets the same key; another wish is refused', async () => {
  const user = await signUp(here)
  const headers = { 'idempotency-key': freshName() }
  const answers = await Promise.all(Array.from({ length: 5 }, () => makeKey(user, { expires_in_days: 3 }, headers)))
  assert.equal(new Set(answers.map(answer => answer.body)).size, 1)
  assert.equal(answers[0]!.statusCode, 201)
  const other = await makeKey(user, { expires_in_days: 4 }, headers)
  assert.equal(other.json().code, 'idempotency_key_reused')
  const stranger = await signUp(here)
  const theirs = await makeKey(stranger, { expires_in_days: 3 }, headers)
  assert.notEqual(theirs.json().key, answers[0]!.json().key)
  assert.equal((await here.call('GET', '/v1/auth/api-keys', user.token)).json().api_keys.length, 1)
})

test('a user has a hundred keys at most, also when they are made at once', async () => {
  const user = await signUp(here)
  await db.query(
    `insert into identity.api_keys (id, user_id, name, hash, hint, scopes)
     select gen_random_uuid(), $1, 'n', sha256(n::text::bytea), 'capk_', '{}' from generate_series(1, 97) n`,
    [user.id],
  )
  const answers = await Promise.all(Array.from({ length: 6 }, () => makeKey(user)))
  assert.deepEqual(answers.map(answer => answer.statusCode).sort(), [201, 201, 201, 409, 409, 409])
})

test('when a key and a session were last used is written down', async () => {
  const own = await makeTestServer(database, { clock })
  const user = await signUp(own)
  const { key, id } = (await makeKey(user)).json()
  offsetMs = 5 * 60_000
  await me(own, key)
  await me(own, user.token)
  await own.identity.stop()
  offsetMs = 0
  const { rows } = await db.query<{ key: Date; session: Date }>(
    `select (select last_used_at from identity.api_keys where id = $1) as key,
            (select last_used_at from identity.sessions where id = $2) as session`,
    [id, user.sessionId],
  )
  for (const at of [rows[0]!.key, rows[0]!.session]) assert.ok(at.getTime() > Date.now() + 4 * 60_000)
})
