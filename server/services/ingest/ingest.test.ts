/** Streams from declaration to deletion, over HTTP, on PostgreSQL alone. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type ClientRequest, type IncomingMessage, request } from 'node:http'
import { test } from 'node:test'
import { makeTestApp } from '../../../test/support/app.ts'
import { send } from '../../../test/support/http.ts'
import { until } from '../../../test/support/until.ts'
import { generateCourses } from './courses.ts'
import { course, makeAdmin, makeSender, readAll, untilCounted } from './test-support.ts'

const server = await makeTestApp()
const [admin, ann] = [await makeAdmin(server), await makeSender(server, 'ann')]
const declaration = {
  schema: { type: 'object', required: ['id'], properties: { id: { type: 'integer' } } },
  dimensions: ['kind'],
}

let streams = 0
/** A stream of a test's own. */
async function declare(more: Record<string, unknown> = {}): Promise<string> {
  const name = `stream-${++streams}`
  const { status, body } = await admin.put(`/v1/streams/${name}`, { ...declaration, readers: 'users', ...more })
  assert.equal(status, 201, JSON.stringify(body))
  return name
}

const assertProblem = (answer: { status: number; body: { code?: string } }, status: number, code: string) =>
  assert.deepEqual([answer.status, answer.body.code], [status, code], JSON.stringify(answer.body))

test('`courses` is there from the start, and the old door leads into it', async () => {
  const { body } = await ann.get('/v1/streams/courses')
  assert.deepEqual(body.dimensions, ['region', 'facultad', 'carrera', 'curso'])
  const before = (await ann.get('/v1/streams/courses/counts')).body.total
  const taken = await send(server, 'POST', '/course', {}, course({ curso: 'ANP', region: 'OTRA' }))
  assert.equal(taken.status, 201)
  const refused = await send(server, 'POST', '/course', {}, { curso: 'ANP' })
  assert.deepEqual([refused.status, Object.keys(refused.body)], [422, ['error']])
  assert.equal((await send(server, 'POST', '/course', { authorization: 'Bearer x' }, course())).status, 401)
  await untilCounted(ann, 'courses', before + 1)
  assert.equal((await readAll(ann, 'courses')).at(-1)!.offset, taken.body.offset)
  const closed = await makeTestApp({ env: { OPEN_ROUTES: 'none' } })
  assert.equal((await send(closed, 'POST', '/course', {}, course())).status, 401)
})

test('a stream is declared by admins, changed, listed, read and deleted', async () => {
  assertProblem(await ann.put('/v1/streams/mine', declaration), 403, 'forbidden')
  const made = await admin.put('/v1/streams/mine', declaration)
  assert.deepEqual([made.status, made.body.routes, made.body.readers], [201, { a: 50, b: 50 }, 'admins'])
  assertProblem(await ann.get('/v1/streams/mine'), 404, 'stream_not_found')
  const changed = await admin.put('/v1/streams/mine', { ...declaration, readers: 'users', routes: { a: 0, b: 100 } })
  assert.deepEqual([changed.status, changed.body.routes], [200, { a: 0, b: 100 }])
  const names = (await ann.get('/v1/streams')).body.streams.map((stream: { name: string }) => stream.name)
  assert.ok(names.includes('mine') && names.includes('courses'))
  assert.equal((await ann.post('/v1/streams/mine/records', { id: 1 })).body.route, 'b')
  assert.equal((await admin.delete('/v1/streams/mine')).status, 204)
  assertProblem(await ann.post('/v1/streams/mine/records', { id: 1 }), 404, 'stream_not_found')
  assertProblem(await admin.delete('/v1/streams/mine'), 404, 'stream_not_found')
  // A new one of that name has none of the old one's records.
  await admin.put('/v1/streams/mine', { ...declaration, readers: 'users' })
  assert.deepEqual((await ann.get('/v1/streams/mine/records')).body, { records: [], next: '0' })
})

test('a declaration that is wrong is refused with what is wrong', async () => {
  const put = (more: Record<string, unknown>, name = 'wrong') =>
    admin.put(`/v1/streams/${name}`, { ...declaration, ...more })
  assertProblem(await put({}, 'Upper'), 400, 'bad_stream_name')
  assertProblem(await put({}, '1st'), 400, 'bad_stream_name')
  assertProblem(await put({ schema: { type: 'strnig' } }), 400, 'bad_schema')
  assertProblem(await put({ schema: 'none' }), 400, 'bad_schema')
  assertProblem(await put({ routes: { a: 60, b: 50 } }), 400, 'bad_weights')
  assertProblem(await put({ routes: { a: -10, b: 110 } }), 400, 'bad_weights')
  assertProblem(await put({ routes: { a: 49.5, b: 50.5 } }), 400, 'bad_weights')
  assertProblem(await put({ routes: { a: 100 } }), 400, 'validation_failed')
  assertProblem(await put({ dimensions: ['a', 'b', 'c', 'd', 'e'] }), 400, 'bad_dimensions')
  assertProblem(await put({ dimensions: ['a', 'a'] }), 400, 'bad_dimensions')
  assertProblem(await put({ dimensions: ['a,b'] }), 400, 'bad_dimensions')
  assertProblem(await put({ dimensions: ['route'] }), 400, 'bad_dimensions')
  assertProblem(await put({ retention_days: 0 }), 400, 'validation_failed')
  assertProblem(await put({ unknown: 1 }), 400, 'validation_failed')
  assertProblem(await ann.get('/v1/streams/wrong'), 404, 'stream_not_found')
})

test('of an array each record has its own outcome; the good ones go in', async () => {
  const name = await declare()
  const post = (body: unknown, more?: Record<string, string>) => ann.post(`/v1/streams/${name}/records`, body, more)
  const mixed = await post(`[{"id":1},{"id":"2"},{"id":3,"id":4},[],{"id":5},${'{"a":'.repeat(40)}1${'}'.repeat(40)}]`)
  assert.equal(mixed.status, 200)
  assert.deepEqual([mixed.body.accepted, mixed.body.refused], [2, 4])
  assert.deepEqual(
    mixed.body.records.map((each: { error?: { code: string } }) => each.error?.code ?? 'taken'),
    ['taken', 'record_invalid', 'record_has_duplicate_keys', 'record_not_an_object', 'taken', 'record_too_deep'],
  )
  assert.deepEqual(
    (await readAll(ann, name)).map(each => each.record),
    [{ id: 1 }, { id: 5 }],
  )
  assert.equal((await post([{ id: 'x' }, {}])).status, 422)
  assertProblem(await post('[{"id":1}'), 400, 'malformed_json')
  assertProblem(await post('[]'), 400, 'records_empty')
  assertProblem(await post(''), 400, 'records_empty')
  assertProblem(await post('"x"'), 400, 'record_not_an_object')
  assertProblem(await post({ id: 'x' }), 422, 'record_invalid')
  assertProblem(await post(`{"id":1,"text":"${'x'.repeat(70_000)}"}`), 413, 'record_too_large')
  assertProblem(await post(Array(10_001).fill({ id: 1 })), 413, 'records_too_many')
  assertProblem(await post(`[${'{"id":1},'.repeat(2_000_000)}{"id":1}]`), 413, 'body_too_large')
  assertProblem(await post('{}', { 'content-type': 'text/plain' }), 415, 'unsupported_media_type')
  assertProblem(await ann.post('/v1/streams/nowhere/records', {}), 404, 'stream_not_found')
})

test('of lines each is answered, the wrong ones by themselves', async () => {
  const name = await declare({ routes: { a: 100, b: 0 } })
  const answers = await ann.lines(name, '{"id":1}\n{"id":2}\r\n\n{"id":"x"}\n{bad\n{"id":3}\n\xff\n{"id":4}')
  assert.deepEqual(
    answers.map(each =>
      'error' in each ? [each.line, each.error.code] : [each.line, each.count, each.offset, each.route],
    ),
    [
      [1, 2, '1', 'a'],
      [4, 'record_invalid'],
      [5, 'record_not_json'],
      [6, 1, '3', 'a'],
      [7, 'record_not_json'],
      [8, 1, '4', 'a'],
    ],
  )
  assert.deepEqual(await ann.lines(name, ''), [])
  const long = await ann.lines(name, `{"id":5}\n{"id":6,"x":"${'y'.repeat(3_000_000)}"}\n{"id":7}\n`)
  assert.deepEqual(
    long.map(each => each.error?.code ?? each.offset),
    ['5', 'record_too_large', '6'],
  )
})

/** A request whose body goes on. */
function open(path: string): { sender: ClientRequest; answer: Promise<IncomingMessage> } {
  const headers = { ...ann.headers, 'content-type': 'application/x-ndjson' }
  const sender = request(`${server.url}${path}`, { method: 'POST', headers })
  sender.on('error', () => {})
  return { sender, answer: once(sender, 'response').then(([response]) => response as IncomingMessage) }
}

test('a line is answered when it is durable, while the body goes on; one cut in the middle is not taken', async () => {
  const name = await declare()
  const { sender, answer } = open(`/v1/streams/${name}/records`)
  sender.write('{"id":1}\n')
  const response = await answer
  let told = ''
  response.setEncoding('utf8').on('data', text => {
    told += text
  })
  response.on('error', () => {})
  await until(() => told.includes('\n'))
  assert.deepEqual(JSON.parse(told), { line: 1, count: 1, offset: '1', route: 'b' })
  sender.write('{"id":2}\n{"id"')
  await until(() => told.includes('"line":2'))
  sender.write(':3}\n{"id":4')
  await until(() => told.includes('"line":3'))
  sender.destroy()
  await until(() => response.closed)
  assert.deepEqual(
    (await readAll(ann, name)).map(each => each.record.id),
    [1, 2, 3],
  )
  assert.deepEqual(server.complaints, [])
})

test('a request that comes again with its key goes in once', async () => {
  const name = await declare()
  const post = (body: unknown, key: string) => ann.post(`/v1/streams/${name}/records`, body, { 'idempotency-key': key })
  const [first, second] = await Promise.all([post({ id: 1 }, 'one'), post({ id: 1 }, 'one')])
  assert.deepEqual([first.status, first.body], [201, second.body])
  assertProblem(await post({ id: 2 }, 'one'), 422, 'idempotency_key_reused')
  const several = await post([{ id: 3 }, { id: 'x' }, { id: 4 }], 'several')
  assert.deepEqual((await post([{ id: 3 }, { id: 'x' }, { id: 4 }], 'several')).body, several.body)
  assert.deepEqual(
    (await readAll(ann, name)).map(each => each.record.id),
    [1, 3, 4],
  )
  await untilCounted(ann, name, 3)
})

test('what was taken is answered so again, though its stream takes no such record any more', async () => {
  const name = await declare()
  const post = (body: unknown, key: string) => ann.post(`/v1/streams/${name}/records`, body, { 'idempotency-key': key })
  const [one, some] = [{ id: 1 }, [{ id: 2 }, { id: 3, kind: 'x' }]]
  const first = [await post(one, 'stricter-1'), await post(some, 'stricter-2')]
  assert.deepEqual(
    first.map(answer => answer.status),
    [201, 200],
  )
  const schema = { type: 'object', required: ['id', 'kind'], properties: { kind: { type: 'integer' } } }
  assert.equal((await admin.put(`/v1/streams/${name}`, { ...declaration, schema, readers: 'users' })).status, 200)
  const again = [await post(one, 'stricter-1'), await post(some, 'stricter-2')]
  assert.deepEqual(
    again.map(({ status, body }) => [status, body]),
    first.map(({ status, body }) => [status, body]),
  )
  assertProblem(await post({ id: 4 }, 'stricter-1'), 422, 'idempotency_key_reused')
  // A key that nothing was taken by is free for something that can be.
  assertProblem(await post({ id: 4 }, 'stricter-3'), 422, 'record_invalid')
  assert.equal((await post([{ id: 4 }], 'stricter-3')).status, 422)
  assert.equal((await post({ id: 4, kind: 5 }, 'stricter-3')).status, 201)
  assert.equal((await readAll(ann, name)).length, 4)
})

test('offsets have no gap, whoever adds at the same time and by whichever route', async () => {
  const name = await declare()
  await Promise.all(
    Array.from({ length: 20 }, async (_, writer) => {
      for (let n = 0; n < 20; n++) {
        const id = writer * 1000 + n
        if (n % 5 === 4) await ann.lines(name, `{"id":${id},"kind":"line"}\n{"id":${id + 500},"kind":"line"}`)
        else assert.equal((await ann.post(`/v1/streams/${name}/records`, { id, kind: 'one' })).status, 201)
      }
    }),
  )
  const records = await readAll(ann, name)
  assert.deepEqual(
    records.map(each => each.offset),
    Array.from({ length: 480 }, (_, index) => String(index + 1)),
  )
  assert.equal(new Set(records.map(each => each.record.id)).size, 480)
  await untilCounted(ann, name, 480)
  const { body } = await ann.get(`/v1/streams/${name}/counts?by=kind`)
  assert.deepEqual(body.rows, [
    { values: ['line'], count: 160 },
    { values: ['one'], count: 320 },
  ])
})

test('a hundred thousand are split as the weights say, and counted once each', async () => {
  for (const a of [50, 90]) {
    const name = await declare({ routes: { a, b: 100 - a }, dimensions: ['region', 'facultad'], schema: {} })
    const records = [...generateCourses({ count: 100_000, seed: a })]
    const answers = await ann.lines(name, records.map(record => JSON.stringify(record)).join('\n'))
    assert.equal(
      answers.reduce((sum, each) => sum + each.count, 0),
      100_000,
    )
    await untilCounted(ann, name, 100_000)
    const byRoute = (await ann.get(`/v1/streams/${name}/counts?by=route`)).body.rows
    const ofA = byRoute.find((row: { values: string[] }) => row.values[0] === 'a').count
    assert.ok(Math.abs(ofA - a * 1000) <= 1000, `${ofA} of ${a} %`)
    const wanted = new Map<string, number>()
    for (const { region, facultad } of records) {
      const key = `${facultad} ${region}`
      wanted.set(key, (wanted.get(key) ?? 0) + 1)
    }
    const { rows } = (await ann.get(`/v1/streams/${name}/counts?by=facultad,region`)).body
    assert.deepEqual(
      new Map(rows.map((row: { values: string[]; count: number }) => [row.values.join(' '), row.count])),
      new Map([...wanted].sort()),
    )
  }
})

test('records are read from any offset on, and followed live', async () => {
  const name = await declare()
  await ann.lines(name, Array.from({ length: 50 }, (_, id) => `{"id":${id}}`).join('\n'))
  const page = (await ann.get(`/v1/streams/${name}/records?after=10&limit=5`)).body
  assert.deepEqual(
    page.records.map((each: { offset: string }) => each.offset),
    ['11', '12', '13', '14', '15'],
  )
  assert.equal(page.next, '15')
  // A page of long ones is a shorter one.
  const long = Array.from({ length: 100 }, (_, id) => ({ id, text: 'x'.repeat(60_000) }))
  const of = await declare()
  assert.equal((await ann.post(`/v1/streams/${of}/records`, long)).body.accepted, 100)
  const cut = (await ann.get(`/v1/streams/${of}/records?limit=1000`)).body
  assert.ok(cut.records.length >= 50 && cut.records.length < 75, String(cut.records.length))
  assert.equal(cut.next, cut.records.at(-1).offset)
  assert.equal((await readAll(ann, of)).length, 100)
  assert.deepEqual((await ann.get(`/v1/streams/${name}/records?after=50`)).body, { records: [], next: '50' })
  for (const after of ['x', '-1', 'k1', '1.5']) {
    assertProblem(await ann.get(`/v1/streams/${name}/records?after=${after}`), 400, 'bad_offset')
  }
  const live = await fetch(`${server.url}/v1/live/events?topic=streams/${name}&after=48`, { headers: ann.headers })
  const reader = live.body!.getReader()
  let told = ''
  const told4 = (async () => {
    while ((told.match(/^data:/gm) ?? []).length < 4) told += Buffer.from((await reader.read()).value!).toString()
    await reader.cancel()
  })()
  await ann.lines(name, '{"id":50}\n{"id":51}')
  await told4
  const events = [...told.matchAll(/^data: (.*)$/gm)].map(match => JSON.parse(match[1]!))
  assert.deepEqual(
    events.map(event => event.seq),
    [49, 50, 51, 52],
  )
  assert.deepEqual(new Set(events.slice(2).map(event => event.data.record.id)), new Set([50, 51]))
})

test('a chart is drawn of what there is, whatever strangers called it', async () => {
  const name = await declare()
  const draw = async (query: string) => {
    const answer = await fetch(`${server.url}/v1/streams/${name}/chart.svg?${query}`, { headers: ann.headers })
    assert.equal(answer.headers.get('content-type'), 'image/svg+xml; charset=utf-8')
    return answer.text()
  }
  assert.match(await draw(''), /No records yet/)
  await ann.lines(name, '{"id":1,"kind":"<script>alert(1)</script>\\u0000"}\n{"id":2,"kind":"b"}\n{"id":3}\n')
  await untilCounted(ann, name, 3)
  for (const svg of [await draw('by=kind'), await draw('by=kind&every=1m')]) {
    assert.match(svg, /^<svg[\s\S]*<\/svg>\n$/)
    assert.ok(!svg.includes('<script') && svg.includes('&#60;script'), svg)
    assert.match(svg, /\(none\)/)
  }
})

test('who may not write or read is told so', async () => {
  const name = await declare({ writers: 'admins', readers: 'admins' })
  assertProblem(await ann.post(`/v1/streams/${name}/records`, { id: 1 }), 404, 'stream_not_found')
  assert.equal((await admin.post(`/v1/streams/${name}/records`, { id: 1 })).status, 201)
  for (const path of ['records', 'counts', 'chart.svg', '']) {
    assertProblem(await ann.get(`/v1/streams/${name}${path && `/${path}`}`), 404, 'stream_not_found')
  }
  assert.equal((await send(server, 'POST', `/v1/streams/${name}/records`, {}, { id: 1 })).status, 401)
  const topic = await fetch(`${server.url}/v1/live/events?topic=streams/${name}`, { headers: ann.headers })
  assert.equal(topic.status, 404)
})
