import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import { connect } from 'node:net'
import { describe, test } from 'node:test'
import {
  type Capstan,
  makeDataDir,
  postmasterOf,
  processesWith,
  queryIn,
  startCapstan,
  stopAll,
} from './support/capstan.ts'
import { makeUser, type User } from './support/http.ts'
import { whyNoPrograms } from './support/programs.ts'
import { until } from './support/until.ts'

const skip = await whyNoPrograms(['python', 'bash'])
const graceMs = 4000
/** Closing, handing back and PostgreSQL's own leave, after the grace has passed. */
const leaveMs = 3000
/** An argument by which a test's own programs are known among all processes. */
const markerOf = (test: string) => `shutdown-${test}-${process.pid}`

interface Outcome {
  name: string
  /** Undefined where no answer came. */
  status: number | undefined
  body: string
  headers: Record<string, unknown>
  error: string | undefined
}

/** One request on a connection of its own, so that a closed connection means nothing but what it says. */
function ask(given: {
  capstan: Capstan
  method: string
  path: string
  token?: string
  body?: unknown
  name: string
}): Promise<Outcome> {
  const { capstan, method, path, token, body, name } = given
  return new Promise(resolve => {
    const request = httpRequest(`${capstan.url}${path}`, { method, agent: false, timeout: 20_000 })
    const fail = (error: NodeJS.ErrnoException) =>
      resolve({ name, status: undefined, body: '', headers: {}, error: error.code ?? error.message })
    request.on('error', fail)
    request.on('timeout', () => request.destroy(new Error('it hung')))
    request.on('response', response => {
      let text = ''
      response.setEncoding('utf8').on('data', piece => {
        text += piece
      })
      response.on('error', fail)
      response.on('end', () =>
        resolve({ name, status: response.statusCode, body: text, headers: response.headers, error: undefined }),
      )
    })
    if (token) request.setHeader('authorization', `Bearer ${token}`)
    if (body !== undefined) request.setHeader('content-type', 'application/json')
    request.end(body === undefined ? undefined : JSON.stringify(body))
  })
}

/** Posts runs one after the other until the server takes none any more. Each is named by its argument. */
async function postUntilClosed(
  capstan: Capstan,
  user: User,
  given: { name: string; query: string; marker: string },
): Promise<Outcome[]> {
  const outcomes: Outcome[] = []
  for (let n = 0; ; n++) {
    const name = `${given.name}.${n}`
    const body = { language: 'bash', source: 'echo "$1"', args: [name, given.marker] }
    const outcome = await ask({
      capstan,
      method: 'POST',
      path: `/v1/runs${given.query}`,
      token: user.token,
      body,
      name,
    })
    outcomes.push(outcome)
    if (outcome.status === undefined || outcome.status >= 500) return outcomes
  }
}

async function assertProblem503({ name, headers, body }: Outcome) {
  assert.match(String(headers['content-type']), /^application\/problem\+json/, `${name}: ${body}`)
  assert.ok(Number(headers['retry-after']) >= 1, `${name} says when to come back`)
  assert.equal(JSON.parse(body).code, 'unavailable')
}

async function runsOf(dataDir: string) {
  return queryIn<{ id: string; name: string; status: string; attempt: number; finished: boolean }>(
    dataDir,
    `select id, case when array_length(args, 1) > 1 then args[1] else id::text end as name, status, attempt,
            finished_at is not null as finished from runner.runs`,
  )
}

/** The head of a request and a part of its body; the rest never comes. */
async function sendHalfARequest(capstan: Capstan, user: User) {
  const { hostname, port } = new URL(capstan.url)
  const socket = connect(Number(port), hostname).on('error', () => {})
  await once(socket, 'connect')
  socket.write(
    `POST /v1/runs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${user.token}\r\n` +
      'content-type: application/json\r\ncontent-length: 100\r\n\r\n{"lang',
  )
  // An answer to a later request shows that these bytes were read.
  await ask({ capstan, method: 'GET', path: '/healthz', name: 'healthz' })
}

// They mostly wait, so they wait together.
describe('a shutdown', { concurrency: 3 }, () => {
  test('SIGTERM under load answers what it accepted, hands back what cannot end and leaves in time', {
    skip,
  }, async t => {
    const dataDir = await makeDataDir()
    const marker = markerOf('load')
    const env = { SHUTDOWN_GRACE_MS: `${graceMs}`, RUN_CONCURRENCY: '6' }
    const capstan = await startCapstan({ dataDir, env })
    const [ann, bob] = [await makeUser(capstan, 'ann'), await makeUser(capstan, 'bob')]
    const sleeper = (seconds: number) => ({
      language: 'python',
      source: `import time\nprint("begun", flush=True)\ntime.sleep(${seconds})\nprint("done")`,
      args: [marker],
    })
    const submitSleeper = async (seconds: number) =>
      (await ann.post(capstan, '/v1/runs', sleeper(seconds))).body.id as string
    // Two end within the grace, two do not.
    const short = [await submitSleeper(1), await submitSleeper(1)]
    const long = [await submitSleeper(8), await submitSleeper(8)]
    const sleepers = [...short, ...long]
    await until(
      async () =>
        (await runsOf(dataDir)).filter(run => sleepers.includes(run.id) && run.status === 'running').length === 4,
    )

    const posting = Promise.all(
      Array.from({ length: 12 }, (_, n) =>
        postUntilClosed(capstan, n % 2 ? ann : bob, {
          name: `client${n}`,
          query: n % 3 === 0 ? '' : '?wait=20',
          marker,
        }),
      ),
    )
    const [ready, alive]: [Outcome[], Outcome[]] = [[], []]
    const watch = async (path: string, seen: Outcome[]) => {
      do seen.push(await ask({ capstan, method: 'GET', path, name: path }))
      while (seen.at(-1)!.status !== undefined)
    }
    const watching = Promise.all([watch('/readyz', ready), watch('/healthz', alive)])
    // A wait for what cannot end in time must not hold the process up.
    const waitingForLong = ask({
      capstan,
      method: 'POST',
      path: '/v1/runs?wait=20',
      token: ann.token,
      body: { ...sleeper(8), args: ['waiter', marker] },
      name: 'waiter',
    })
    await until(async () => (await runsOf(dataDir)).filter(run => run.status === 'succeeded').length > 20)

    const toldAt = performance.now()
    capstan.kill('SIGTERM')
    const exit = await capstan.exited
    const tookMs = performance.now() - toldAt
    t.diagnostic(`left after ${Math.round(tookMs)} ms`)
    assert.deepEqual(exit, { code: 0, signal: null })
    assert.ok(tookMs < graceMs + leaveMs, `it took ${tookMs} ms`)
    assert.equal(await postmasterOf(dataDir), undefined, 'the last process stops PostgreSQL')
    await until(() => processesWith(marker).length === 0, 3000)

    const outcomes = [...(await posting).flat(), await waitingForLong]
    await watching
    const next = await startCapstan({ dataDir, env })
    const stored = new Map((await runsOf(dataDir)).map(run => [run.name, run]))
    for (const outcome of outcomes) {
      const run = stored.get(outcome.name)
      if (outcome.status === 200 || outcome.status === 202) assert.equal(run?.id, JSON.parse(outcome.body).id)
      else
        assert.equal(run, undefined, `${outcome.name} is stored, but the answer was ${outcome.status ?? outcome.error}`)
      if (outcome.status === undefined)
        assert.ok(['ECONNREFUSED', 'ECONNRESET'].includes(outcome.error!), outcome.error)
      if (outcome.status !== undefined && outcome.status > 202) await assertProblem503(outcome)
    }
    const answered = outcomes.filter(outcome => outcome.status === 200 || outcome.status === 202)
    t.diagnostic(`${answered.length} accepted, ${outcomes.length - answered.length} refused`)

    const codesOf = (seen: Outcome[]) => [...new Set(seen.map(outcome => outcome.status))]
    assert.deepEqual(codesOf(ready), [200, 503, undefined], 'not ready, then gone')
    assert.deepEqual(codesOf(alive), [200, undefined], 'alive, then gone')
    await assertProblem503(ready.find(outcome => outcome.status === 503)!)

    for (const id of short) assert.equal([...stored.values()].find(run => run.id === id)!.attempt, 1)
    await until(async () => (await runsOf(dataDir)).every(run => run.finished), 20_000)
    const ended = await runsOf(dataDir)
    assert.deepEqual(new Set(ended.map(run => run.status)), new Set(['succeeded']))
    const attempts = await queryIn<{ job_id: string; outcome: string }>(
      dataDir,
      // Whatever else was cut off was not lost either: a claim that came with the signal would be.
      `select job_id, outcome from jobs.attempts where job_id = any($1) or outcome <> 'handed_back' order by job_id`,
      [sleepers],
    )
    assert.deepEqual(
      attempts,
      long.map(job_id => ({ job_id, outcome: 'handed_back' })),
      'what could not end was handed back, what could was let end',
    )
    await stopAll(next)
  })

  test('an idle process leaves at once; who never ends a request holds it up no longer than the grace', async () => {
    for (const [half, limitMs] of [
      [false, 2500],
      [true, 1000 + leaveMs],
    ] as const) {
      const dataDir = await makeDataDir()
      const capstan = await startCapstan({ dataDir, env: { SHUTDOWN_GRACE_MS: '1000' } })
      // fetch keeps its connections open for the next request.
      const user = await makeUser(capstan, 'ann')
      if (half) await sendHalfARequest(capstan, user)
      const toldAt = performance.now()
      capstan.kill('SIGTERM')
      assert.deepEqual(await capstan.exited, { code: 0, signal: null })
      const tookMs = performance.now() - toldAt
      assert.ok(tookMs < limitMs, `it took ${tookMs} ms${half ? ' with half a request open' : ''}`)
      assert.equal(await postmasterOf(dataDir), undefined)
    }
  })

  test('a connection that never carried a request holds a process up not at all', async () => {
    const dataDir = await makeDataDir()
    const capstan = await startCapstan({ dataDir, env: { SHUTDOWN_GRACE_MS: '20000' } })
    const silent = connect(Number(new URL(capstan.url).port), '127.0.0.1')
    silent.on('error', () => {})
    await once(silent, 'connect')
    const toldAt = performance.now()
    capstan.kill('SIGTERM')
    assert.deepEqual(await capstan.exited, { code: 0, signal: null })
    assert.ok(performance.now() - toldAt < 10_000, `it took ${performance.now() - toldAt} ms`)
    silent.destroy()
  })

  test('a second SIGINT means it: the process leaves at once, and the next one finishes the run', {
    skip,
  }, async () => {
    const dataDir = await makeDataDir()
    const capstan = await startCapstan({ dataDir })
    const user = await makeUser(capstan, 'ann')
    const marker = markerOf('second')
    const source = `import time\ntime.sleep(2)\nprint("done")`
    await user.post(capstan, '/v1/runs', { language: 'python', source, args: [marker] })
    await until(async () => (await runsOf(dataDir))[0]!.status === 'running')
    capstan.kill('SIGINT')
    await until(async () => (await ask({ capstan, method: 'GET', path: '/readyz', name: 'readyz' })).status !== 200)
    const secondAt = performance.now()
    capstan.kill('SIGINT')
    assert.deepEqual(await capstan.exited, { code: 130, signal: null })
    assert.ok(performance.now() - secondAt < 1000, `it took ${performance.now() - secondAt} ms`)
    await until(() => processesWith(marker).length === 0, 3000)
    const next = await startCapstan({ dataDir })
    await until(async () => (await runsOf(dataDir))[0]!.status === 'succeeded', 20_000)
    await stopAll(next)
  })
})
