import assert from 'node:assert/strict'
import { test } from 'node:test'
import { WebSocket } from 'ws'
import { atEnd } from './support/at-end.ts'
import { type Capstan, makeDataDir, postmasterOf, queryIn, startCapstan, stopAll } from './support/capstan.ts'
import { makeUser } from './support/http.ts'
import { whyNoPrograms } from './support/programs.ts'
import { until } from './support/until.ts'

const skip = await whyNoPrograms(['python'])
const dataDir = await makeDataDir()
const env = { RUN_CONCURRENCY: '4' }
/** One that serves and works nothing, one that only works, one that does both. */
const [edge, doomed, survivor] = await Promise.all([
  startCapstan({ dataDir, env, roles: 'api' }),
  startCapstan({ dataDir, env, roles: 'worker' }),
  startCapstan({ dataDir, env }),
])
const user = await makeUser(edge, 'ann')

interface Event {
  seq: number
  type: string
  data: { status?: string; text?: string; attempt?: number }
  at: number
}

/** Follows a run over a WebSocket from above `after` on, gathering its events with the time each came. */
async function follow(capstan: Capstan, runId: string, after: number) {
  const socket = new WebSocket(`${capstan.url.replace('http', 'ws')}/v1/live`, {
    headers: { authorization: `Bearer ${user.token}` },
  })
  const events: Event[] = []
  const frames: { type: string }[] = []
  let complete = false
  let closed = false
  socket.on('message', data => {
    const frame = JSON.parse(data.toString())
    frames.push(frame)
    if (frame.type === 'events') for (const event of frame.events) events.push({ ...event, at: performance.now() })
    if (frame.type === 'complete') complete = true
  })
  socket.on('error', () => {})
  socket.on('close', () => {
    closed = true
  })
  atEnd(() => socket.terminate())
  await until(() => socket.readyState === WebSocket.OPEN)
  socket.send(JSON.stringify({ type: 'subscribe', topic: `runs/${runId}`, after }))
  await until(() => frames.some(frame => frame.type === 'subscribed' || frame.type === 'error'))
  assert.ok(
    frames.some(frame => frame.type === 'subscribed'),
    JSON.stringify(frames),
  )
  return { events, isComplete: () => complete, isClosed: () => closed, close: () => socket.terminate() }
}

async function submit(
  source: string,
  query = '',
): Promise<{ status: number; body: Record<string, unknown> & { id: string } }> {
  const answer = await user.post(edge, `/v1/runs${query}`, { language: 'python', source })
  assert.ok([200, 202].includes(answer.status), JSON.stringify(answer.body))
  return answer
}

/** Which process works each run now. */
async function workersOf(ids: string[]): Promise<Map<string, number>> {
  const rows = await queryIn<{ id: string; pid: number }>(
    dataDir,
    `select a.id, w.pid from jobs.active a join jobs.workers w on w.id = a.worker
     join runner.runs r on r.id = a.id and r.status = 'running' where a.id = any($1)`,
    [ids],
  )
  return new Map(rows.map(row => [row.id, row.pid]))
}

test('a killed worker’s runs begin again elsewhere within 10 s, and each ends once', { skip }, async t => {
  const source = 'import time\nprint("begun", flush=True)\ntime.sleep(3)\nprint("done")'
  const ids: string[] = []
  for (let n = 0; n < 8; n++) ids.push((await submit(source)).body.id)
  await until(async () => (await workersOf(ids)).size === 8)
  const holders = await workersOf(ids)
  const cutOff = ids.filter(id => holders.get(id) === doomed.pid)
  assert.equal(cutOff.length, 4, 'half of them run on each')
  doomed.kill('SIGKILL')
  const killedAt = performance.now()
  await until(
    async () =>
      (await workersOf(cutOff)).size === 4 &&
      [...(await workersOf(cutOff)).values()].every(pid => pid === survivor.pid),
    20_000,
  )
  const seconds = (performance.now() - killedAt) / 1000
  t.diagnostic(`all ran again ${seconds.toFixed(1)} s after the kill`)
  assert.ok(seconds < 10, `it took ${seconds} s`)

  await until(async () => (await endsOf(ids)).every(run => run.finals > 0))
  for (const { id, ...end } of await endsOf(ids)) {
    const attempt = cutOff.includes(id) ? 2 : 1
    assert.deepEqual(
      end,
      { status: 'succeeded', stdout: 'begun\ndone\n', attempt, lost: attempt - 1, jobs: 1, finals: 1 },
      id,
    )
  }
})

async function endsOf(ids: string[]) {
  return queryIn<{
    id: string
    status: string
    stdout: string
    attempt: number
    lost: number
    jobs: number
    finals: number
  }>(
    dataDir,
    `select r.id, r.status, convert_from(r.stdout, 'UTF8') as stdout, r.attempt,
            (select count(*)::int from jobs.attempts a where a.job_id = r.id and a.outcome = 'lost') as lost,
            (select count(*)::int from jobs.finished f where f.id = r.id and f.attempt = r.attempt) as jobs,
            (select count(*)::int from runner.run_events e where e.run_id = r.id and e.type = 'status'
               and e.data->>'status' not in ('queued', 'running')) as finals
     from runner.runs r where r.id = any($1)`,
    [ids],
  )
}

test('who waits on a process that works nothing gets the result as soon as it is there', { skip }, async () => {
  const lateMs: number[] = []
  for (let n = 0; n < 3; n++) {
    const { status, body } = await submit(`print(${n})`, '?wait=20')
    lateMs.push(Date.now() - Date.parse(body.finished_at as string))
    assert.deepEqual([status, body.status, body.stdout], [200, 'succeeded', `${n}\n`])
  }
  // The slow poll behind lost wake-ups takes up to two seconds: at least one must have been told at once.
  assert.ok(Math.min(...lateMs) < 500, `late by ${lateMs} ms`)
})

test('a token logged out on one process stops on the others within 5 s', async t => {
  const leaver = await makeUser(edge, 'leaver')
  assert.equal((await leaver.get(survivor, '/v1/auth/me')).status, 200)
  assert.equal((await leaver.post(edge, '/v1/auth/logout', undefined)).status, 204)
  const leftAt = performance.now()
  assert.equal((await leaver.get(edge, '/v1/auth/me')).status, 401, 'at once where it was logged out')
  await until(async () => (await leaver.get(survivor, '/v1/auth/me')).status === 401, 5000)
  t.diagnostic(`after ${Math.round(performance.now() - leftAt)} ms`)
  assert.equal((await user.get(survivor, '/v1/auth/me')).status, 200, 'others stay')
})

test('a subscriber sees output as it is written elsewhere, and after its process was killed misses and repeats nothing', {
  skip,
}, async () => {
  const lines = ['1', '2', '3', '4', '5', '6', '7', '8']
  const source = `import time\nfor n in range(1, 9):\n    print(n, flush=True)\n    time.sleep(0.25)`
  const { id } = (await submit(source)).body
  const before = await follow(edge, id, 0)
  await until(() => before.events.some(event => event.data.text?.includes('3')))
  edge.kill('SIGKILL')
  await until(before.isClosed)
  const after = await follow(survivor, id, before.events.at(-1)!.seq)
  await until(after.isComplete)

  const events = [...before.events, ...after.events]
  assert.deepEqual(
    events.map(event => event.seq),
    events.map((_, index) => index + 1),
  )
  assert.deepEqual(
    events.filter(event => event.type === 'status').map(event => event.data.status),
    ['queued', 'running', 'succeeded'],
  )
  const output = events.filter(event => event.type === 'output')
  assert.equal(output.map(event => event.data.text).join(''), lines.map(line => `${line}\n`).join(''))
  assert.ok(output.length >= 6, `${output.length} pieces of 8 lines written a quarter of a second apart`)
  const firstLine = before.events.find(event => event.type === 'output')!
  assert.ok(events.at(-1)!.at - firstLine.at > 1000, 'the first line came long before the end')
  // Coming back once more with everything brings nothing again.
  const last = await follow(survivor, id, events.length)
  await until(last.isComplete)
  assert.deepEqual(last.events, [])
})

test('the last process to leave stops PostgreSQL', async () => {
  await stopAll(survivor)
  assert.deepEqual(await survivor.exited, { code: 0, signal: null })
  assert.equal(await postmasterOf(dataDir), undefined)
})
