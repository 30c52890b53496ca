/** What callers send by mistake or on purpose: each gets a problem document with its 4xx, and nothing is stored. */
import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import { connect } from 'node:net'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { decodeJwt, decodeProtectedHeader, generateKeyPair, SignJWT } from 'jose'
import { WebSocket } from 'ws'
import { makeBus } from '#platform/bus.ts'
import { silentLog } from '#platform/log.ts'
import { makeIdentity } from '#services/identity/index.ts'
import { makeTestApp } from '../../../test/support/app.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeUser } from '../../../test/support/http.ts'
import { until } from '../../../test/support/until.ts'
import { readAllSettings } from '../../app.ts'

const secret = 'a secret of these tests, long enough to be one'
// It only accepts: what it took would lie in line for all to count.
const server = await makeTestApp({
  roles: ['api'],
  env: { AUTH_SECRET: secret, RUN_SOURCE_BYTES: '65536', RUN_STDIN_BYTES: '1000' },
})
const [ann, eve] = [await makeUser(server, 'ann'), await makeUser(server, 'eve')]
const annsRun: string = (await ann.post(server, '/v1/runs', { language: 'python', source: 'print(1)' })).body.id
const program = { language: 'python', source: 'print(1)' }
const uuid = '0190a6e2-7d60-7b5c-8f7e-0123456789ab'

/** Rows of every table that a request about runs or jobs can write. */
async function countRows() {
  const { rows } = await server.db.query(
    `select (select count(*)::int from runner.runs) as runs, (select count(*)::int from runner.run_events) as events,
            (select count(*)::int from jobs.active) as active, (select count(*)::int from jobs.finished) as finished,
            (select count(*)::int from jobs.active where cancel_requested) as cancels,
            (select count(*)::int from jobs.attempts) as attempts,
            (select count(*)::int from platform.idempotency_keys) as keys`,
  )
  return rows[0]!
}

interface Bad {
  method?: 'GET' | 'POST'
  path?: string
  /** Sent as JSON. */
  body?: unknown
  /** Sent as it is. */
  raw?: string | Buffer
  headers?: Record<string, string | undefined>
  status: number
  code: string
}

let keys = 0

async function check(bad: Bad) {
  const { method = 'POST', path = '/v1/runs', status, code } = bad
  const payload = bad.raw ?? (bad.body === undefined ? undefined : JSON.stringify(bad.body))
  const headers = Object.entries({
    authorization: `Bearer ${eve.token}`,
    ...(payload === undefined ? {} : { 'content-type': 'application/json' }),
    ...(method === 'POST' ? { 'idempotency-key': `bad ${++keys}` } : {}),
    ...bad.headers,
  }).filter(([, value]) => value !== undefined)
  const before = await countRows()
  const answer = await server.app.http.inject({
    method,
    url: path,
    headers: Object.fromEntries(headers),
    ...(payload === undefined ? {} : { payload }),
  })
  const problem = answer.json()
  assert.deepEqual([answer.statusCode, problem.code], [status, code], answer.body)
  assert.match(String(answer.headers['content-type']), /^application\/problem\+json/)
  assert.equal(problem.status, status)
  assert.match(problem.request_id, /^[0-9a-f-]{36}$/)
  if (status !== 401) assert.equal(answer.headers['x-request-id'], problem.request_id)
  for (const field of ['type', 'title', 'detail']) assert.ok(problem[field].length > 0, field)
  assert.deepEqual(await countRows(), before, 'nothing is stored')
}

const invalid = { status: 400, code: 'validation_failed' }
const malformed = { status: 400, code: 'malformed_json' }
const invalidText = { status: 400, code: 'invalid_text' }
const invalidFile = { status: 400, code: 'invalid_file' }
const unauthenticated = { status: 401, code: 'unauthenticated' }
const half = '\ud800'
const file = (name: string, content = 'x') => ({ name, content })
const files = (...names: string[]) => ({ language: 'python', files: names.map(name => file(name)) })
const limits = (given: unknown) => ({ ...program, limits: given })

const badRuns: Record<string, Bad> = {
  'an unknown language': { body: { ...program, language: 'cobol' }, status: 400, code: 'unknown_language' },
  'a language of JavaScript’s own making': {
    body: { ...program, language: 'constructor' },
    status: 400,
    code: 'unknown_language',
  },
  'a language with a NUL': { body: { ...program, language: 'py\0' }, status: 400, code: 'unknown_language' },
  'no language': { body: { source: 'x' }, ...invalid },
  'a language that is a number': { body: { ...program, language: 5 }, ...invalid },
  'an endless language': { body: { ...program, language: 'p'.repeat(41) }, ...invalid },
  'an empty source': { body: { ...program, source: '' }, status: 400, code: 'empty_source' },
  'a source one byte too large': {
    body: { ...program, source: 'é'.repeat(32768).concat('x') },
    status: 413,
    code: 'source_too_large',
  },
  'a source that is null': { body: { ...program, source: null }, ...invalid },
  'a source that is a list': { body: { ...program, source: ['print(1)'] }, ...invalid },
  'neither source nor files': { body: { language: 'python' }, status: 400, code: 'source_or_files' },
  'both source and files': {
    body: { ...program, files: [file('main.py')] },
    status: 400,
    code: 'source_or_files',
  },
  'a stdin one byte too large': { body: { ...program, stdin: 'x'.repeat(1001) }, status: 413, code: 'stdin_too_large' },
  'a hundred and one arguments': { body: { ...program, args: Array(101).fill('x') }, ...invalid },
  'an endless argument': { body: { ...program, args: ['x'.repeat(4097)] }, ...invalid },
  'an argument that is a number': { body: { ...program, args: [1] }, ...invalid },

  'a NUL in the source': { body: { ...program, source: 'print(1)\0' }, ...invalidText },
  'a NUL in stdin': { body: { ...program, stdin: '\0' }, ...invalidText },
  'a NUL in an argument': { body: { ...program, args: ['a\0b'] }, ...invalidText },
  'a NUL in a file': { body: { language: 'python', files: [file('a', 'x'), file('b', '\0')] }, ...invalidText },
  'half of a surrogate pair in the source': { body: { ...program, source: `print("${half}")` }, ...invalidText },
  'half of a surrogate pair in stdin': { body: { ...program, stdin: `${half}x` }, ...invalidText },
  'half of a surrogate pair in an argument': { body: { ...program, args: [half] }, ...invalidText },
  'half of a surrogate pair in a file': { body: { language: 'python', files: [file('a', half)] }, ...invalidText },

  'no files': { body: files(), status: 400, code: 'empty_source' },
  'an empty first file': {
    body: { language: 'python', files: [file('a', ''), file('b')] },
    status: 400,
    code: 'empty_source',
  },
  'files too large together': {
    body: { language: 'python', files: [file('a', 'x'.repeat(40_000)), file('b', 'x'.repeat(40_000))] },
    status: 413,
    code: 'source_too_large',
  },
  'a hundred and one files': { body: files(...Array.from({ length: 101 }, (_, n) => `f${n}`)), ...invalid },
  'a file without a name': { body: files(''), ...invalid },
  'a file with an endless name': { body: files('x'.repeat(201)), ...invalid },
  'a file without content': { body: { language: 'python', files: [{ name: 'a' }] }, ...invalid },
  'a file with an unknown field': {
    body: { language: 'python', files: [{ ...file('a'), mode: 511 }] },
    ...invalid,
  },
  ...Object.fromEntries(
    ['../up', 'a/../../up', '..', '.', 'a/.', '/etc/passwd', '/', 'a//b', 'a/', 'a\0b', `a${half}`].map(name => [
      `a file called ${JSON.stringify(name)}`,
      { body: files('main.py', name), ...invalidFile },
    ]),
  ),
  'two files of one name': { body: files('a', 'a'), ...invalidFile },
  'a file that is a folder too': { body: files('a', 'a/b'), ...invalidFile },
  'a file seventeen folders down': { body: files(`${'d/'.repeat(17)}f`), ...invalidFile },

  ...Object.fromEntries(
    ['cpu_ms', 'wall_ms', 'memory_bytes', 'processes', 'output_bytes'].flatMap(name => [
      [`${name} past its cap`, { body: limits({ [name]: 2 ** 40 }), status: 400, code: 'limit_too_high' }],
      [`${name} past every number`, { body: limits({ [name]: 1e300 }), status: 400, code: 'limit_too_high' }],
      ...[-1, 1.5, '1000', null, true, [1], {}].map(value => [
        `${name} as ${JSON.stringify(value)}`,
        { body: limits({ [name]: value }), ...invalid },
      ]),
    ]),
  ),
  ...Object.fromEntries(
    ['cpu_ms', 'wall_ms', 'memory_bytes', 'processes'].map(name => [
      `${name} as 0`,
      { body: limits({ [name]: 0 }), ...invalid },
    ]),
  ),
  'an unknown limit': { body: limits({ gpu_ms: 1 }), ...invalid },
  'limits that are a list': { body: limits([]), ...invalid },
  'limits that are null': { body: limits(null), ...invalid },

  'an unknown field': { body: { ...program, sourcecode: 'x' }, ...invalid },
  'a body that is a list': { body: [program], ...invalid },
  'a body that is a number': { raw: '5', ...invalid },
  'a body that is null': { raw: 'null', ...invalid },
  'a body that is a text': { raw: '"print(1)"', ...invalid },
  'an empty body': { raw: '', ...malformed },
  'no body at all': { ...invalid },
  'a body that is no JSON': { raw: 'language=python', ...malformed },
  'a body cut short': { raw: '{"language":"python","sou', ...malformed },
  'a body with a comma too many': { raw: '{"language":"python","source":"x",}', ...malformed },
  'a body with NaN': { raw: '{"language":"python","source":"x","limits":{"cpu_ms":NaN}}', ...malformed },
  'bytes that are no UTF-8': {
    raw: Buffer.concat([
      Buffer.from('{"language":"python","source":"print(\''),
      Buffer.from([0xff, 0xc3]),
      Buffer.from('\')"}'),
    ]),
    ...malformed,
  },
  'UTF-16': { raw: Buffer.from(JSON.stringify(program), 'utf16le'), ...malformed },
  'a __proto__': { raw: '{"language":"python","source":"x","__proto__":{"role":"admin"}}', ...malformed },
  'a constructor': { raw: '{"language":"python","source":"x","constructor":{"prototype":{}}}', ...malformed },
  '__proto__ inside the limits': {
    raw: '{"language":"python","source":"x","limits":{"__proto__":{"cpu_ms":1}}}',
    ...malformed,
  },
  'deep nesting': {
    raw: `{"language":"python","source":"x","limits":${'{"a":'.repeat(50_000)}1${'}'.repeat(50_000)}}`,
    ...invalid,
  },
  'deep nesting in a list': { raw: `{"language":${'['.repeat(100_000)}${']'.repeat(100_000)}}`, ...invalid },
  'a body of ten megabytes': {
    body: { ...program, source: 'x'.repeat(10_000_000) },
    status: 413,
    code: 'body_too_large',
  },
  ...Object.fromEntries(
    ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'nonsense', 'text/json'].map(
      type => [
        `the content type ${type}`,
        { body: program, headers: { 'content-type': type }, status: 415, code: 'unsupported_media_type' },
      ],
    ),
  ),
  'a key that is none': {
    body: program,
    headers: { 'idempotency-key': 'ü' },
    status: 400,
    code: 'bad_idempotency_key',
  },
}
for (const [name, bad] of Object.entries(badRuns)) test(`${name} is refused`, () => check(bad))

const badQueries: [string, string, number, string][] = [
  ...['abc', '-1', '61', 'NaN', 'Infinity', '', '1&wait=2', '1e99'].map(
    wait => ['POST', `/v1/runs?wait=${wait}`, 400, 'validation_failed'] as [string, string, number, string],
  ),
  ['POST', '/v1/runs?encoding=hex', 400, 'validation_failed'],
  ['GET', `/v1/runs/${uuid}?encoding=utf16`, 400, 'validation_failed'],
  ...['runs', 'jobs'].flatMap(list => [
    ...[
      'limit=0',
      'limit=101',
      'limit=1.5',
      'limit=x',
      'limit=-1',
      'limit=',
      'limit=1&limit=2',
      `cursor=${'x'.repeat(201)}`,
    ].map(query => ['GET', `/v1/${list}?${query}`, 400, 'validation_failed'] as [string, string, number, string]),
    ...[
      'x',
      '\0',
      '💥',
      '../..',
      Buffer.from('5').toString('base64url'),
      Buffer.from('[]').toString('base64url'),
      Buffer.from('[1]').toString('base64url'),
      Buffer.from('["x"]').toString('base64url'),
      Buffer.from('[null]').toString('base64url'),
      Buffer.from('{"0":1}').toString('base64url'),
      Buffer.from(`["${uuid}","${uuid}"]`).toString('base64url'),
      Buffer.from(`["${uuid}'--"]`).toString('base64url'),
    ].map(
      cursor =>
        ['GET', `/v1/${list}?cursor=${encodeURIComponent(cursor)}`, 400, 'bad_cursor'] as [
          string,
          string,
          number,
          string,
        ],
    ),
  ]),
  ['GET', '/v1/runs?status=lost', 400, 'validation_failed'],
  ['GET', `/v1/runs?language=${'x'.repeat(41)}`, 400, 'validation_failed'],
  ['GET', '/v1/jobs?state=succeded', 400, 'validation_failed'],
  ['GET', `/v1/jobs?queue=${'x'.repeat(101)}`, 400, 'validation_failed'],
]
for (const [method, path, status, code] of badQueries) {
  test(`${method} ${path.slice(0, 80)} is refused`, () =>
    check({ method: method as 'GET' | 'POST', path, ...(method === 'POST' ? { body: program } : {}), status, code }))
}

const placesOfRuns = ['GET /v1/runs/:id', 'POST /v1/runs/:id/cancel']
const placesOfJobs = ['GET /v1/jobs/:id', 'POST /v1/jobs/:id/cancel', 'POST /v1/jobs/:id/retry']
for (const place of [...placesOfRuns, ...placesOfJobs]) {
  const [method, route] = place.split(' ') as ['GET' | 'POST', string]
  const at = (id: string) => ({ method, path: route.replace(':id', id) })
  const code = placesOfRuns.includes(place) ? 'run_not_found' : 'job_not_found'

  test(`${place} knows neither another’s id nor one that never was`, async () => {
    await check({ ...at(annsRun), status: 404, code })
    await check({ ...at(uuid), status: 404, code })
  })

  test(`${place} refuses what is no id`, async () => {
    for (const id of ['x', '1', '%00', '%27%20or%201=1--', uuid.slice(1), `${uuid}0`, 'null', `{${uuid}}`]) {
      await check({ ...at(id), status: 400, code: 'validation_failed' })
    }
  })
}

test('another’s run is not in a list', async () => {
  for (const list of ['runs', 'jobs']) assert.deepEqual((await eve.get(server, `/v1/${list}`)).body[list], [])
})

test('another’s run, one that never was and what is no run cannot be followed', async () => {
  const socket = new WebSocket(`${server.url.replace('http', 'ws')}/v1/live`, {
    headers: { authorization: `Bearer ${eve.token}` },
  })
  atEnd(() => socket.terminate())
  const errors = new Map<string, string>()
  socket.on('message', data => {
    const frame = JSON.parse(data.toString())
    if (frame.type === 'error') errors.set(frame.id, frame.code)
    if (frame.type === 'subscribed') errors.set(frame.id, 'subscribed')
  })
  await until(() => socket.readyState === WebSocket.OPEN)
  const wanted: [string, string][] = [
    [`runs/${annsRun}`, 'run_not_found'],
    [`runs/${uuid}`, 'run_not_found'],
    ['runs/x', 'run_not_found'],
    [`runs/${uuid}0`, 'run_not_found'],
    ['nothing/x', 'unknown_topic'],
    ['runs/', 'bad_topic'],
  ]
  for (const [topic] of wanted) socket.send(JSON.stringify({ type: 'subscribe', topic, id: topic }))
  await until(() => errors.size === wanted.length)
  assert.deepEqual([...errors].sort(), wanted.toSorted())
  for (const [topic, code] of wanted) {
    const status = code === 'bad_topic' ? 400 : 404
    await check({ method: 'GET', path: `/v1/live/events?topic=${topic}`, status, code })
  }
})

test('no token, and every token that is not one of ours that lives, is refused everywhere', async () => {
  const claims = decodeJwt(eve.token)
  const header = decodeProtectedHeader(eve.token) as { alg: string; kid: string; typ: string }
  const [head, body, signature] = eve.token.split('.') as [string, string, string]
  const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const { privateKey } = await generateKeyPair('EdDSA')
  const sign = (kid: string) => new SignJWT(claims).setProtectedHeader({ ...header, kid }).sign(privateKey)
  const hmacHead = encode({ ...header, alg: 'HS256' })
  const { x } = (await eve.get(server, '/.well-known/jwks.json')).body.keys[0]
  const hmac = createHmac('sha256', Buffer.from(x, 'base64url')).update(`${hmacHead}.${body}`).digest('base64url')
  const tokens: Record<string, string | undefined> = {
    none: undefined,
    'no scheme': eve.token,
    'another scheme': `Basic ${Buffer.from('eve:x').toString('base64')}`,
    'an empty one': 'Bearer ',
    'a word': 'Bearer x',
    'two dots': 'Bearer ..',
    'cut short': `Bearer ${eve.token.slice(0, -10)}`,
    'signed with another key under our name': `Bearer ${await sign(header.kid)}`,
    'signed with another key': `Bearer ${await sign('another')}`,
    'alg none': `Bearer ${encode({ alg: 'none', typ: header.typ })}.${body}.`,
    'alg none with the signature': `Bearer ${encode({ ...header, alg: 'none' })}.${body}.${signature}`,
    'signed with our public key as a password': `Bearer ${hmacHead}.${body}.${hmac}`,
    'made an admin’s': `Bearer ${head}.${encode({ ...claims, role: 'admin' })}.${signature}`,
    expired: `Bearer ${await expiredToken()}`,
    'an API key that never was': 'Bearer cap_0123456789012345678901234567890123456789',
  }
  for (const [name, authorization] of Object.entries(tokens)) {
    const headers = { authorization }
    for (const bad of [
      { body: program, headers },
      { method: 'GET' as const, path: '/v1/runs', headers },
      { method: 'GET' as const, path: `/v1/jobs/${annsRun}`, headers },
      { method: 'GET' as const, path: `/v1/live/events?topic=runs/${annsRun}`, headers },
    ]) {
      await check({ ...bad, ...unauthenticated }).catch(error => {
        throw new Error(`${name}: ${error.message}`)
      })
    }
  }
})

test('a refusal for want of a token carries its request id in a header too', async () => {
  const answer = await server.app.http.inject({ method: 'GET', url: '/v1/runs', headers: { 'x-request-id': 'mine' } })
  assert.deepEqual([answer.statusCode, answer.json().request_id], [401, 'mine'])
  assert.match(String(answer.headers['www-authenticate']), /^Bearer/)
  assert.equal(answer.headers['x-request-id'], 'mine')
})

/** One that was good an hour ago, made by the same database and secret. */
async function expiredToken(): Promise<string> {
  const settings = readAllSettings({ AUTH_SECRET: secret })
  const past = makeIdentity({
    db: server.db,
    bus: makeBus({ db: server.db, redisUrl: undefined, log: silentLog }),
    log: silentLog,
    settings,
    platform: settings,
    scopes: [],
    secretsDir: '/nonexistent',
    clock: () => Date.now() - 3_600_000,
  })
  const origin = { address: '127.0.0.1', userAgent: '' }
  return (await past.login({ name: eve.name, password: eve.password, origin })).accessToken
}

test('a field that comes twice counts as it came last, for the check as for the run', async () => {
  const before = await countRows()
  const send = (raw: string) =>
    server.app.http.inject({
      method: 'POST',
      url: '/v1/runs',
      headers: { authorization: `Bearer ${ann.token}`, 'content-type': 'application/json' },
      payload: raw,
    })
  const refused = await send('{"language":"python","source":"print(1)","source":""}')
  assert.deepEqual([refused.statusCode, refused.json().code], [400, 'empty_source'])
  assert.deepEqual(await countRows(), before)
  const taken = await send('{"language":"cobol","language":"python","source":"print(1)"}')
  assert.deepEqual([taken.statusCode, taken.json().language], [202, 'python'])
})

test('ten megabytes over a socket are refused without being read', async () => {
  const { hostname, port } = new URL(server.url)
  const socket = connect(Number(port), hostname)
  const answer = text(socket)
  socket.write(
    `POST /v1/runs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${eve.token}\r\ncontent-type: application/json\r\n` +
      'content-length: 10000000\r\nconnection: close\r\n\r\n{"language":',
  )
  assert.match(await answer, /^HTTP\/1\.1 413 [\s\S]*"code":"body_too_large"/)
})

test('nothing of all this was unforeseen', () => assert.deepEqual(server.complaints, []))
