/** What strangers and admins may send that is out of the ordinary: it is taken as it is, or refused, and hurts nobody. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestApp } from '../../../test/support/app.ts'
import { until } from '../../../test/support/until.ts'
import { listDeltas } from './delta-store.ts'
import { makeAdmin, makeSender, untilCounted } from './test-support.ts'

const server = await makeTestApp()
const [admin, ann] = [await makeAdmin(server), await makeSender(server, 'ann')]
const put = (name: string, more: Record<string, unknown> = {}) =>
  admin.put(`/v1/streams/${name}`, { schema: {}, readers: 'users', ...more })

const assertProblem = (answer: { status: number; body: { code?: string } }, status: number, code: string) =>
  assert.deepEqual([answer.status, answer.body.code], [status, code], JSON.stringify(answer.body))

test('a record is kept as it was written, whatever its line breaks and numbers', async () => {
  await put('exact')
  const odd = '{"big":12345678901234567890,"huge":1e999,"2":0,"1":-0,"__proto__":{"x":1}}'
  const pretty = odd.replaceAll(',', ',\r\n')
  assert.equal((await ann.post('/v1/streams/exact/records', pretty)).status, 201)
  assert.equal((await ann.post('/v1/streams/exact/records', `[${pretty}]`)).status, 200)
  await ann.lines('exact', `${odd}\r\n`)
  const answer = await fetch(`${server.url}/v1/streams/exact/records`, { headers: ann.headers })
  const texts = [...(await answer.text()).matchAll(/"record":(\{.*?\}\})\}/g)].map(match =>
    match[1]!.replaceAll(' ', ''),
  )
  assert.deepEqual(texts, [odd, odd, odd])
})

test('what every object has is no field of a record', async () => {
  await put('own', { dimensions: ['constructor', 'toString', '__proto__'], sticky_by: 'constructor' })
  await ann.lines('own', '{"id":1}\n{"id":2,"constructor":"x","__proto__":"y"}')
  await untilCounted(ann, 'own', 2)
  const { rows } = (await ann.get('/v1/streams/own/counts?by=constructor,toString,__proto__')).body
  assert.deepEqual(
    rows.map((row: { values: string[] }) => row.values),
    [
      ['', '', ''],
      ['x', '', 'y'],
    ],
  )
})

test('a body that is none, or of another kind, is refused', async () => {
  const post = async (path: string, headers: Record<string, string>, body?: string) => {
    const answer = await fetch(`${server.url}${path}`, { method: 'POST', headers, ...(body ? { body } : {}) })
    return answer.status
  }
  assert.equal(await post('/v1/streams/courses/records', ann.headers), 400)
  assert.equal(await post('/course', {}), 400)
  assert.equal(await post('/course', { 'content-type': 'application/x-ndjson' }, '{}\n'), 415)
  assert.equal((await ann.get('/v1/streams?after=%00')).status, 400)
  assert.deepEqual(server.complaints, [])
})

test('a line that is too long is called so, even where it was cut inside a character', async () => {
  await put('long')
  const answers = await ann.lines('long', `{"a":1}\n{"a":"${'é'.repeat(70_000)}"}\n{"a":2}`)
  assert.deepEqual(
    answers.map(each => each.error?.code ?? each.count),
    [1, 'record_too_large', 1],
  )
})

test('a schema that cannot be kept, or takes for ever, is refused', async () => {
  const deep = (levels: number): unknown => JSON.parse(`${'{"not":'.repeat(levels)}{}${'}'.repeat(levels)}`)
  const doubling = Object.fromEntries(
    Array.from({ length: 40 }, (_, n) => [
      `d${n}`,
      { allOf: [{ $ref: `#/$defs/d${n + 1}` }, { $ref: `#/$defs/d${n + 1}` }] },
    ]),
  )
  for (const schema of [
    { description: '\u0000' },
    { const: '\ud800' },
    deep(4000),
    { $ref: '#' },
    { $defs: { ...doubling, d40: { type: 'object' } }, $ref: '#/$defs/d0' },
    {
      $defs: { a: { properties: { c: { allOf: [{ $ref: '#/$defs/a' }, { $ref: '#/$defs/a' }] } } } },
      $ref: '#/$defs/a',
    },
    { $ref: 'https://example.org/schema' },
    { properties: { a: { type: 'array', uniqueItems: true } } },
    { properties: { a: { type: 'string', pattern: '(a)\\1' } } },
    { properties: { a: { type: 'string', pattern: '(' } } },
  ]) {
    const { status, body } = await put('refused', { schema })
    assert.deepEqual([status, body.code], [400, 'bad_schema'], JSON.stringify(schema).slice(0, 100))
  }
  const deepest = await fetch(`${server.url}/v1/streams/refused`, {
    method: 'PUT',
    headers: { ...admin.headers, 'content-type': 'application/json' },
    body: `{"schema":${'{"not":'.repeat(80_000)}{}${'}'.repeat(80_000)}}`,
  })
  assert.equal(deepest.status, 400)
  assert.equal((await put('refused', { sticky_by: '\u0000' })).status, 400)
  assert.deepEqual(server.complaints, [])
})

test('a string on which a pattern does badly holds nobody up', async () => {
  const schema = {
    properties: { a: { type: 'string', pattern: '^(a+)+$' }, c: { $ref: '#/$defs/c' } },
    patternProperties: { '^(x+)+$': {} },
    $defs: { c: { type: 'string', pattern: '^\\p{L}{2,}-\\d+$' } },
  }
  assert.equal((await put('pattern', { schema, routes: { a: 0, b: 100 } })).status, 201)
  const began = performance.now()
  const answers = await ann.lines(
    'pattern',
    [{ a: `${'a'.repeat(60_000)}!` }, { [`${'x'.repeat(1000)}!`]: 1 }, { a: 'aaa', c: 'né-7' }, { c: 'n-7' }]
      .map(each => JSON.stringify(each))
      .join('\n'),
  )
  assert.ok(performance.now() - began < 5000)
  assert.deepEqual(
    answers.map(each => each.error?.code ?? each.count),
    ['record_invalid', 2, 'record_invalid'],
  )
})

test('counts of any time are answered or refused', async () => {
  for (const query of [
    'from=0000-01-01T00:00:00Z',
    'every=99999d',
    'from=9999-12-31T23:59:59-23:59',
    'to=9999-12-31T23:59:59-23:59',
    'from=1970-01-01T00:00:00Z&to=9999-12-31T00:00:00Z&every=9999d',
    'to=1960-01-01T00:00:00Z',
    'to=0000-01-01T00:00:00Z',
  ]) {
    for (const path of ['counts', 'chart.svg']) {
      const { status } = await ann.get(`/v1/streams/courses/${path}?${query}`)
      assert.ok(status === 200 || status === 400, `${status} ${query}`)
    }
  }
  assert.deepEqual(server.complaints, [])
})

test('followers of a stream that is deleted are told so, and follow another of its name from its beginning', async () => {
  await put('again')
  await ann.lines('again', '{"id":1}\n{"id":2}')
  const follow = async () => {
    const live = await fetch(`${server.url}/v1/live/events?topic=streams/again&after=0`, { headers: ann.headers })
    const told = { text: '', isOver: false }
    void (async () => {
      for await (const piece of live.body!) told.text += Buffer.from(piece).toString()
      told.isOver = true
    })()
    return told
  }
  const first = await follow()
  await until(() => first.text.includes('"id":2'))
  assert.equal((await admin.delete('/v1/streams/again')).status, 204)
  await put('again')
  await until(() => first.isOver)
  assert.match(first.text, /deleted/)
  const second = await follow()
  await ann.lines('again', '{"id":3}')
  await until(() => second.text.includes('"id":3'))
  await admin.delete('/v1/streams/again')
  await until(() => second.isOver)
})

test('adding while a stream is deleted fails in good order, and leaves nothing behind', async () => {
  for (let round = 0; round < 5; round++) {
    await put('fading', { dimensions: ['id'] })
    const answers = Promise.all(
      Array.from({ length: 40 }, (_, id) =>
        ann.post('/v1/streams/fading/records', { id }, id % 4 === 0 ? { 'idempotency-key': `${round}-${id}` } : {}),
      ),
    )
    assert.equal((await admin.delete('/v1/streams/fading')).status, 204)
    for (const { status } of await answers) assert.ok(status === 201 || status === 404, String(status))
  }
  const { rows } = await server.db.query<{ count: number }>(
    'select count(*) from ingest.segments where stream_id not in (select id from ingest.streams)',
  )
  assert.equal(rows[0]!.count, 0)
  assert.deepEqual(server.complaints, [])
})

test('counts over years are summed up before they are counted against a bound', async () => {
  await put('years', { dimensions: ['a', 'b'] })
  await server.db.query(
    `insert into ingest.rollups (stream_id, grain, dimensions, bucket, key, count)
     select s.id, 86400, 'a,b', '2020-01-01T00:00:00Z'::timestamptz + make_interval(days => d), json_build_array(k::text, '')::text, 2
     from ingest.streams s, generate_series(1, 600) d, generate_series(1, 100) k where s.name = 'years'`,
  )
  const { status, body } = await ann.get('/v1/streams/years/counts?by=a,b')
  assert.deepEqual([status, body.total, body.rows?.length], [200, 120_000, 100], body.detail)
  const fine = await ann.get(
    '/v1/streams/years/counts?by=a,b&every=1d&from=2020-01-01T00:00:00Z&to=2021-12-31T00:00:00Z',
  )
  assert.equal(fine.body.code, 'bad_counts_query')
  const steps = await ann.get(
    '/v1/streams/years/counts?by=b,a&every=100d&from=2020-01-01T00:00:00Z&to=2021-12-31T00:00:00Z',
  )
  assert.equal(steps.body.total, 120_000)
  assert.deepEqual(steps.body.rows[0].values, ['', '1'])
})

test('counts that were not merged for long are not read all at once', async () => {
  await put('behind', { dimensions: ['a'] })
  const held = await server.db.connect()
  try {
    // Nobody merges them while this one holds the cursor.
    const { rows } = await held.query<{ id: number }>(`select id from ingest.streams where name = 'behind'`)
    const { id } = rows[0]!
    await held.query(`insert into ingest.cursors (stream_id, name, position) values ($1, 'merge', 0)`, [id])
    await held.query('begin')
    await held.query(`select position from ingest.cursors where stream_id = $1 for update`, [id])
    await server.db.query(
      `with head as (update ingest.heads set last_delta = 40 where stream_id = $1)
       insert into ingest.deltas (stream_id, seq, minute, dimensions, counts)
       select $1, n, date_trunc('minute', now()), 'a', '{"b":[[["x"],1]]}' || repeat(' ', 1000000)
       from generate_series(1, 40) n`,
      [id],
    )
    assertProblem(await ann.get('/v1/streams/behind/counts'), 503, 'counts_behind')
    const together = await listDeltas(server.db, { streamId: id, after: 0, limit: 2000 })
    assert.ok(together.length > 0 && together.length < 40, String(together.length))
    const [one] = await listDeltas(server.db, { streamId: id, after: 39, limit: 2000 })
    assert.equal(one!.seq, 40)
  } finally {
    await held.query('rollback')
    held.release()
  }
  await until(async () => (await ann.get('/v1/streams/behind/counts')).body.total === 40)
})
