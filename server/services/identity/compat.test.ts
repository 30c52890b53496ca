import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { cookieIn, freshName, makeTestServer } from './test-support.ts'

const database = await makeTestDatabase()
const server = await makeTestServer(database)

test('the old walkthrough works: health, register, login, and the cookie is known', async () => {
  assert.equal((await server.call('GET', '/auth/health')).statusCode, 200)
  const registered = await server.post('/auth/register', { username: 'test1', password: 'test1' })
  assert.equal(registered.statusCode, 201)
  const { user } = registered.json()
  assert.deepEqual(Object.keys(user).sort(), ['CreatedAt', 'DeletedAt', 'ID', 'UpdatedAt', 'username'])
  assert.equal(user.username, 'test1')
  assert.ok(Number.isInteger(user.ID))
  assert.equal(registered.headers['set-cookie'], undefined)

  const login = await server.post('/auth/login', { username: 'test1', password: 'test1' })
  assert.equal(login.statusCode, 200)
  assert.equal(login.body, '{}')
  assert.match(
    String(login.headers['set-cookie']),
    /^Authorization=[\w.-]+; Max-Age=\d+; Path=\/; HttpOnly; SameSite=Lax$/,
  )
  const me = await server.app.inject({ url: '/v1/auth/me', headers: { cookie: cookieIn(login) } })
  assert.equal(me.json().number, user.ID)
  assert.equal((await server.call('GET', '/v1/auth/me', cookieIn(login).split('=')[1])).statusCode, 200)
})

test('what is wrong gets 400 and {"error"}, and nothing else', async () => {
  const username = freshName()
  await server.post('/auth/register', { username, password: 'test1' })
  const cases: [string, unknown][] = [
    ['/auth/register', { username, password: 'test1' }],
    ['/auth/register', { username: username.toUpperCase(), password: 'test1' }],
    ['/auth/register', { username: 'x', password: 'test1' }],
    ['/auth/register', { username: freshName(), password: 'x' }],
    ['/auth/register', { username: 'nul\u0000', password: 'test1' }],
    ['/auth/register', { username: 5, password: 'test1' }],
    ['/auth/register', {}],
    ['/auth/register', []],
    ['/auth/register', '{'],
    ['/auth/register', 'null'],
    ['/auth/login', { username, password: 'wrong' }],
    ['/auth/login', { username: freshName(), password: 'test1' }],
    ['/auth/login', { username: '\ud800', password: 'test1' }],
    ['/auth/login', { username }],
    ['/auth/login', '{"username":'],
  ]
  for (const [url, body] of cases) {
    const answer = await server.post(url, body)
    assert.equal(answer.statusCode, 400, `${JSON.stringify(body)}: ${answer.body}`)
    assert.deepEqual(Object.keys(answer.json()), ['error'])
    assert.equal(answer.headers['set-cookie'], undefined)
  }
  const form = await server.post('/auth/login', 'username=a&password=b', {
    'content-type': 'application/x-www-form-urlencoded',
  })
  assert.equal(form.statusCode, 400)
  assert.deepEqual(Object.keys(form.json()), ['error'])
  const empty = await server.app.inject({ method: 'POST', url: '/auth/login' })
  assert.equal(empty.statusCode, 400)
})

test('fields it does not know are let pass', async () => {
  const body = { username: freshName(), password: 'test1', email: 5, role: 'admin', ID: 1 }
  const registered = await server.post('/auth/register', body)
  assert.equal(registered.statusCode, 201)
  assert.equal((await server.post('/auth/login', body)).statusCode, 200)
  assert.equal((await server.identity.findUserByName(body.username))?.role, 'user')
})

test('in production five characters are too few for a password', async () => {
  const production = await makeTestServer(database, { mode: 'production' })
  const answer = await production.post('/auth/register', { username: freshName(), password: 'test1' })
  assert.equal(answer.statusCode, 400)
})
