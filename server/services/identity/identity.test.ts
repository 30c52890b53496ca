import assert from 'node:assert/strict'
import { Writable } from 'node:stream'
import { test } from 'node:test'
import { makeLog, silentLog } from '#platform/log.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { makeAuth } from './auth.ts'
import { makePasswords } from './passwords.ts'
import { bearer, cookieIn, freshName, makeTestServer, signUp } from './test-support.ts'

const database = await makeTestDatabase()
const { db } = database
const server = await makeTestServer(database)

async function makeAdmin() {
  const user = await signUp(server)
  await server.identity.setRole({ userId: user.id, role: 'admin' })
  const login = await server.post('/v1/auth/login', { username: user.username, password: user.password })
  return { ...user, token: login.json().access_token as string }
}

test('our tables are what Better Auth expects', async () => {
  const auth = makeAuth({
    db,
    secret: 'x'.repeat(40),
    passwords: makePasswords({ mode: 'test', queueMax: 10 }),
    sessionDays: 30,
    publicUrl: undefined,
    log: silentLog,
    checksSchema: true,
  })
  await auth.checkSchema()
})

test('a user registers, signs in, is known, renews, signs out and is unknown', async () => {
  const username = freshName()
  const email = `${username}@example.com`
  const registered = await server.post('/v1/auth/register', { username, password: 'correct horse', email })
  assert.equal(registered.statusCode, 201)
  const { user } = registered.json()
  assert.deepEqual(
    { username: user.username, email: user.email, role: user.role, disabled: user.disabled },
    { username, email, role: 'user', disabled: false },
  )
  assert.ok(Number.isInteger(user.number))

  const login = await server.post('/v1/auth/login', { username: email.toUpperCase(), password: 'correct horse' })
  assert.equal(login.statusCode, 200)
  const me = await server.call('GET', '/v1/auth/me', login.json().access_token)
  assert.deepEqual(me.json(), user)

  const renewed = await server.post('/v1/auth/renew', { refresh_token: login.json().refresh_token })
  assert.equal(renewed.statusCode, 200)
  assert.equal(renewed.json().session_id, login.json().session_id)
  assert.notEqual(renewed.json().refresh_token, login.json().refresh_token)

  assert.equal((await server.call('POST', '/v1/auth/logout', renewed.json().access_token)).statusCode, 204)
  for (const token of [renewed.json().access_token, login.json().access_token]) {
    assert.equal((await server.call('GET', '/v1/auth/me', token)).statusCode, 401)
  }
  const late = await server.post('/v1/auth/renew', { refresh_token: renewed.json().refresh_token })
  assert.equal(late.json().code, 'invalid_refresh_token')
})

test('names and addresses are one whatever their case', async () => {
  const username = freshName()
  await signUp(server, { username, email: `${username}@example.com` })
  const again = await server.post('/v1/auth/register', { username: username.toUpperCase(), password: 'correct horse' })
  assert.equal(again.statusCode, 409)
  assert.equal(again.json().code, 'username_taken')
  const sameEmail = await server.post('/v1/auth/register', {
    username: freshName(),
    password: 'correct horse',
    email: `${username.toUpperCase()}@EXAMPLE.com`,
  })
  assert.equal(sameEmail.json().code, 'email_taken')
  const login = await server.post('/v1/auth/login', { username: username.toUpperCase(), password: 'correct horse' })
  assert.equal(login.json().user.username, username)
})

test('of twenty who register one name at once, one gets it', async () => {
  const username = freshName()
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, index) =>
      server.post('/v1/auth/register', {
        username: index % 2 ? username : username.toUpperCase(),
        password: `password ${index}`,
      }),
    ),
  )
  assert.equal(answers.filter(answer => answer.statusCode === 201).length, 1)
  assert.ok(answers.every(answer => answer.statusCode === 201 || answer.json().code === 'username_taken'))
  const { rows } = await db.query(`select from identity.users where username = $1`, [username.toLowerCase()])
  assert.equal(rows.length, 1)
})

test('of those who register one address at once, one gets it, and no account is left half made', async () => {
  const email = `${freshName()}@example.com`
  const answers = await Promise.all(
    Array.from({ length: 8 }, () =>
      server.post('/v1/auth/register', { username: freshName(), password: 'correct horse', email }),
    ),
  )
  assert.deepEqual(answers.map(answer => answer.statusCode).sort(), [201, ...Array(7).fill(409)])
  const { rows } = await db.query(
    `select from identity.users u where not exists (select from identity.accounts a where a.user_id = u.id)`,
  )
  assert.equal(rows.length, 0)
})

test('a registration that is sent again with its key makes no second user', async () => {
  const body = { username: freshName(), password: 'correct horse' }
  const headers = { 'idempotency-key': freshName() }
  const answers = await Promise.all(Array.from({ length: 5 }, () => server.post('/v1/auth/register', body, headers)))
  const late = await server.post('/v1/auth/register', body, headers)
  for (const answer of [...answers, late]) assert.equal(answer.statusCode, 201, answer.body)
  assert.equal(new Set([...answers, late].map(answer => answer.json().user.id)).size, 1)
  assert.equal((await server.call('GET', '/v1/auth/me', late.json().access_token)).statusCode, 200)

  const others = [
    { ...body, username: freshName() },
    { ...body, password: 'another one' },
    { ...body, email: 'x@example.com' },
  ]
  for (const other of others) {
    const answer = await server.post('/v1/auth/register', other, headers)
    assert.equal(answer.statusCode, 422, answer.body)
    assert.equal(answer.json().code, 'idempotency_key_reused')
  }
  assert.equal((await server.post('/v1/auth/register', body)).json().code, 'username_taken')
})

test('a full name is kept, and what cannot be one is refused', async () => {
  const body = { username: freshName(), password: 'correct horse', full_name: 'Åsa Ñandú 王' }
  const headers = { 'idempotency-key': freshName() }
  const made = await server.post('/v1/auth/register', body, headers)
  assert.equal(made.json().user.full_name, body.full_name, made.body)
  const me = await server.call('GET', '/v1/auth/me', made.json().access_token)
  assert.equal(me.json().full_name, body.full_name)
  const other = await server.post('/v1/auth/register', { ...body, full_name: 'Another' }, headers)
  assert.equal(other.json().code, 'idempotency_key_reused')
  for (const name of ['', 'x'.repeat(201), 'nul\u0000', 'two\nlines', '\ud800lone']) {
    const answer = await server.post('/v1/auth/register', { ...body, username: freshName(), full_name: name })
    assert.equal(answer.json().code, 'bad_full_name', name)
  }
  for (const name of [7, null, ['a'], 'x'.repeat(1001)]) {
    const answer = await server.post('/v1/auth/register', { ...body, username: freshName(), full_name: name })
    assert.equal(answer.json().code, 'validation_failed', String(name))
  }
  const longest = { ...body, username: freshName(), full_name: 'x'.repeat(200) }
  assert.equal((await server.post('/v1/auth/register', longest)).statusCode, 201)
})

test('a banker is no admin, and the role travels in the token', async () => {
  const user = await signUp(server)
  const admin = await makeAdmin()
  const wrong = await server.post(`/v1/users/${user.id}/role`, { role: 'king' }, bearer(admin.token))
  assert.equal(wrong.json().code, 'validation_failed')
  const made = await server.post(`/v1/users/${user.id}/role`, { role: 'banker' }, bearer(admin.token))
  assert.equal(made.json().role, 'banker', made.body)
  const login = await server.post('/v1/auth/login', { username: user.username, password: user.password })
  const token = login.json().access_token as string
  assert.equal(login.json().user.role, 'banker')
  const request = { headers: bearer(token), method: 'GET', host: '' }
  assert.equal((await server.identity.authenticate(request))?.role, 'banker')
  assert.equal((await server.call('GET', '/v1/users', token)).statusCode, 403)
})

test('whatever is sent as a name, an address or a password, the answer is a 4xx that says why', async () => {
  const odd = [
    'ab',
    'a'.repeat(31),
    'a'.repeat(1_000_000),
    '-leading',
    'with space',
    "x'; drop table identity.users; --",
    'nul\u0000byte',
    '\ud800lone',
    'имя',
    'na\u0300me',
    '👩‍🚀👩‍🚀👩‍🚀',
    '../../etc/passwd',
    '',
  ]
  for (const username of odd) {
    const answer = await server.post('/v1/auth/register', { username, password: 'correct horse' })
    assert.ok([400, 413].includes(answer.statusCode), `${username.slice(0, 30)}: ${answer.body}`)
    const login = await server.post('/v1/auth/login', { username, password: 'correct horse' })
    assert.ok([400, 401, 413].includes(login.statusCode), `${username.slice(0, 30)}: ${login.body}`)
  }
  for (const email of ['x', 'x@y', 'a@b@c.de', 'nul\u0000@example.com', 'x@users.invalid', '\ud800@example.com']) {
    const answer = await server.post('/v1/auth/register', { username: freshName(), password: 'correct horse', email })
    assert.equal(answer.json().code, 'bad_email', email)
  }
  for (const password of ['1234', 'x'.repeat(257), 'lone \ud800 surrogate']) {
    const answer = await server.post('/v1/auth/register', { username: freshName(), password })
    assert.equal(answer.json().code, 'weak_password', password)
  }
  const broken = ['{', '[]', 'null', '"x"', '{"username":1,"password":"correct horse"}', '{"username":"abc"}']
  broken.push('{"username":"abcde","password":"correct horse","role":"admin"}')
  for (const body of broken) {
    assert.equal((await server.post('/v1/auth/register', body)).statusCode, 400, body)
    assert.equal((await server.post('/v1/auth/login', body)).statusCode, 400, body)
  }
})

test('a password may hold anything a keyboard gives, and two encodings of it are one', async () => {
  const username = freshName()
  const password = 'Caf\u00e9 \u0000 👩‍🚀'
  assert.equal((await server.post('/v1/auth/register', { username, password })).statusCode, 201)
  const login = await server.post('/v1/auth/login', { username, password: 'Cafe\u0301 \u0000 👩‍🚀' })
  assert.equal(login.statusCode, 200)
})

test('an unknown name and a wrong password get the same answer', async () => {
  const user = await signUp(server)
  const wrong = await server.post('/v1/auth/login', { username: user.username, password: 'wrong' })
  const unknown = await server.post('/v1/auth/login', { username: freshName(), password: 'wrong' })
  const { request_id: _a, ...first } = wrong.json()
  const { request_id: _b, ...second } = unknown.json()
  assert.equal(wrong.statusCode, 401)
  assert.deepEqual(first, second)
})

test('the address that Better Auth is given for those who have none is neither shown nor a way in', async () => {
  const user = await signUp(server)
  const { rows } = await db.query<{ email: string }>(`select email from identity.users where id = $1`, [user.id])
  assert.match(rows[0]!.email, /@users\.invalid$/)
  const me = await server.call('GET', '/v1/auth/me', user.token)
  assert.equal(me.json().email, null)
  const login = await server.post('/v1/auth/login', { username: rows[0]!.email, password: user.password })
  assert.equal(login.statusCode, 401)
})

test('sessions are listed, ended one by one, and all but this one', async () => {
  const user = await signUp(server)
  const login = () => server.post('/v1/auth/login', user, { 'user-agent': 'Phone\u00ff 1' })
  const [second, third] = [
    await server.post(
      '/v1/auth/login',
      { username: user.username, password: user.password },
      { 'user-agent': 'Phone 1' },
    ),
    await server.post('/v1/auth/login', { username: user.username, password: user.password }),
  ]
  assert.equal((await login()).statusCode, 400)
  const listed = (await server.call('GET', '/v1/auth/sessions', user.token)).json()
  assert.equal(listed.sessions.length, 3)
  assert.deepEqual(
    listed.sessions.map((session: { current: boolean }) => session.current),
    [false, false, true],
  )
  assert.equal(listed.sessions[1].user_agent, 'Phone 1')
  assert.equal(listed.sessions[1].address, '127.0.0.1')

  const paged = (await server.call('GET', '/v1/auth/sessions?limit=2', user.token)).json()
  const rest = (await server.call('GET', `/v1/auth/sessions?limit=2&cursor=${paged.next_cursor}`, user.token)).json()
  assert.deepEqual([...paged.sessions, ...rest.sessions], listed.sessions)
  assert.equal(rest.next_cursor, null)
  assert.equal((await server.call('GET', '/v1/auth/sessions?cursor=nonsense', user.token)).json().code, 'bad_cursor')

  const stranger = await signUp(server)
  const theirs = await server.call('DELETE', `/v1/auth/sessions/${user.sessionId}`, stranger.token)
  assert.equal(theirs.statusCode, 404)
  const one = await server.call('DELETE', `/v1/auth/sessions/${second!.json().session_id}`, user.token)
  assert.equal(one.statusCode, 204)
  assert.equal((await server.call('GET', '/v1/auth/me', second!.json().access_token)).statusCode, 401)
  const others = await server.call('DELETE', '/v1/auth/sessions', user.token)
  assert.deepEqual(others.json(), { ended: 1 })
  assert.equal((await server.call('GET', '/v1/auth/me', third!.json().access_token)).statusCode, 401)
  assert.equal((await server.call('GET', '/v1/auth/me', user.token)).statusCode, 200)
  assert.equal((await server.call('DELETE', '/v1/auth/sessions/not-an-id', user.token)).statusCode, 400)
})

test('a new password ends the other sessions and makes the old one useless', async () => {
  const user = await signUp(server)
  const other = await server.post('/v1/auth/login', { username: user.username, password: user.password })
  const change = (body: object) => server.post('/v1/auth/password', body, bearer(user.token))
  assert.equal(
    (await change({ current_password: 'wrong', new_password: 'another horse' })).json().code,
    'wrong_password',
  )
  assert.equal((await change({ current_password: user.password, new_password: 'x' })).json().code, 'weak_password')
  assert.equal((await change({ current_password: user.password, new_password: 'another horse' })).statusCode, 204)
  assert.equal((await server.call('GET', '/v1/auth/me', user.token)).statusCode, 200)
  assert.equal((await server.call('GET', '/v1/auth/me', other.json().access_token)).statusCode, 401)
  const renewed = await server.post('/v1/auth/renew', { refresh_token: other.json().refresh_token })
  assert.equal(renewed.statusCode, 401)
  const old = await server.post('/v1/auth/login', { username: user.username, password: user.password })
  assert.equal(old.statusCode, 401)
  const fresh = await server.post('/v1/auth/login', { username: user.username, password: 'another horse' })
  assert.equal(fresh.statusCode, 200)
})

test('of two password changes at once, one wins', async () => {
  const user = await signUp(server)
  const answers = await Promise.all(
    ['first horse', 'second horse'].map(next =>
      server.post('/v1/auth/password', { current_password: user.password, new_password: next }, bearer(user.token)),
    ),
  )
  const [won, lost] = answers.map(answer => answer.statusCode).sort()
  assert.equal(won, 204)
  // Late by much: its current password is the wrong one by now. Late by little: a conflict.
  assert.ok(lost === 403 || lost === 409, String(lost))
})

test('no session made by a login that races a disabling outlives it', async () => {
  for (let round = 0; round < 5; round++) {
    const user = await signUp(server)
    const logins = Array.from({ length: 4 }, () =>
      server.post('/v1/auth/login', { username: user.username, password: user.password }),
    )
    const disabling = server.identity.setDisabled({ userId: user.id, disabled: true })
    await Promise.all([...logins, disabling])
    const { rows } = await db.query(`select from identity.sessions where user_id = $1`, [user.id])
    assert.equal(rows.length, 0)
  }
})

test('admin routes are closed to users and open to admins', async () => {
  const user = await signUp(server)
  const admin = await makeAdmin()
  const routes = [
    ['GET', '/v1/users'],
    ['GET', `/v1/users/${user.id}`],
    ['POST', `/v1/users/${user.id}/disable`],
    ['POST', `/v1/users/${user.id}/enable`],
  ] as const
  for (const [method, url] of routes) {
    assert.equal((await server.call(method, url)).statusCode, 401, url)
    assert.equal((await server.call(method, url, user.token)).statusCode, 403, url)
  }
  const promote = await server.post(`/v1/users/${user.id}/role`, { role: 'admin' }, bearer(user.token))
  assert.equal(promote.statusCode, 403)

  const first = (await server.call('GET', '/v1/users?limit=1', admin.token)).json()
  assert.equal(first.users.length, 1)
  const second = (await server.call('GET', `/v1/users?limit=1&cursor=${first.next_cursor}`, admin.token)).json()
  assert.notEqual(second.users[0].id, first.users[0].id)
  assert.equal((await server.call('GET', `/v1/users/${user.id}`, admin.token)).json().id, user.id)
  const nobody = await server.call('GET', '/v1/users/00000000-0000-7000-8000-000000000000', admin.token)
  assert.equal(nobody.statusCode, 404)
})

test('a disabled user can do nothing until enabled again', async () => {
  const admin = await makeAdmin()
  const user = await signUp(server)
  const disabled = await server.call('POST', `/v1/users/${user.id}/disable`, admin.token)
  assert.equal(disabled.json().disabled, true)
  assert.equal((await server.call('GET', '/v1/auth/me', user.token)).statusCode, 401)
  assert.equal((await server.post('/v1/auth/renew', { refresh_token: user.refreshToken })).statusCode, 401)
  const login = () => server.post('/v1/auth/login', { username: user.username, password: user.password })
  assert.equal((await login()).json().code, 'account_disabled')
  const wrong = await server.post('/v1/auth/login', { username: user.username, password: 'wrong' })
  assert.equal(wrong.json().code, 'invalid_credentials')
  await server.call('POST', `/v1/users/${user.id}/enable`, admin.token)
  assert.equal((await login()).statusCode, 200)
  assert.equal((await server.call('GET', '/v1/auth/me', user.token)).statusCode, 401)
})

test('a new role ends the sessions that tell the old one, and the last admin stays', async () => {
  await db.query(`update identity.users set role = 'user'`)
  const [admin, user] = [await makeAdmin(), await signUp(server)]
  const role = (id: string, to: string) => server.post(`/v1/users/${id}/role`, { role: to }, bearer(admin.token))
  assert.equal((await role(admin.id, 'user')).json().code, 'last_admin')
  assert.equal((await server.call('POST', `/v1/users/${admin.id}/disable`, admin.token)).json().code, 'last_admin')
  assert.equal((await role(user.id, 'king')).statusCode, 400)
  assert.equal((await role(user.id, 'admin')).json().role, 'admin')
  assert.equal((await server.call('GET', '/v1/auth/me', user.token)).statusCode, 401)
  // Two admins who demote each other at once leave one.
  const outcomes = await Promise.allSettled([
    server.identity.setRole({ userId: admin.id, role: 'user' }),
    server.identity.setRole({ userId: user.id, role: 'user' }),
  ])
  assert.deepEqual(outcomes.map(outcome => outcome.status).sort(), ['fulfilled', 'rejected'])
})

test('the command line makes users of any role, also when registration is closed', async () => {
  const closed = await makeTestServer(database, { environment: { OPEN_REGISTRATION: 'false' } })
  const body = { username: freshName(), password: 'correct horse' }
  for (const url of ['/v1/auth/register', '/auth/register'])
    assert.equal((await closed.post(url, body)).statusCode, 403)
  const admin = await closed.identity.createUser({ ...body, role: 'admin' })
  assert.equal(admin.role, 'admin')
  assert.equal((await closed.identity.findUserByName(body.username.toUpperCase()))?.id, admin.id)
  const login = await closed.post('/v1/auth/login', body)
  assert.equal(login.json().user.role, 'admin')
  await assert.rejects(closed.identity.createUser({ ...body, role: 'user' }), { code: 'username_taken' })
})

test('passwords and tokens reach neither the log nor an answer where they do not belong', async () => {
  const lines: string[] = []
  const stream = new Writable({
    write(chunk, _encoding, done) {
      lines.push(String(chunk))
      done()
    },
  })
  const logged = await makeTestServer(database, { log: makeLog('trace', stream) })
  const username = freshName()
  const secrets = ['hunter2 hunter2', 'swordfish swordfish', 'not the password']
  const headers = { 'idempotency-key': freshName() }
  const registered = await logged.post('/v1/auth/register', { username, password: secrets[0] }, headers)
  const { access_token, refresh_token } = registered.json()
  await logged.post('/v1/auth/register', { username, password: secrets[2] })
  await logged.post('/v1/auth/login', { username, password: secrets[2] })
  await logged.post('/v1/auth/login', { username: secrets[2], password: secrets[2] })
  const change = { current_password: secrets[0], new_password: secrets[1] }
  const changed = await logged.post('/v1/auth/password', change, bearer(access_token))
  const key = await logged.post('/v1/auth/api-keys', { name: 'k', scopes: ['runs:read'] }, bearer(access_token))
  const login = await logged.post('/auth/login', { username, password: secrets[1] })
  const renewed = await logged.post('/v1/auth/renew', { refresh_token })
  const listed = await logged.call('GET', '/v1/auth/api-keys', access_token)
  await logged.call('GET', '/v1/auth/me', `${access_token}x`)
  const parts = [access_token, renewed.json().access_token, cookieIn(login)].map(token => token.split('.').at(-1))
  secrets.push(refresh_token, renewed.json().refresh_token, key.json().key, ...parts)
  const log = lines.join('')
  assert.match(log, /answered/)
  for (const secret of secrets) assert.ok(!log.includes(secret), `the log holds ${secret}`)
  for (const answer of [registered, changed, login, listed]) {
    assert.ok(!/hunter2|swordfish|argon2|"hash"|"password"/.test(answer.body), answer.body)
    assert.ok(!answer.body.includes(key.json().key))
  }
  const { rows } = await db.query<{ all: string }>(
    `select string_agg(t::text, '') as all from (
       select u::text as t from identity.users u union all select s::text from identity.sessions s
       union all select k::text from identity.api_keys k union all select a::text from identity.accounts a
       union all select k::text from identity.signing_keys k union all select l::text from identity.login_attempts l
       union all select i::text from platform.idempotency_keys i) all_rows`,
  )
  for (const secret of secrets) assert.ok(!rows[0]!.all.includes(secret), `the database holds ${secret}`)
})

test('maintenance deletes what is over and nothing else', async () => {
  const user = await signUp(server)
  const old = await server.post('/v1/auth/login', { username: user.username, password: user.password })
  const body = { username: freshName(), password: 'correct horse' }
  const headers = { 'idempotency-key': freshName() }
  await server.post('/v1/auth/register', body, headers)
  await db.query(`update identity.sessions set expires_at = now() - interval '1 second' where id = $1`, [
    old.json().session_id,
  ])
  await db.query(`update identity.users set created_at = now() - interval '25 hours' where username = $1`, [
    body.username,
  ])
  await db.query(`insert into identity.login_attempts values ('over', 3, now() - interval '1 second')`)
  await db.query(`insert into identity.revoked_sessions values (gen_random_uuid(), now() - interval '71 minutes')`)
  await server.identity.maintain()
  const { rows } = await db.query<Record<string, number>>(
    `select (select count(*) from identity.sessions where user_id = $1) as sessions,
            (select count(*) from identity.login_attempts where subject = 'over') as attempts,
            (select count(*) from identity.revoked_sessions where revoked_at < now() - interval '1 hour') as revoked,
            (select count(*) from identity.revoked_sessions where session_id = $2) as expired_one,
            (select count(*) from identity.users where username = $3 and registration_key is not null) as keys,
            (select count(*) from identity.signing_keys) as signing_keys`,
    [user.id, old.json().session_id, body.username],
  )
  assert.deepEqual(rows[0], { sessions: 1, attempts: 0, revoked: 0, expired_one: 0, keys: 0, signing_keys: 1 })
  assert.equal((await server.call('GET', '/v1/auth/me', user.token)).statusCode, 200)
})
