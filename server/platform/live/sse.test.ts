import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { addUser, eventually, makeInstance, makeTestSource, openStream, tokens, upTo } from './test-kit.ts'

const { db } = await makeTestDatabase({ poolMax: 20 })
const source = await makeTestSource(db)
const authorization = `Bearer ${addUser('ann')}`

/** Closed at the end of the test that opens it. */
function openInstance() {
  return makeInstance({ db, sources: [source], settings: { LIVE_TOPICS_MAX: 3 } })
}

const path = '/v1/live/events'

test('a stream resumes at any position and a finished one answers 204 at its end', async () => {
  const shared = await openInstance()
  const total = 12
  await source.append('resume', total - 1)
  await source.append('resume', 1, { final: true })
  for (let after = 0; after < total; after++) {
    const byQuery = after % 2 === 0
    const stream = await openStream(
      shared.host,
      `${path}?topic=runs/resume${byQuery ? `&after=${after}` : '&after=0'}`,
      {
        authorization,
        ...(byQuery ? {} : { 'last-event-id': String(after) }),
      },
    )
    await eventually(() => stream.ended, 'the stream ends')
    assert.deepEqual(
      stream.events.map(event => event.data.seq),
      upTo(total).slice(after),
    )
    assert.equal(stream.events.at(-1)!.id, String(total))
  }
  const end = await openStream(shared.host, `${path}?topic=runs/resume`, { authorization, 'last-event-id': `${total}` })
  assert.equal(end.status, 204)
  assert.ok(end.headers['x-request-id'])
})

test('a stream has the headers and the shape an EventSource expects', async () => {
  const shared = await openInstance()
  await source.append('shape', [{ data: { text: 'line\nbreak' } }])
  const stream = await openStream(shared.host, `${path}?topic=runs/shape`, { authorization, 'x-request-id': 'mine' })
  await stream.until(() => stream.events.length === 1)
  assert.equal(stream.status, 200)
  assert.equal(stream.headers['content-type'], 'text/event-stream; charset=utf-8')
  assert.equal(stream.headers['x-accel-buffering'], 'no')
  assert.equal(stream.headers['x-request-id'], 'mine')
  assert.ok(stream.text.startsWith('retry: 1000\n\n'))
  assert.deepEqual(stream.events[0], {
    id: '1',
    event: 'output',
    data: { topic: 'runs/shape', seq: 1, type: 'output', data: { text: 'line\nbreak' } },
  })
  await source.append('shape', 2)
  shared.live.wake(['runs/shape'])
  await stream.until(() => stream.events.length === 3)
  stream.drop()
  await eventually(() => shared.live.connections === 0, 'the stream is forgotten')
})

test('several topics share a stream, whose id is all their positions', async () => {
  const shared = await openInstance()
  const query = `${path}?topic=runs/left&topic=runs/right`
  await source.append('left', 2)
  await source.append('right', 1)
  const first = await openStream(shared.host, query, { authorization })
  await first.until(() => first.events.length === 3)
  const id = first.events.at(-1)!.id
  assert.equal(id, '2.1')
  first.drop()
  await source.append('left', 1)
  await source.append('right', 1, { final: true })
  const second = await openStream(shared.host, query, { authorization, 'last-event-id': id })
  await second.until(() => second.events.length === 2)
  assert.deepEqual(second.events.map(event => `${event.data.topic} ${event.data.seq}`).sort(), [
    'runs/left 3',
    'runs/right 2',
  ])
  assert.equal(second.events.at(-1)!.id, '3.2')
  // One has ended, the other has not.
  await source.append('left', 1, { final: true })
  shared.live.wake(['runs/left'])
  await eventually(() => second.ended, 'both have ended')
  assert.equal(second.events.at(-1)!.id, '4.2')
  const third = await openStream(shared.host, query, { authorization, 'last-event-id': '4.2' })
  assert.equal(third.status, 204)
})

test('what is wrong before the start is a problem document', async () => {
  const shared = await openInstance()
  source.denied.add('ann secret')
  const cases: [query: string, status: number, code: string, headers?: Record<string, string>][] = [
    ['', 400, 'validation_failed'],
    ['?topic=runs', 400, 'bad_topic'],
    ['?topic=chats/a', 404, 'unknown_topic'],
    ['?topic=runs/missing', 404, 'not_found'],
    ['?topic=runs/secret', 403, 'forbidden'],
    ['?topic=runs/a&topic=runs/a', 409, 'already_subscribed'],
    ['?topic=runs/a&topic=runs/b&topic=runs/c&topic=runs/d', 400, 'too_many_topics'],
    ['?topic=runs/a&after=x', 400, 'bad_position'],
    ['?topic=runs/a&after=-1', 400, 'bad_position'],
    ['?topic=runs/a&after=1.2', 400, 'bad_position'],
    ['?topic=runs/a&after=99999999999999999999', 400, 'bad_position'],
    ['?topic=runs/a&topic=runs/b&after=1', 400, 'bad_position'],
    ['?topic=runs/a', 400, 'bad_position', { 'last-event-id': 'x' }],
    ['?topic=runs/a', 401, 'unauthenticated', { authorization: '' }],
    ['?topic=runs/a', 401, 'unauthenticated', { authorization: 'Bearer nobody' }],
  ]
  for (const [query, status, code, headers] of cases) {
    const answer = await fetch(`http://${shared.host}${path}${query}`, { headers: { authorization, ...headers } })
    assert.equal(answer.status, status, query)
    assert.match(answer.headers.get('content-type')!, /problem\+json/)
    assert.equal(((await answer.json()) as { code: string }).code, code, query)
  }
})

test('a source that cannot be read before the start is a problem, too', async () => {
  const broken = { ...source, kind: 'broken', heads: () => Promise.reject(new Error('away')) }
  const instance = await makeInstance({ db, sources: [broken] })
  const answer = await fetch(`http://${instance.host}${path}?topic=broken/a`, { headers: { authorization } })
  assert.equal(answer.status, 500)
  assert.equal(instance.live.connections, 0)
})

test('a stream beats, ends when its credential or topic does, and says when the server stops', async () => {
  const instance = await makeInstance({ db, sources: [source], options: { checkMs: 40 } })
  const open = (topic: string, user: string) =>
    openStream(instance.host, `${path}?topic=runs/${topic}`, { authorization: `Bearer ${addUser(user)}` })
  const revoked = await open('r', 'bob')
  const denied = await open('d', 'cat')
  const staying = await open('s', 'dan')
  await staying.until(() => staying.text.includes(': beat\n\n'))
  tokens.delete('bob')
  await eventually(() => revoked.ended, 'the credential ended')
  source.denied.add('cat d')
  instance.live.recheck(['runs/d'])
  await eventually(() => denied.ended, 'the topic was taken away')
  assert.equal(staying.ended, false)
  await instance.live.stop()
  await eventually(() => staying.ended, 'the server stops')
  assert.ok(staying.text.endsWith(': closing\n\n'))
})

test('a stream that is not read is cut off, and one that comes back has lost nothing', async () => {
  const instance = await makeInstance({ db, sources: [source], settings: { LIVE_BUFFER_BYTES: 65_536 } })
  const stream = await openStream(instance.host, `${path}?topic=runs/slow`, { authorization })
  const quick = await openStream(instance.host, `${path}?topic=runs/slow`, { authorization })
  stream.response.pause()
  const data = 'x'.repeat(50_000)
  let head = 0
  while (instance.live.connections === 2) {
    head = await source.append('slow', Array(4).fill({ data }))
    instance.live.wake(['runs/slow'])
    await quick.until(() => quick.events.length === head)
  }
  stream.response.resume()
  await eventually(() => stream.ended, 'it is cut off')
  const seen = stream.events.map(event => event.data.seq)
  const again = await openStream(instance.host, `${path}?topic=runs/slow`, {
    authorization,
    ...(seen.length > 0 ? { 'last-event-id': stream.events.at(-1)!.id } : {}),
  })
  await again.until(() => seen.length + again.events.length === head)
  assert.deepEqual([...seen, ...again.events.map(event => event.data.seq)], upTo(head))
})

test('both routes are in the OpenAPI document', async () => {
  const shared = await openInstance()
  const answer = await fetch(`http://${shared.host}/openapi.json`)
  const { paths } = (await answer.json()) as { paths: Record<string, { get?: { summary?: string } }> }
  assert.match(paths['/v1/live']!.get!.summary!, /WebSocket/)
  assert.match(paths[path]!.get!.summary!, /event stream/)
})

test('a reader who does not read holds up no stop', async () => {
  const instance = await makeInstance({
    db,
    sources: [source],
    settings: { LIVE_BUFFER_BYTES: 100_000_000 },
    options: { leaveMs: 100 },
  })
  const stream = await openStream(instance.host, `${path}?topic=runs/stalled`, { authorization })
  stream.response.pause()
  await source.append('stalled', Array(100).fill({ data: 'x'.repeat(200_000) }))
  instance.live.wake(['runs/stalled'])
  const delivered = instance.metrics.registry.getSingleMetric('capstan_live_events_delivered')!
  await eventually(async () => ((await delivered.get()).values[0]?.value ?? 0) > 0, 'its buffers fill')
  await instance.live.stop()
  assert.equal(instance.live.connections, 0)
})
