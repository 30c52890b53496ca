import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Type } from 'typebox'
import { errors } from '../errors.ts'
import { silentLog } from '../log.ts'
import { makeMetrics } from '../metrics.ts'
import type { Caller } from './guard.ts'
import { makeRateLimiter } from './rate-limit.ts'
import { makeHttp } from './server.ts'

const callers: Record<string, Caller> = {
  user: { userId: 'u', name: 'user', role: 'user', by: 'session', credentialId: 's' },
  banker: { userId: 'b', name: 'banker', role: 'banker', by: 'session', credentialId: 's' },
  admin: { userId: 'a', name: 'admin', role: 'admin', by: 'session', credentialId: 's' },
  teller: { userId: 'b', name: 'banker', role: 'banker', by: 'api_key', credentialId: 'k', scopes: ['things:bank'] },
  adminsKey: { userId: 'a', name: 'admin', role: 'admin', by: 'api_key', credentialId: 'k', scopes: ['things:bank'] },
  former: { userId: 'b', name: 'banker', role: 'user', by: 'api_key', credentialId: 'k', scopes: ['things:bank'] },
  reader: { userId: 'u', name: 'user', role: 'user', by: 'api_key', credentialId: 'k', scopes: ['things:read'] },
}

async function makeApp(points = 0) {
  const app = await makeHttp({
    settings: { BODY_LIMIT_BYTES: 2000, TRUST_PROXY: false, NODE_ENV: 'test', PUBLIC_URL: undefined },
    log: silentLog,
    metrics: makeMetrics({ processMetrics: false }),
    authenticate: async request => {
      const token = request.headers.authorization?.replace('Bearer ', '')
      if (token === undefined) return undefined
      const caller = callers[token]
      if (!caller) throw errors.unauthenticated()
      return caller
    },
    rateLimiter: makeRateLimiter({ name: 'test', points, windowSeconds: 60, redis: undefined }),
    version: 'test',
  })
  const body = Type.Object(
    { name: Type.String(), count: Type.Optional(Type.Integer()) },
    { additionalProperties: false },
  )
  app.post('/echo', { config: { access: 'public' }, schema: { body } }, async request => request.body)
  app.post('/old', { config: { access: 'public', errorShape: 'legacy' }, schema: { body } }, async () => ({}))
  app.get('/mine', { config: { access: 'user', scope: 'things:read' } }, async request => ({
    id: request.caller?.userId,
  }))
  app.get('/write', { config: { access: 'user', scope: 'things:write' } }, async () => ({}))
  app.get('/all', { config: { access: 'admin' } }, async () => ({}))
  app.get('/vault', { config: { access: 'banker', scope: 'things:bank' } }, async () => ({}))
  app.get('/safe', { config: { access: 'banker' } }, async () => ({}))
  app.get('/maybe', { config: { access: 'optional' } }, async request => ({ id: request.caller?.userId ?? null }))
  app.get('/bug', { config: { access: 'public' } }, async () => {
    throw new Error('the password is hunter2')
  })
  app.get('/full', { config: { access: 'public' } }, async () => {
    throw errors.overloaded('The queue')
  })
  return app
}

const app = await makeApp()
const json = { 'content-type': 'application/json' }

const badBodies: [string, { headers?: Record<string, string>; payload?: string | Buffer }, number, string][] = [
  ['no JSON', { headers: json, payload: '{name}' }, 400, 'malformed_json'],
  ['nothing', { headers: json, payload: '' }, 400, 'malformed_json'],
  ['invalid UTF-8', { headers: json, payload: Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]) }, 400, 'malformed_json'],
  ['a prototype', { headers: json, payload: '{"name":"x","__proto__":{"admin":true}}' }, 400, 'malformed_json'],
  ['null', { headers: json, payload: 'null' }, 400, 'validation_failed'],
  ['an array', { headers: json, payload: '[]' }, 400, 'validation_failed'],
  ['an unknown field', { headers: json, payload: '{"name":"x","extra":1}' }, 400, 'validation_failed'],
  ['a missing field', { headers: json, payload: '{}' }, 400, 'validation_failed'],
  ['a number as text', { headers: json, payload: '{"name":"x","count":"1"}' }, 400, 'validation_failed'],
  ['text', { headers: { 'content-type': 'text/plain' }, payload: '{"name":"x"}' }, 415, 'unsupported_media_type'],
  [
    'a form',
    { headers: { 'content-type': 'application/x-www-form-urlencoded' }, payload: 'name=x' },
    415,
    'unsupported_media_type',
  ],
  ['too much', { headers: json, payload: JSON.stringify({ name: 'x'.repeat(3000) }) }, 413, 'body_too_large'],
]

for (const [what, request, status, code] of badBodies) {
  test(`a body that is ${what} is refused with ${status} ${code}`, async () => {
    const answer = await app.inject({ method: 'POST', url: '/echo', ...request })
    assert.equal(answer.statusCode, status)
    assert.match(answer.headers['content-type'] as string, /^application\/problem\+json/)
    const problem = answer.json()
    assert.equal(problem.code, code)
    assert.equal(problem.status, status)
    assert.equal(problem.request_id, answer.headers['x-request-id'])
    assert.ok(problem.title && problem.detail)
  })
}

const guarded: [string, string | undefined, number, string | undefined][] = [
  ['/mine', undefined, 401, 'unauthenticated'],
  ['/mine', 'nobody', 401, 'unauthenticated'],
  ['/mine', 'user', 200, undefined],
  ['/mine', 'reader', 200, undefined],
  ['/write', 'reader', 403, 'missing_scope'],
  ['/write', 'user', 200, undefined],
  ['/all', 'user', 403, 'forbidden'],
  ['/all', 'banker', 403, 'forbidden'],
  ['/all', 'adminsKey', 403, 'forbidden'],
  ['/vault', 'user', 403, 'forbidden'],
  ['/vault', 'reader', 403, 'forbidden'],
  ['/vault', 'banker', 200, undefined],
  ['/vault', 'admin', 200, undefined],
  ['/vault', 'teller', 200, undefined],
  ['/vault', 'former', 403, 'forbidden'],
  ['/safe', 'banker', 200, undefined],
  ['/safe', 'teller', 403, 'forbidden'],
  ['/all', 'admin', 200, undefined],
  ['/maybe', undefined, 200, undefined],
  ['/maybe', 'nobody', 401, 'unauthenticated'],
]

for (const [url, token, status, code] of guarded) {
  test(`${url} answers ${status} to ${token ?? 'a stranger'}`, async () => {
    const headers = token === undefined ? {} : { authorization: `Bearer ${token}` }
    const answer = await app.inject({ url, headers })
    assert.equal(answer.statusCode, status)
    assert.equal(answer.json().code, code)
  })
}

test('a route that does not say who may call it keeps the server from starting', async () => {
  const open = await makeApp()
  open.get('/forgotten', async () => ({}))
  await assert.rejects(async () => open.ready(), /GET \/forgotten does not state who may call it/)
})

test('a bug is a bare 500 that tells nothing', async () => {
  const answer = await app.inject({ url: '/bug' })
  assert.equal(answer.statusCode, 500)
  assert.equal(answer.json().code, 'internal')
  assert.doesNotMatch(answer.body, /hunter2/)
})

test('an unknown route is a problem document too', async () => {
  const answer = await app.inject({ url: '/nowhere' })
  assert.deepEqual([answer.statusCode, answer.json().code], [404, 'not_found'])
})

test('an old route’s errors are {"error"}', async () => {
  const answer = await app.inject({ method: 'POST', url: '/old', headers: json, payload: '{' })
  assert.equal(answer.statusCode, 400)
  assert.deepEqual(Object.keys(answer.json()), ['error'])
})

test('a full queue says when to come back', async () => {
  const answer = await app.inject({ url: '/full' })
  assert.deepEqual([answer.statusCode, answer.headers['retry-after']], [503, '1'])
})

test('a caller who asks too often is told to wait, others are not', async () => {
  const limited = await makeApp(3)
  const ask = (token: string) => limited.inject({ url: '/mine', headers: { authorization: `Bearer ${token}` } })
  const codes = []
  for (let n = 0; n < 4; n++) codes.push((await ask('user')).statusCode)
  assert.deepEqual(codes, [200, 200, 200, 429])
  assert.ok(Number((await ask('user')).headers['retry-after']) >= 1)
  assert.notEqual((await ask('admin')).statusCode, 429)
})

test('a request id of the proxy’s is kept when it is harmless', async () => {
  const kept = await app.inject({ url: '/maybe', headers: { 'x-request-id': 'abc-1' } })
  assert.equal(kept.headers['x-request-id'], 'abc-1')
  const replaced = await app.inject({ url: '/maybe', headers: { 'x-request-id': 'a b\t' } })
  assert.notEqual(replaced.headers['x-request-id'], 'a b\t')
})

test('the OpenAPI document names the routes and who may call them', async () => {
  const document = (await app.inject({ url: '/openapi.json' })).json()
  assert.equal(document.openapi, '3.1.0')
  assert.ok(document.paths['/mine'].get.security.length > 0)
  assert.equal(document.paths['/maybe'].get.security, undefined)
  assert.equal((await app.inject({ url: '/docs/' })).statusCode, 200)
})
