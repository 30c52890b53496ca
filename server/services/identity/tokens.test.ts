import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import { test } from 'node:test'
import {
  type CryptoKey,
  createLocalJWKSet,
  exportJWK,
  generateKeyPair,
  type JWTPayload,
  jwtVerify,
  SignJWT,
} from 'jose'
import { silentLog } from '#platform/log.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { deriveKey } from './secret.ts'
import { makeSigningKeys } from './signing-keys.ts'
import { cookieIn, eventually, freshName, makeTestServer, signUp, type TestServer, testSecret } from './test-support.ts'

const database = await makeTestDatabase({ poolMax: 40 })
const { db } = database
let offsetMs = 0
const clock = () => Date.now() + offsetMs
const server = await makeTestServer(database, { clock })
const minuteMs = 60_000
const dayMs = 86_400_000

function me(token: string, on: TestServer = server) {
  return on.call('GET', '/v1/auth/me', token)
}

function parts(token: string) {
  const [header = '', payload = '', signature = ''] = token.split('.')
  const read = (part: string) => JSON.parse(Buffer.from(part, 'base64url').toString())
  return { header: read(header), payload: read(payload) as JWTPayload, signature, signed: `${header}.${payload}` }
}

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')

async function ourKey() {
  const keys = makeSigningKeys({
    db,
    sealKey: deriveKey(testSecret, 'signing keys'),
    keyDays: 90,
    sessionDays: 30,
    log: silentLog,
  })
  return keys.signer()
}

test('a token that is not ours, or not whole, is a 401 and never a 500', async () => {
  const user = await signUp(server)
  const { header, payload, signature, signed } = parts(user.token)
  const stranger = await generateKeyPair('EdDSA')
  const sign = (head: Record<string, unknown>, body: JWTPayload, key: CryptoKey) =>
    new SignJWT(body).setProtectedHeader({ alg: 'EdDSA', ...head }).sign(key, { crit: { strange: true } })
  const { key } = await ourKey()
  const jwk = await exportJWK(stranger.publicKey)
  const publicKey = (await server.call('GET', '/.well-known/jwks.json')).json().keys[0].x as string
  const bad: Record<string, string> = {
    'another key': await sign(header, payload, stranger.privateKey),
    'another key with its own id': await sign({ ...header, kid: 'theirs' }, payload, stranger.privateKey),
    'another key, brought along': await sign({ ...header, kid: undefined, jwk }, payload, stranger.privateKey),
    'no key id': await sign({ typ: header.typ }, payload, key),
    'alg none': `${encode({ ...header, alg: 'none' })}.${encode(payload)}.`,
    'alg none with the signature': `${encode({ ...header, alg: 'none' })}.${encode(payload)}.${signature}`,
    'HMAC with the public key': (() => {
      const text = `${encode({ ...header, alg: 'HS256' })}.${encode(payload)}`
      return `${text}.${createHmac('sha256', publicKey).update(text).digest('base64url')}`
    })(),
    'a changed role': `${encode(header)}.${encode({ ...payload, role: 'admin' })}.${signature}`,
    'no signature': `${signed}.`,
    'half a signature': `${signed}.${signature.slice(0, 40)}`,
    'another audience': await sign(header, { ...payload, aud: 'elsewhere' }, key),
    'two audiences': await sign(header, { ...payload, aud: ['capstan', 'capstan:session'] }, key),
    'another issuer': await sign(header, { ...payload, iss: 'elsewhere' }, key),
    'another type': await sign({ ...header, typ: 'session+jwt' }, payload, key),
    'no end': await sign(header, { ...payload, exp: undefined }, key),
    'an end long past': await sign(header, { ...payload, exp: 1 }, key),
    'no session': await sign(header, { ...payload, sid: undefined }, key),
    'a session that is no id': await sign(header, { ...payload, sid: "x' or 1=1" }, key),
    'a role that is none': await sign(header, { ...payload, role: 'root' }, key),
    'a critical header': await sign({ ...header, crit: ['strange'], strange: 1 }, payload, key),
    'two dots': '..',
    'one part': 'abc',
    'not base64': '!!!.???.***',
    'JSON that is none': `${Buffer.from('{').toString('base64url')}.${encode(payload)}.${signature}`,
    'a long one': 'a'.repeat(10_000),
    'a refresh token': user.refreshToken,
    'a wrong API key': `capk_${'a'.repeat(43)}`,
    'half an API key': 'capk_abc',
  }
  for (const [what, token] of Object.entries(bad)) {
    const answer = await me(token)
    assert.equal(answer.statusCode, 401, `${what}: ${answer.body}`)
    assert.equal(answer.json().code, 'unauthenticated', what)
  }
  for (const authorization of ['Basic dXNlcjpwYXNz', 'Bearer', 'Bearer ', user.token, 'Bearer a b', 'Bearer é', '']) {
    const answer = await server.app.inject({ url: '/v1/auth/me', headers: { authorization } })
    assert.equal(answer.statusCode, 401, authorization)
  }
  for (const cookie of ['Authorization=', 'Authorization=x', 'Authorization', ';;=;', 'authorization=x', '=x']) {
    assert.equal((await server.app.inject({ url: '/v1/auth/me', headers: { cookie } })).statusCode, 401, cookie)
  }
  assert.equal((await me(await sign(header, payload, key))).statusCode, 200)
})

test('any one character of a token changed makes it worthless', async () => {
  const user = await signUp(server)
  for (let at = 0; at < user.token.length; at += 7) {
    const other = user.token[at] === 'A' ? 'B' : 'A'
    const changed = user.token.slice(0, at) + other + user.token.slice(at + 1)
    if (Buffer.from(changed, 'base64url').equals(Buffer.from(user.token, 'base64url'))) continue
    assert.equal((await me(changed)).statusCode, 401, `at ${at}`)
  }
})

test('the published keys verify an access token, and not the cookie’s token, with plain jose', async () => {
  const user = await signUp(server)
  const answer = await server.call('GET', '/.well-known/jwks.json')
  assert.match(String(answer.headers['cache-control']), /public, max-age/)
  assert.ok(!answer.body.includes('"d"'))
  const jwks = createLocalJWKSet(answer.json())
  const { payload, protectedHeader } = await jwtVerify(user.token, jwks, { issuer: 'capstan', audience: 'capstan' })
  assert.equal(protectedHeader.alg, 'EdDSA')
  assert.deepEqual(
    { sub: payload.sub, sid: payload.sid, name: payload.name, role: payload.role },
    { sub: user.id, sid: user.sessionId, name: user.username, role: 'user' },
  )
  assert.ok(Number.isInteger(payload.num))
  assert.equal(payload.exp! - payload.iat!, 15 * 60)
  const cookieToken = user.cookie.split('=')[1]!
  await assert.rejects(jwtVerify(cookieToken, jwks, { issuer: 'capstan', audience: 'capstan' }), /aud/)
})

test('an access token ends after fifteen minutes, remembered or not', async () => {
  const user = await signUp(server)
  assert.equal((await me(user.token)).statusCode, 200)
  offsetMs = 14 * minuteMs
  assert.equal((await me(user.token)).statusCode, 200)
  offsetMs = 15 * minuteMs + 1000
  const answer = await me(user.token)
  assert.equal(answer.statusCode, 401)
  assert.match(answer.json().detail, /expired/)
  const renewed = await server.post('/v1/auth/renew', { refresh_token: user.refreshToken })
  assert.equal((await me(renewed.json().access_token)).statusCode, 200)
  offsetMs = 0
})

test('the cookie works as long as the session, with a bearer header too, and says what a browser needs', async () => {
  const username = freshName()
  const answer = await server.post('/v1/auth/register', { username, password: 'correct horse' })
  const header = String(answer.headers['set-cookie'])
  assert.match(header, /^Authorization=[\w.-]+; Max-Age=2591\d{3}; Path=\/; HttpOnly; SameSite=Lax$/)
  const cookie = cookieIn(answer)
  const withCookie = () => server.app.inject({ url: '/v1/auth/me', headers: { cookie: `a=b; ${cookie}; c=d` } })
  for (const days of [0, 1, 29]) {
    offsetMs = days * dayMs
    assert.equal((await withCookie()).statusCode, 200, `after ${days} days`)
    assert.equal((await me(cookie.split('=')[1]!)).statusCode, 200)
  }
  offsetMs = 31 * dayMs
  assert.equal((await withCookie()).statusCode, 401)
  offsetMs = 0
})

test('the cookie is for HTTPS alone where users come by HTTPS', async () => {
  const cases = [
    { mode: 'production', publicUrl: undefined, secure: true },
    { mode: 'production', publicUrl: 'http://10.0.0.1', secure: false },
    { mode: 'development', publicUrl: 'https://example.com', secure: true },
    { mode: 'development', publicUrl: undefined, secure: false },
  ] as const
  for (const { secure, ...options } of cases) {
    const other = await makeTestServer(database, options)
    const answer = await other.post('/v1/auth/register', { username: freshName(), password: 'correct horse' })
    assert.equal(/; Secure/.test(String(answer.headers['set-cookie'])), secure, JSON.stringify(options))
  }
})

test('a browser renews by its cookie and gets a new cookie but no refresh token', async () => {
  const user = await signUp(server)
  offsetMs = 20 * dayMs
  const answer = await server.post('/v1/auth/renew', {}, { cookie: user.cookie })
  assert.equal(answer.statusCode, 200)
  assert.equal(answer.json().refresh_token, undefined)
  assert.equal((await me(answer.json().access_token)).statusCode, 200)
  offsetMs = 49 * dayMs
  const later = await server.app.inject({ url: '/v1/auth/me', headers: { cookie: cookieIn(answer) } })
  assert.equal(later.statusCode, 200)
  offsetMs = 0
  assert.equal((await server.post('/v1/auth/renew', {})).json().code, 'invalid_refresh_token')
  const again = await signUp(server)
  const bodyless = { method: 'POST', url: '/v1/auth/renew', headers: { cookie: again.cookie } } as const
  assert.equal((await server.app.inject(bodyless)).statusCode, 200)
  const elsewhere = { ...bodyless.headers, origin: 'https://evil.example' }
  assert.equal((await server.app.inject({ ...bodyless, headers: elsewhere })).statusCode, 403)
  const bearerOnly = await server.post('/v1/auth/renew', {}, { authorization: `Bearer ${user.token}` })
  assert.equal(bearerOnly.statusCode, 401)
})

test('a renewal that is sent again within a minute gets the same successor; later it ends the session', async () => {
  const user = await signUp(server)
  const renew = (token: string) => server.post('/v1/auth/renew', { refresh_token: token })
  const answers = await Promise.all(Array.from({ length: 5 }, () => renew(user.refreshToken)))
  assert.deepEqual(
    answers.map(answer => answer.statusCode),
    [200, 200, 200, 200, 200],
  )
  const successors = new Set(answers.map(answer => answer.json().refresh_token))
  assert.equal(successors.size, 1)
  const [successor] = successors
  offsetMs = 59_000
  assert.equal((await renew(user.refreshToken)).json().refresh_token, successor)
  offsetMs = 62_000
  const reused = await renew(user.refreshToken)
  assert.equal(reused.json().code, 'refresh_token_reused')
  assert.equal((await renew(successor)).json().code, 'invalid_refresh_token')
  assert.equal((await me(answers[0]!.json().access_token)).statusCode, 401)
  offsetMs = 0
})

test('a refresh token two renewals old ends the session at once', async () => {
  const user = await signUp(server)
  const second = await server.post('/v1/auth/renew', { refresh_token: user.refreshToken })
  await server.post('/v1/auth/renew', { refresh_token: second.json().refresh_token })
  const answer = await server.post('/v1/auth/renew', { refresh_token: user.refreshToken })
  assert.equal(answer.json().code, 'refresh_token_reused')
})

test('a forged refresh token harms nobody', async () => {
  const user = await signUp(server)
  const bytes = Buffer.from(user.refreshToken.slice(5), 'base64url')
  const forge = (change: (bytes: Buffer) => void) => {
    const copy = Buffer.from(bytes)
    change(copy)
    return `capr_${copy.toString('base64url')}`
  }
  const forged = [
    forge(copy => copy.writeUInt32BE(7, 16)),
    forge(copy => copy.writeUInt32BE(0xffffffff, 16)),
    forge(copy => copy.fill(0, 20)),
    forge(copy => copy.fill(0, 0, 16)),
    user.refreshToken.slice(0, -1),
    `${user.refreshToken}A`,
    'capr_',
    user.token,
    '\ud800',
    '',
  ]
  for (const token of forged) {
    const answer = await server.post('/v1/auth/renew', { refresh_token: token })
    assert.ok([400, 401].includes(answer.statusCode), `${token}: ${answer.body}`)
  }
  assert.equal((await server.post('/v1/auth/renew', { refresh_token: user.refreshToken })).statusCode, 200)
})

test('a renewal that does not rotate leaves the refresh token as it is', async () => {
  const user = await signUp(server)
  for (let time = 0; time < 3; time++) {
    const grant = await server.identity.renew({ refreshToken: user.refreshToken, rotate: false })
    assert.equal(grant.refreshToken, user.refreshToken)
  }
})

test('a cookie changes something only when the page that sends it is ours', async () => {
  const publicUrl = 'https://app.example.com'
  const shop = await makeTestServer(database, { publicUrl })
  const user = await signUp(shop)
  const cases: [Record<string, string>, number][] = [
    [{}, 204],
    [{ origin: publicUrl }, 204],
    [{ origin: 'http://localhost:80' }, 204],
    [{ origin: 'https://evil.example' }, 403],
    [{ origin: 'https://app.example.com.evil.example' }, 403],
    [{ origin: 'https://example.com' }, 403],
    [{ origin: 'null' }, 403],
    [{ origin: 'nonsense' }, 403],
    [{ 'sec-fetch-site': 'cross-site' }, 403],
    [{ 'sec-fetch-site': 'same-origin' }, 204],
  ]
  for (const [headers, status] of cases) {
    const login = await shop.post('/v1/auth/login', { username: user.username, password: user.password })
    const send = (method: 'POST' | 'GET', extra: Record<string, string>) =>
      shop.app.inject({
        method,
        url: method === 'POST' ? '/v1/auth/logout' : '/v1/auth/me',
        headers: { host: 'localhost:80', ...extra, ...headers },
      })
    // Reading is left to the browser, which does not show the answer to other sites; a WebSocket is not.
    assert.equal((await send('GET', { cookie: cookieIn(login) })).statusCode, 200, JSON.stringify(headers))
    const upgrade = await send('GET', { cookie: cookieIn(login), connection: 'upgrade', upgrade: 'websocket' })
    assert.equal(upgrade.statusCode, status === 204 ? 200 : 403, JSON.stringify(headers))
    const answer = await send('POST', { cookie: cookieIn(login) })
    assert.equal(answer.statusCode, status, JSON.stringify(headers))
    if (status === 403) assert.equal(answer.json().code, 'cross_origin')
    const bearing = await send('POST', { authorization: `Bearer ${login.json().access_token}` })
    assert.equal(bearing.statusCode, status === 204 ? 401 : 204, JSON.stringify(headers))
  }
})

test('a new signing key is taken up by other processes, and what the old one signed still works', async () => {
  const other = await makeTestServer(database)
  const user = await signUp(other)
  await server.identity.rotateSigningKey()
  await db.query(`update identity.signing_keys set created_at = created_at - interval '1 hour'`)
  const rotated = await makeTestServer(database)
  const fresh = await signUp(rotated)
  const kids = [user, fresh].map(each => parts(each.token).header.kid)
  assert.notEqual(kids[0], kids[1])
  await eventually(
    () => me(fresh.token, other),
    answer => answer.statusCode === 200,
    3000,
  )
  assert.equal((await me(user.token, rotated)).statusCode, 200)
  assert.equal((await rotated.call('GET', '/.well-known/jwks.json')).json().keys.length, 2)
})

test('an old signing key is replaced by maintenance, first published, then used', async () => {
  await db.query(`update identity.signing_keys set created_at = created_at - interval '91 days'`)
  const fresh = await makeTestServer(database)
  await fresh.identity.maintain()
  const kids = (await fresh.call('GET', '/.well-known/jwks.json')).json().keys.map((key: { kid: string }) => key.kid)
  const user = await signUp(fresh)
  assert.notEqual(parts(user.token).header.kid, kids[0])
  await db.query(`update identity.signing_keys set created_at = created_at - interval '11 minutes'`)
  const later = await makeTestServer(database)
  assert.equal(parts((await signUp(later)).token).header.kid, kids[0])
})

test('deleting a key voids what it signed, within a look at the table', async () => {
  const user = await signUp(server)
  assert.equal((await me(user.token)).statusCode, 200)
  const { kid } = parts(user.token).header
  await db.query(`delete from identity.signing_keys where kid = $1`, [kid])
  await server.identity.maintain()
  assert.equal((await me(user.token)).statusCode, 401)
  assert.equal((await me((await signUp(server)).token)).statusCode, 200)
})

test('a process with another AUTH_SECRET signs with a key of its own, and both are understood', async () => {
  const stranger = await makeTestServer(database, { environment: { AUTH_SECRET: 'z'.repeat(40) } })
  const user = await signUp(stranger)
  await eventually(
    () => me(user.token),
    answer => answer.statusCode === 200,
    3000,
  )
  const ours = await signUp(server)
  assert.equal((await me(ours.token, stranger)).statusCode, 200)
  assert.equal((await server.post('/v1/auth/renew', { refresh_token: user.refreshToken })).statusCode, 401)
})
