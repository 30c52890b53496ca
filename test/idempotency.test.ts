import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Capstan, makeDataDir, queryIn, startCapstan } from './support/capstan.ts'
import { makeUser } from './support/http.ts'

// They only accept: runs stay in line, so that what was stored can be counted.
const dataDir = await makeDataDir()
const env = { RUN_WAITING_PER_USER: '40' }
const pair: [Capstan, Capstan] = await Promise.all([
  startCapstan({ dataDir, env, roles: 'api' }),
  startCapstan({ dataDir, env, roles: 'api' }),
])
const [here, there] = pair
let users = 0
const newUser = () => makeUser(here, `user${++users}`)
const program = { language: 'python', source: 'print(1)' }
let keys = 0
const newKey = () => ({ 'idempotency-key': `key ${++keys}` })

async function countStored() {
  const [row] = await queryIn<{ runs: number; jobs: number; events: number }>(
    dataDir,
    `select (select count(*)::int from runner.runs) as runs, (select count(*)::int from jobs.active) as jobs,
            (select count(*)::int from runner.run_events) as events`,
  )
  return row!
}

/** What `work` added to the tables. */
async function added(work: () => Promise<void>) {
  const before = await countStored()
  await work()
  const after = await countStored()
  return { runs: after.runs - before.runs, jobs: after.jobs - before.jobs, events: after.events - before.events }
}

for (const [where, capstans] of [
  ['one process', [here]],
  ['two processes', pair],
] as const) {
  test(`50 equal requests at once with one key make one run and one answer, over ${where}`, async () => {
    const user = await newUser()
    const key = newKey()
    const bodies = new Set<string>()
    const stored = await added(async () => {
      const answers = await Promise.all(
        Array.from({ length: 50 }, (_, n) => user.post(capstans[n % capstans.length]!, '/v1/runs', program, key)),
      )
      for (const { status, body, headers } of answers) {
        assert.equal(status, 202, JSON.stringify(body))
        assert.equal(headers.get('location'), `/v1/runs/${body.id}`)
        bodies.add(JSON.stringify(body))
      }
    })
    assert.equal(bodies.size, 1, [...bodies].join('\n'))
    assert.deepEqual(stored, { runs: 1, jobs: 1, events: 1 })
  })
}

test('many keys at once, each sent ten times over two processes, make one run each', async () => {
  const user = await newUser()
  const wanted = Array.from({ length: 20 }, newKey)
  const stored = await added(async () => {
    const requests = wanted.flatMap(key => Array.from({ length: 10 }, (_, n) => ({ key, at: pair[n % 2]! })))
    const answers = await Promise.all(
      requests.map(async ({ key, at }) => ({ key, ...(await user.post(at, '/v1/runs', program, key)) })),
    )
    assert.deepEqual(new Set(answers.map(answer => answer.status)), new Set([202]))
    for (const [, group] of Map.groupBy(answers, answer => answer.key)) {
      assert.equal(new Set(group.map(answer => answer.body.id)).size, 1)
    }
  })
  assert.deepEqual(stored, { runs: 20, jobs: 20, events: 20 })
})

test('a key of one request is refused for another body, and for another route', async () => {
  const user = await newUser()
  const key = newKey()
  const first = await user.post(here, '/v1/runs', program, key)
  const stored = await added(async () => {
    for (const [path, body] of [
      ['/v1/runs', { ...program, source: 'print(2)' }],
      ['/v1/runs', { ...program, stdin: 'x' }],
      [`/v1/jobs/${first.body.id}/cancel`, undefined],
    ] as const) {
      const { status, body: problem } = await user.post(there, path, body, key)
      assert.deepEqual([status, problem.code], [422, 'idempotency_key_reused'], path)
    }
  })
  assert.deepEqual(stored, { runs: 0, jobs: 0, events: 0 })
  const again = await user.post(there, '/v1/runs', program, key)
  assert.deepEqual(again.body, first.body, 'the first one is answered still')
})

test('the same request that waits for another time is still the same', async () => {
  const user = await newUser()
  const key = newKey()
  const first = await user.post(here, '/v1/runs', program, key)
  const again = await user.post(here, '/v1/runs?wait=0.01', program, key)
  assert.deepEqual([again.status, again.body.id], [202, first.body.id])
})

test('two users may use one key', async () => {
  const [ann, bob] = [await newUser(), await newUser()]
  const key = newKey()
  const [first, second] = [
    await ann.post(here, '/v1/runs', program, key),
    await bob.post(here, '/v1/runs', program, key),
  ]
  assert.deepEqual([first.status, second.status], [202, 202])
  assert.notEqual(first.body.id, second.body.id)
})

test('a key whose request was refused is free', async () => {
  const user = await newUser()
  for (const refused of [
    { language: 'cobol', source: 'x' },
    { language: 'python', source: '' },
    { language: 'python', source: 'x', limits: { cpu_ms: 1e9 } },
    { language: 'python', surprise: 1 },
  ]) {
    const key = newKey()
    const stored = await added(async () => {
      assert.equal((await user.post(here, '/v1/runs', refused, key)).status, 400)
      assert.equal((await user.post(there, '/v1/runs', program, key)).status, 202)
    })
    assert.deepEqual(stored, { runs: 1, jobs: 1, events: 1 })
  }
})

test('a key that came when the user had too many runs is free, and costs nobody else anything', async () => {
  const [greedy, other] = [await newUser(), await newUser()]
  for (let n = 0; n < 40; n++) assert.equal((await greedy.post(here, '/v1/runs', program)).status, 202)
  const key = newKey()
  const stored = await added(async () => {
    // Together, so that they share a batch.
    const [refused, ...taken] = await Promise.all([
      greedy.post(here, '/v1/runs', program, key),
      ...Array.from({ length: 8 }, () => other.post(here, '/v1/runs', program, newKey())),
    ])
    assert.deepEqual([refused.status, refused.body.code], [429, 'too_many_runs'])
    assert.ok(Number(refused.headers.get('retry-after')) >= 1)
    assert.deepEqual(new Set(taken.map(answer => answer.status)), new Set([202]))
  })
  assert.deepEqual(stored, { runs: 8, jobs: 8, events: 8 })
  const [oldest] = (await greedy.get(here, '/v1/runs?limit=1')).body.runs
  assert.equal((await greedy.post(here, `/v1/runs/${oldest.id}/cancel`, undefined)).status, 202)
  assert.equal((await greedy.post(here, '/v1/runs', program, key)).status, 202)
})

test('cancelling twice with one key cancels once and answers the same', async () => {
  const user = await newUser()
  const { id } = (await user.post(here, '/v1/runs', program)).body
  const key = newKey()
  const answers = await Promise.all(pair.map(at => user.post(at, `/v1/jobs/${id}/cancel`, undefined, key)))
  assert.deepEqual(
    answers.map(answer => [answer.status, answer.body.state]),
    [
      [202, 'cancelled'],
      [202, 'cancelled'],
    ],
  )
  assert.deepEqual(answers[0]!.body, answers[1]!.body)
  assert.equal((await user.post(here, `/v1/jobs/${id}/cancel`, undefined, newKey())).status, 409)
})

test('what is no key is refused and nothing is stored', async () => {
  const user = await newUser()
  const stored = await added(async () => {
    for (const key of ['', 'x'.repeat(256), 'caf\u00e9']) {
      const { status, body } = await user.post(here, '/v1/runs', program, { 'idempotency-key': key })
      assert.deepEqual([status, body.code], [400, 'bad_idempotency_key'], JSON.stringify(key))
    }
  })
  assert.deepEqual(stored, { runs: 0, jobs: 0, events: 0 })
})
