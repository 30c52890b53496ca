import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeDatabase } from '#platform/database/pool.ts'
import { silentLog } from '#platform/log.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { eventually, makeTestServer, type SignedUp, signUp, type TestServer } from './test-support.ts'

const database = await makeTestDatabase({ poolMax: 20 })
const here = await makeTestServer(database)
const there = await makeTestServer(database)
const deaf = await makeTestServer(database, { withoutBus: true })
const idle = await makeTestServer(database, { withoutBus: true, started: false })

const me = (server: TestServer, token: string) => server.call('GET', '/v1/auth/me', token)
const withCookie = (server: TestServer, cookie: string) =>
  server.app.inject({ url: '/v1/auth/me', headers: { cookie } })

const ways: Record<string, (user: SignedUp) => Promise<unknown>> = {
  'signing out': user => here.call('POST', '/v1/auth/logout', user.token),
  'deleting the session': user => here.call('DELETE', `/v1/auth/sessions/${user.sessionId}`, user.token),
  'a new password': async user => {
    const other = await here.post('/v1/auth/login', { username: user.username, password: user.password })
    const headers = { authorization: `Bearer ${other.json().access_token}` }
    await here.post('/v1/auth/password', { current_password: user.password, new_password: 'another horse' }, headers)
  },
  disabling: user => here.identity.setDisabled({ userId: user.id, disabled: true }),
  'a new role': user => here.identity.setRole({ userId: user.id, role: 'admin' }),
  'deleting the row by hand': user =>
    database.db.query(`delete from identity.sessions where id = $1`, [user.sessionId]),
}

for (const [way, end] of Object.entries(ways)) {
  test(`${way} ends the session everywhere within five seconds, with the bus and without`, async t => {
    const user = await signUp(here)
    for (const server of [here, there, deaf, idle]) {
      assert.equal((await me(server, user.token)).statusCode, 200)
      assert.equal((await withCookie(server, user.cookie)).statusCode, 200)
    }
    const start = performance.now()
    await end(user)
    if (!way.includes('by hand')) assert.equal((await me(here, user.token)).statusCode, 401)
    for (const [name, server] of Object.entries({ there, deaf, idle })) {
      for (const ask of [() => me(server, user.token), () => withCookie(server, user.cookie)]) {
        await eventually(ask, answer => answer.statusCode === 401)
      }
      t.diagnostic(`${name}: ${Math.round(performance.now() - start)} ms`)
    }
    assert.ok(performance.now() - start < 5000)
  })
}

test('a process that starts later knows what ended before', async () => {
  const user = await signUp(here)
  await here.call('POST', '/v1/auth/logout', user.token)
  const late = await makeTestServer(database, { withoutBus: true })
  assert.equal((await me(late, user.token)).statusCode, 401)
  const lazy = await makeTestServer(database, { withoutBus: true, started: false })
  assert.equal((await me(lazy, user.token)).statusCode, 401)
})

test('an end whose commit comes late is not overlooked', async () => {
  const [slow, quick] = [await signUp(here), await signUp(here)]
  assert.equal((await me(deaf, slow.token)).statusCode, 200)
  await database.db.tx(async tx => {
    await tx.query(`delete from identity.sessions where id = $1`, [slow.sessionId])
    await here.call('POST', '/v1/auth/logout', quick.token)
    await eventually(
      () => me(deaf, quick.token),
      answer => answer.statusCode === 401,
    )
    assert.equal((await me(deaf, slow.token)).statusCode, 200)
  })
  await eventually(
    () => me(deaf, slow.token),
    answer => answer.statusCode === 401,
  )
})

test('a cookie of a session that ended long ago is refused, though the list no longer tells of it', async () => {
  const user = await signUp(here)
  await here.call('POST', '/v1/auth/logout', user.token)
  await database.db.query(`delete from identity.revoked_sessions`)
  const late = await makeTestServer(database, { withoutBus: true })
  assert.equal((await withCookie(late, user.cookie)).statusCode, 401)
})

test('more sessions than a page holds may end between two looks', async () => {
  const user = await signUp(here)
  await database.db.query(
    `insert into identity.revoked_sessions (session_id) select gen_random_uuid() from generate_series(1, 12000)`,
  )
  await here.call('POST', '/v1/auth/logout', user.token)
  await eventually(
    () => me(deaf, user.token),
    answer => answer.statusCode === 401,
  )
  await database.db.query(`delete from identity.revoked_sessions`)
})

test('without the database signing in is a 503, too', async () => {
  const url = database.url.replace(/host=[^&]*/, 'host=%2Fnowhere')
  const nowhere = makeDatabase({ url, poolMax: 3, log: silentLog, applicationName: `capstan:${process.pid}` })
  const server = await makeTestServer({ db: nowhere, url }, { withoutBus: true })
  const body = { username: 'somebody', password: 'correct horse' }
  for (const path of ['/v1/auth/login', '/v1/auth/register', '/auth/login']) {
    assert.equal((await server.post(path, body)).statusCode, 503, path)
  }
})

test('without the database nobody is let in on old knowledge, and nobody is told to sign in again', async () => {
  const user = await signUp(here)
  const own = makeDatabase({ url: database.url, poolMax: 3, log: silentLog, applicationName: `capstan:${process.pid}` })
  const cut = await makeTestServer({ db: own, url: database.url }, { withoutBus: true })
  assert.equal((await me(cut, user.token)).statusCode, 200)
  await own.close()
  await eventually(
    () => cut.app.inject({ url: '/v1/auth/sessions', headers: { authorization: `Bearer ${user.token}` } }),
    answer => answer.statusCode === 503 && answer.json().code === 'unavailable',
  )
})
