import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { freshName, makeTestServer, signUp, type TestServer } from './test-support.ts'

const database = await makeTestDatabase()
const { db } = database
const environment = { LOGIN_ATTEMPTS_PER_ACCOUNT: '4', LOGIN_ATTEMPTS_PER_ADDRESS: '1000' }
const one = await makeTestServer(database, { environment, withoutBus: true })
const two = await makeTestServer(database, { environment, withoutBus: true })

async function status(server: TestServer, username: string, password: string, remoteAddress = '192.0.2.1') {
  const answer = await server.app.inject({
    method: 'POST',
    url: '/v1/auth/login',
    headers: { 'content-type': 'application/json' },
    payload: JSON.stringify({ username, password }),
    remoteAddress,
  })
  if (answer.statusCode === 429) {
    const seconds = Number(answer.headers['retry-after'])
    assert.ok(seconds > 0 && seconds <= 900, `Retry-After: ${seconds}`)
  }
  return answer.statusCode
}

test('four wrong passwords, wherever tried, close an account for a while, also to its owner', async () => {
  const email = `${freshName()}@example.com`
  const user = await signUp(one, { email })
  const tries = [
    await status(one, user.username, 'wrong'),
    await status(two, user.username.toUpperCase(), 'wrong', '192.0.2.2'),
    await status(one, email, 'wrong', '2001:db8::1'),
    await status(two, email, 'wrong'),
  ]
  assert.deepEqual(tries, [401, 401, 401, 401])
  assert.equal(await status(one, user.username, 'wrong'), 429)
  assert.equal(await status(two, user.username, user.password, '192.0.2.9'), 429)
  assert.equal((await two.post('/auth/login', { username: user.username, password: user.password })).statusCode, 429)
  await db.query(`update identity.login_attempts set resets_at = now() - interval '1 second'`)
  assert.equal(await status(one, user.username, user.password), 200)
})

test('a right password gives the account its allowance back', async () => {
  const user = await signUp(one)
  for (let round = 0; round < 3; round++) {
    for (let time = 0; time < 3; time++) assert.equal(await status(one, user.username, 'wrong'), 401)
    assert.equal(await status(two, user.username, user.password), 200)
  }
})

test('a name nobody has is limited as others are', async () => {
  const name = freshName()
  for (let time = 0; time < 4; time++) assert.equal(await status(one, name, 'wrong'), 401)
  assert.equal(await status(two, name.toUpperCase(), 'wrong'), 429)
})

test('guesses sent at once are counted before they are checked', async () => {
  const user = await signUp(one)
  const guesses = Array.from({ length: 40 }, (_, index) =>
    status(index % 2 ? one : two, user.username, `guess ${index}`),
  )
  const answers = await Promise.all(guesses)
  assert.equal(answers.filter(answer => answer === 401).length, 4)
  assert.equal(answers.filter(answer => answer === 429).length, 36)
})

test('forty right logins at once for one account all work', async () => {
  const usual = await makeTestServer(database, { withoutBus: true })
  const user = await signUp(usual)
  const answers = await Promise.all(Array.from({ length: 40 }, () => status(usual, user.username, user.password)))
  assert.ok(answers.every(answer => answer === 200))
})

test('an address that tries many names is stopped, its neighbours are not, and right passwords are free', async () => {
  await db.query(`delete from identity.login_attempts`)
  const strict = { environment: { LOGIN_ATTEMPTS_PER_ADDRESS: '3' }, withoutBus: true }
  const [first, second] = [await makeTestServer(database, strict), await makeTestServer(database, strict)]
  const user = await signUp(first)
  for (let time = 0; time < 5; time++) assert.equal(await status(first, user.username, user.password), 200)
  for (const [a, b, neighbour] of [
    ['198.51.100.1', '::ffff:198.51.100.1', '198.51.100.2'],
    ['2001:db8:1:2::1', '2001:db8:1:2:ffff::2', '2001:db8:1:3::1'],
  ] as const) {
    const tries = [
      await status(first, freshName(), 'wrong', a),
      await status(second, freshName(), 'wrong', b),
      await status(first, freshName(), 'wrong', b),
      await status(second, freshName(), 'wrong', a),
    ]
    assert.deepEqual(tries, [401, 401, 401, 429])
    assert.equal(await status(first, freshName(), 'wrong', neighbour), 401)
  }
})

test('guessing the current password to change it is limited too', async () => {
  const user = await signUp(one)
  const change = () =>
    one.post(
      '/v1/auth/password',
      { current_password: 'wrong', new_password: 'another horse' },
      { authorization: `Bearer ${user.token}` },
    )
  for (let time = 0; time < 4; time++) assert.equal((await change()).statusCode, 403)
  assert.equal((await change()).statusCode, 429)
})

test('so is guessing by sending a registration again', async () => {
  const body = { username: freshName(), password: 'correct horse' }
  const headers = { 'idempotency-key': freshName() }
  await one.post('/v1/auth/register', body, headers)
  const guess = () => one.post('/v1/auth/register', { ...body, password: 'a guess' }, headers)
  for (let time = 0; time < 4; time++) assert.equal((await guess()).statusCode, 422)
  assert.equal((await guess()).statusCode, 429)
})

test('a check that comes to no answer costs no attempt', async () => {
  const narrow = await makeTestServer(database, {
    environment: { ...environment, PASSWORD_QUEUE_MAX: '1' },
    withoutBus: true,
  })
  const user = await signUp(narrow)
  await db.query(`alter table identity.sessions rename to sessions_away`)
  for (let time = 0; time < 6; time++) assert.equal(await status(narrow, user.username, user.password), 500)
  await db.query(`alter table identity.sessions_away rename to sessions`)
  assert.equal(await status(narrow, user.username, user.password), 200)
})

test('0 is no limit', async () => {
  const open = await makeTestServer(database, {
    environment: { LOGIN_ATTEMPTS_PER_ACCOUNT: '0', LOGIN_ATTEMPTS_PER_ADDRESS: '0' },
    withoutBus: true,
  })
  const user = await signUp(open)
  for (let time = 0; time < 15; time++) assert.equal(await status(open, user.username, 'wrong'), 401)
})

test('more passwords than may wait are refused with 503, and those that wait are served', async () => {
  const narrow = await makeTestServer(database, { environment: { PASSWORD_QUEUE_MAX: '2' }, withoutBus: true })
  const user = await signUp(narrow)
  const answers = await Promise.all(Array.from({ length: 30 }, () => status(narrow, user.username, user.password)))
  assert.deepEqual([...new Set(answers)].sort(), [200, 503])
})
