import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, test } from 'node:test'
import {
  type Capstan,
  killPostgres,
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

const skip = await whyNoPrograms(['python', 'javascript', 'bash'])

/** Programs that end at once and programs that take a second, each with what it must have printed. */
const programs = [
  { language: 'python', source: 'print("one", 6 * 7)', stdout: 'one 42\n' },
  { language: 'javascript', source: 'console.log("two", [..."héllo"].length)', stdout: 'two 5\n' },
  { language: 'bash', source: 'echo three; echo no >&2', stdout: 'three\n' },
  { language: 'python', source: 'import time\nprint("a", flush=True)\ntime.sleep(1)\nprint("b")', stdout: 'a\nb\n' },
  { language: 'javascript', source: 'console.log("c"); setTimeout(() => console.log("d"), 1000)', stdout: 'c\nd\n' },
  { language: 'bash', source: 'echo e; sleep 1; echo f', stdout: 'e\nf\n' },
]

/** Submits `count` programs, spread over the users; resolves when all are accepted. Answers what each must print, by id. */
async function submit(capstan: Capstan, users: User[], count: number, marker: string): Promise<Map<string, string>> {
  const accepted = await Promise.all(
    Array.from({ length: count }, async (_, n) => {
      const { stdout, ...program } = programs[n % programs.length]!
      const answer = await users[n % users.length]!.post(capstan, '/v1/runs', { ...program, args: [marker] })
      assert.equal(answer.status, 202, JSON.stringify(answer.body))
      return [answer.body.id as string, stdout] as const
    }),
  )
  return new Map(accepted)
}

async function countRuns(dataDir: string, status: string): Promise<number> {
  const [row] = await queryIn<{ n: number }>(dataDir, 'select count(*)::int as n from runner.runs where status = $1', [
    status,
  ])
  return row!.n
}

async function allEnded(dataDir: string, count: number): Promise<boolean> {
  const [row] = await queryIn<{ n: number }>(
    dataDir,
    'select count(*)::int as n from runner.runs where finished_at is not null',
  )
  return row!.n >= count
}

/** Every run succeeded with its own output, its job finished once, its events without a gap and one of them final. */
async function assertEachEndedOnce(dataDir: string, expected: Map<string, string>) {
  const rows = await queryIn<{
    id: string
    status: string
    stdout: string
    jobs: number
    state: string
    waiting: number
  }>(
    dataDir,
    `select r.id, r.status, convert_from(r.stdout, 'UTF8') as stdout,
            (select count(*)::int from jobs.finished f where f.id = r.id) as jobs,
            (select max(state) from jobs.finished f where f.id = r.id) as state,
            (select count(*)::int from jobs.active a where a.id = r.id) as waiting
     from runner.runs r where id = any($1)`,
    [[...expected.keys()]],
  )
  assert.equal(rows.length, expected.size, 'every accepted run is there')
  for (const row of rows) {
    assert.deepEqual(row, {
      id: row.id,
      status: 'succeeded',
      stdout: expected.get(row.id),
      jobs: 1,
      state: 'succeeded',
      waiting: 0,
    })
  }
  const events = await queryIn<{
    run_id: string
    n: number
    first: number
    last: number
    finals: number
    final_at: number
  }>(
    dataDir,
    `select run_id, count(*)::int as n, min(seq) as first, max(seq) as last, count(*) filter (where final)::int as finals,
            max(seq) filter (where final) as final_at
     from (select run_id, seq, type = 'status' and data->>'status' not in ('queued', 'running') as final
           from runner.run_events where run_id = any($1)) e group by run_id`,
    [[...expected.keys()]],
  )
  assert.equal(events.length, expected.size)
  for (const { run_id, n, first, last, finals, final_at } of events) {
    assert.deepEqual({ run_id, first, last, finals, final_at }, { run_id, first: 1, last: n, finals: 1, final_at: n })
  }
}

/** A process that lives and is nothing of ours, as whoever got a dead PostgreSQL's number. */
function startStranger(): { pid: number; end(): void } {
  const child = spawn('sleep', ['600'], { stdio: 'ignore' })
  return { pid: child.pid!, end: () => void child.kill('SIGKILL') }
}

async function assertWorks(capstan: Capstan, user: User) {
  const answer = await user.get(capstan, '/v1/runs')
  assert.equal(answer.status, 200, JSON.stringify(answer.body))
}

// They mostly wait for leases to end, so they wait together.
describe('a crash', { concurrency: 3 }, () => {
  test('of every Capstan process: all accepted runs end once and nothing of the first life is left', {
    skip,
  }, async () => {
    const dataDir = await makeDataDir()
    const marker = `first-life-${process.pid}`
    const first = await startCapstan({ dataDir })
    const second = await startCapstan({ dataDir, roles: 'worker' })
    const users = await Promise.all(['ann', 'bob', 'cem'].map(name => makeUser(first, name)))
    const expected = await submit(first, users, 60, marker)
    await until(async () => (await countRuns(dataDir, 'running')) >= 4 && (await countRuns(dataDir, 'succeeded')) >= 4)
    for (const capstan of [first, second]) capstan.kill('SIGKILL')
    await Promise.all([first.exited, second.exited])
    assert.ok((await countRuns(dataDir, 'running')) > 0, 'some ran when the processes were killed')
    await until(() => processesWith(marker).length === 0, 5000)

    const next = await startCapstan({ dataDir })
    await until(() => allEnded(dataDir, 60), 30_000)
    await assertEachEndedOnce(dataDir, expected)
    const [again] = await queryIn<{ begun: number; lost: number }>(
      dataDir,
      `select (select count(*)::int from runner.runs where attempt = 2) as begun,
              (select count(*)::int from jobs.attempts where outcome = 'lost') as lost`,
    )
    assert.ok(again!.lost > 0)
    assert.equal(again!.begun, again!.lost, 'what was lost with a worker began once more, and nothing else did')
    assert.deepEqual(processesWith(marker), [])
    await stopAll(next)
  })

  test('of PostgreSQL with all its backends: Capstan brings it back, says 503 meanwhile and loses nothing', {
    skip,
  }, async () => {
    const dataDir = await makeDataDir()
    const capstan = await startCapstan({ dataDir })
    const users = await Promise.all(['ann', 'bob'].map(name => makeUser(capstan, name)))
    const expected = await submit(capstan, users, 40, `outage-${process.pid}`)
    await until(async () => (await countRuns(dataDir, 'running')) >= 4)

    let over = false
    const odd: unknown[] = []
    let refused = 0
    const keepAsking = async (ask: () => ReturnType<User['get']>) => {
      while (!over) {
        const { status, body, headers } = await ask()
        if (status === 202) expected.set(body.id, 'one 42\n')
        else if (status === 503) {
          refused++
          const isProblem = headers.get('content-type')?.startsWith('application/problem+json')
          if (!isProblem || Number(headers.get('retry-after')) < 1 || body.code !== 'unavailable') odd.push(body)
        } else if (status !== 200) odd.push(body)
      }
    }
    const { stdout: _, ...quick } = programs[0]!
    const asking = Promise.all([
      keepAsking(() => users[0]!.get(capstan, '/v1/runs?limit=1')),
      keepAsking(() => users[0]!.post(capstan, '/v1/runs', quick)),
      keepAsking(() => users[1]!.post(capstan, '/v1/runs', quick, { 'idempotency-key': `k${Math.random()}` })),
    ])
    const before = await postmasterOf(dataDir)
    await killPostgres(dataDir)
    await until(async () => ![undefined, before].includes(await postmasterOf(dataDir)))
    await until(async () => (await users[0]!.get(capstan, '/readyz')).status === 200)
    over = true
    await asking
    assert.deepEqual(odd, [], 'nothing but answers and 503 problem documents')
    assert.ok(refused > 0, 'some came while PostgreSQL was away')
    await until(() => allEnded(dataDir, expected.size), 30_000)
    await assertEachEndedOnce(dataDir, expected)
    assert.doesNotMatch(capstan.log(), /unexpected error|uncaught|unhandled/i)
    await stopAll(capstan)
  })

  test('of everything right after a 202: the run is there and ends; lock files of the dead name a stranger', {
    skip,
  }, async () => {
    const dataDir = await makeDataDir()
    const stranger = startStranger()
    try {
      const capstan = await startCapstan({ dataDir })
      const user = await makeUser(capstan, 'ann')
      const expected = await submit(capstan, [user], 1, 'last-words')
      capstan.kill('SIGKILL')
      await killPostgres(dataDir)
      await capstan.exited
      // The numbers of the dead are given to somebody else, as after a reboot or in a new container.
      for (const lock of ['postgres/postmaster.pid', 'socket/.s.PGSQL.5432.lock']) {
        const file = path.join(dataDir, lock)
        const [, ...rest] = (await readFile(file, 'utf8')).split('\n')
        await writeFile(file, [stranger.pid, ...rest].join('\n'))
      }
      const next = await startCapstan({ dataDir })
      await until(() => allEnded(dataDir, 1), 20_000)
      await assertEachEndedOnce(dataDir, expected)
      await stopAll(next)
      assert.equal(await postmasterOf(dataDir), undefined, 'the last one stops PostgreSQL')
    } finally {
      stranger.end()
    }
  })

  test('two that start at once on an empty folder both come up, on one PostgreSQL', async () => {
    const dataDir = await makeDataDir()
    const pair = await Promise.all([startCapstan({ dataDir }), startCapstan({ dataDir })])
    const user = await makeUser(pair[0], 'ann')
    for (const capstan of pair) await assertWorks(capstan, user)
    // Whoever leaves first leaves PostgreSQL to the other.
    await stopAll(pair[0])
    await assertWorks(pair[1], user)
    await stopAll(pair[1])
    assert.equal(await postmasterOf(dataDir), undefined)
  })

  for (const [what, holder] of [
    ['names a stranger', (pid: number) => `${pid}`],
    ['is empty, as a kill right after its making leaves it', () => ''],
  ] as const) {
    test(`a start’s lock that ${what} keeps nobody out`, async () => {
      const dataDir = await makeDataDir()
      const stranger = startStranger()
      try {
        await writeFile(path.join(dataDir, 'postgres.start.lock'), holder(stranger.pid))
        const capstan = await startCapstan({ dataDir })
        await stopAll(capstan)
      } finally {
        stranger.end()
      }
    })
  }
})
