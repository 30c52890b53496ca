/** Runs as jobs: who sees and steers which, what cancelling and retrying do, and what the queue tells of itself. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestApp } from '../../../test/support/app.ts'
import { makeUser, send, type User } from '../../../test/support/http.ts'
import { whyNoPrograms } from '../../../test/support/programs.ts'
import { until } from '../../../test/support/until.ts'

const skip = await whyNoPrograms(['bash'])
const server = await makeTestApp({ env: { RUN_CONCURRENCY: '2' } })
const [ann, bob] = [await makeUser(server, 'ann'), await makeUser(server, 'bob')]
const admin = await makeAdmin()

async function makeAdmin(): Promise<User> {
  const [username, password] = ['root', 'the password of root']
  await server.app.identity.createUser({ username, password, role: 'admin' })
  const token = (await send(server, 'POST', '/v1/auth/login', {}, { username, password })).body.access_token
  const headers = { authorization: `Bearer ${token}` }
  return {
    id: '',
    name: username,
    password,
    token,
    get: (at, path) => send(at, 'GET', path, headers),
    post: (at, path, body, more) => send(at, 'POST', path, { ...headers, ...more }, body),
  }
}

async function submit(user: User, source: string, query = ''): Promise<string> {
  const { status, body } = await user.post(server, `/v1/runs${query}`, { language: 'bash', source })
  assert.ok(status === 200 || status === 202, JSON.stringify(body))
  return body.id
}

const idsIn = async (user: User, query = '') =>
  (await user.get(server, `/v1/jobs${query}`)).body.jobs.map((job: { id: string }) => job.id)
const jobOf = async (user: User, id: string) => (await user.get(server, `/v1/jobs/${id}`)).body
const runOf = async (user: User, id: string) => (await user.get(server, `/v1/runs/${id}`)).body

test('a run’s job has its id and tells how it went', { skip }, async () => {
  const id = await submit(ann, 'echo x; exit 2', '?wait=20')
  const job = await jobOf(ann, id)
  assert.deepEqual(
    { ...job, worker: undefined },
    {
      ...job,
      id,
      queue: 'runs',
      state: 'succeeded',
      owner: ann.id,
      attempt: 1,
      attempts: [],
      error: null,
      payload: { language: 'bash' },
      result: { status: 'failed', exit_code: 2 },
      worker: undefined,
    },
  )
  assert.ok(job.wait_ms >= 0 && job.run_ms >= 0)
  assert.match(job.request_id, /^[0-9a-f-]{36}$/)
})

test('users see their own jobs, admins everybody’s; filters and pages hold', { skip }, async () => {
  const mine = [await submit(ann, 'echo 1', '?wait=20'), await submit(ann, 'echo 2', '?wait=20')].reverse()
  const [his] = [await submit(bob, 'echo 3', '?wait=20')]
  assert.deepEqual((await idsIn(ann)).slice(0, 2), mine)
  assert.deepEqual(await idsIn(bob), [his])
  assert.deepEqual((await idsIn(admin)).slice(0, 3), [his, ...mine])
  assert.deepEqual(await idsIn(bob, '?queue=other'), [])
  assert.deepEqual(await idsIn(bob, '?state=dead'), [])
  assert.deepEqual(await idsIn(bob, '?queue=runs&state=succeeded'), [his])
  const { jobs, next_cursor } = (await admin.get(server, '/v1/jobs?limit=1')).body
  assert.equal(jobs[0].id, his)
  assert.equal((await idsIn(admin, `?limit=1&cursor=${next_cursor}`))[0], mine[0])
  assert.equal((await jobOf(admin, mine[0]!)).owner, ann.id)
  assert.equal((await runOf(admin, mine[0]!)).stdout, '2\n')
  for (const path of [`/v1/jobs/${mine[0]}`, `/v1/runs/${mine[0]}`]) {
    assert.equal((await bob.get(server, path)).status, 404)
  }
})

test('a job cancelled while it waits is a run cancelled, and can be lined up again', { skip }, async () => {
  const running = [await submit(ann, 'sleep 2'), await submit(ann, 'sleep 2')]
  await until(async () => (await idsIn(ann, '?state=running')).length === 2)
  const id = await submit(ann, 'echo after all')
  assert.deepEqual(await idsIn(ann, '?state=waiting'), [id])
  const cancelled = await ann.post(server, `/v1/jobs/${id}/cancel`, undefined)
  assert.deepEqual([cancelled.status, cancelled.body.state, cancelled.body.started_at], [202, 'cancelled', null])
  assert.equal((await runOf(ann, id)).status, 'cancelled')
  assert.deepEqual(await idsIn(ann, '?state=cancelled'), [id])

  const retried = await ann.post(server, `/v1/jobs/${id}/retry`, undefined)
  assert.equal(retried.status, 202, JSON.stringify(retried.body))
  assert.ok(['waiting', 'running'].includes(retried.body.state))
  for (const other of running) await ann.post(server, `/v1/runs/${other}/cancel`, undefined)
  await until(async () => (await runOf(ann, id)).status === 'succeeded')
  const run = await runOf(ann, id)
  assert.deepEqual([run.stdout, run.exit_code, run.error], ['after all\n', 0, null])
  assert.equal((await jobOf(ann, id)).state, 'succeeded')
  const { rows } = await server.db.query<{ status: string }>(
    `select data->>'status' as status from runner.run_events where run_id = $1 and type = 'status' order by seq`,
    [id],
  )
  assert.deepEqual(
    rows.map(row => row.status),
    ['queued', 'cancelled', 'queued', 'running', 'succeeded'],
  )
})

test('who follows a run that was lined up again is told of both its lives', { skip }, async () => {
  const blockers = [await submit(ann, 'sleep 3'), await submit(ann, 'sleep 3')]
  await until(async () => (await idsIn(ann, '?state=running')).length === 2)
  const id = await submit(bob, 'echo second')
  await bob.post(server, `/v1/runs/${id}/cancel`, undefined)
  await bob.post(server, `/v1/jobs/${id}/retry`, undefined)
  // An event stream ends when its topic has: it must not take the first end for the last.
  const following = bob.get(server, `/v1/live/events?topic=runs/${id}`)
  for (const other of blockers) await ann.post(server, `/v1/runs/${other}/cancel`, undefined)
  const { status, body } = await following
  assert.equal(status, 200)
  const told = (body as string).matchAll(/"status":"(\w+)"/g).map(match => match[1])
  assert.deepEqual([...told], ['queued', 'cancelled', 'queued', 'running', 'succeeded'])
})

test('an admin cancels another’s running job; the program is stopped', { skip }, async () => {
  const id = await submit(bob, 'echo begun; sleep 30')
  await until(async () => (await jobOf(bob, id)).state === 'running')
  assert.equal((await admin.post(server, `/v1/jobs/${id}/cancel`, undefined)).status, 202)
  await until(async () => (await jobOf(bob, id)).state === 'cancelled', 5000)
  assert.equal((await runOf(bob, id)).status, 'cancelled')
})

test('a run that is lined up again shows nothing of its last life while it waits', { skip }, async () => {
  const id = await submit(bob, 'echo begun; sleep 30')
  await until(async () => (await jobOf(bob, id)).state === 'running')
  await bob.post(server, `/v1/runs/${id}/cancel`, undefined)
  await until(async () => (await runOf(bob, id)).status === 'cancelled')
  const blockers = [await submit(ann, 'sleep 3'), await submit(ann, 'sleep 3')]
  await until(async () => (await idsIn(ann, '?state=running')).length === 2)
  assert.equal((await bob.post(server, `/v1/jobs/${id}/retry`, undefined)).status, 202)
  const waiting = await runOf(bob, id)
  const { status, stdout, exit_code, signal, started_at, finished_at, queue_ms, cpu_ms, wall_ms } = waiting
  assert.deepEqual(
    { status, stdout, exit_code, signal, started_at, finished_at, queue_ms, cpu_ms, wall_ms },
    {
      status: 'queued',
      stdout: '',
      exit_code: null,
      signal: null,
      started_at: null,
      finished_at: null,
      queue_ms: null,
      cpu_ms: null,
      wall_ms: null,
    },
  )
  for (const other of [id, ...blockers]) {
    await admin.post(server, `/v1/runs/${other}/cancel`, undefined)
  }
})

test('only what is dead or cancelled is retried, only what lives is cancelled, and only by whose it is', {
  skip,
}, async () => {
  const done = await submit(ann, 'echo x', '?wait=20')
  const retry = await ann.post(server, `/v1/jobs/${done}/retry`, undefined)
  assert.deepEqual([retry.status, retry.body.code], [409, 'job_not_retriable'])
  const cancel = await ann.post(server, `/v1/jobs/${done}/cancel`, undefined)
  assert.deepEqual([cancel.status, cancel.body.code], [409, 'job_ended'])
  const running = await submit(ann, 'sleep 5')
  await until(async () => (await jobOf(ann, running)).state === 'running')
  const early = await ann.post(server, `/v1/jobs/${running}/retry`, undefined)
  assert.deepEqual([early.status, early.body.code], [409, 'job_not_retriable'])
  for (const action of ['cancel', 'retry']) {
    const foreign = await bob.post(server, `/v1/jobs/${running}/${action}`, undefined)
    assert.deepEqual([foreign.status, foreign.body.code], [404, 'job_not_found'])
  }
  assert.equal((await jobOf(ann, running)).state, 'running')
  await ann.post(server, `/v1/jobs/${running}/cancel`, undefined)
})

test('the queue tells how long its line is, and its totals add up', { skip }, async () => {
  const queue = async () =>
    (await bob.get(server, '/v1/queues')).body.queues.find((each: { name: string }) => each.name === 'runs')
  const before = await queue()
  const ids = await Promise.all(['sleep 1', 'sleep 1', 'echo x', 'echo x'].map(source => submit(bob, source)))
  const during = await queue()
  assert.equal(during.totals.added, before.totals.added + 4)
  assert.ok(during.depth >= 2, `${during.depth}`)
  await until(async () => (await Promise.all(ids.map(id => runOf(bob, id)))).every(run => run.status === 'succeeded'))
  const after = await queue()
  assert.equal(after.totals.succeeded, before.totals.succeeded + 4)
  const { added, succeeded, dead, cancelled } = after.totals
  const { rows } = await server.db.query<{ n: number }>(
    `select count(*)::int as n from jobs.active where queue = 'runs'`,
  )
  assert.equal(added - succeeded - dead - cancelled, rows[0]!.n)
  assert.equal(after.depth, rows[0]!.n)
})

test('without a token none of it is shown', async () => {
  for (const path of ['/v1/jobs', '/v1/queues', '/v1/runs', '/v1/runs/latest']) {
    assert.equal((await send(server, 'GET', path)).status, 401, path)
  }
})

test('nothing of all this was unforeseen', () => assert.deepEqual(server.complaints, []))
