/** The API as its users use it: over HTTP, with programs that really run. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { WebSocket } from 'ws'
import { makeTestApp } from '../../../test/support/app.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { type Answer, makeUser, send, type User } from '../../../test/support/http.ts'
import { whyNoPrograms } from '../../../test/support/programs.ts'
import { until } from '../../../test/support/until.ts'
import { processesWith } from './sandbox/testing.ts'

const skip = await whyNoPrograms(['python', 'javascript', 'typescript', 'bash'])
const server = await makeTestApp({ env: { RUN_CONCURRENCY: '8' } })
/** One whose line is soon long: two runs at once, few waiting. */
const narrow = await makeTestApp({ env: { RUN_CONCURRENCY: '2', RUN_WAITING_PER_USER: '310', RUN_WAITING_MAX: '330' } })
const ann = await makeUser(server, 'ann')

interface Program {
  language?: string
  source?: string
  [field: string]: unknown
}

/** Runs a program to its end and answers the run. */
async function run(program: Program, query = ''): Promise<Answer['body']> {
  const { status, body } = await ann.post(server, `/v1/runs?wait=30${query}`, { language: 'bash', ...program })
  assert.equal(status, 200, JSON.stringify(body))
  return body
}

async function statusOf(at: { url: string }, user: User, id: string): Promise<string> {
  return (await user.get(at, `/v1/runs/${id}`)).body.status
}

const languageCases: [string, string, string, string][] = [
  ['python', 'print(sum(range(10)))', '45\n', 'main.py'],
  ['javascript', 'console.log([1, 2, 3].map(n => n * n).join())', '1,4,9\n', 'main.js'],
  ['typescript', 'enum Way { Up = 7 }\nconst way: number = Way.Up\nconsole.log(way)', '7\n', 'main.ts'],
  ['bash', 'for n in 1 2 3; do printf "%s;" "$n"; done', '1;2;3;', 'main.sh'],
]
for (const [language, source, stdout, name] of languageCases) {
  test(`a program in ${language} runs`, { skip }, async () => {
    const ended = await run({ language, source })
    assert.equal(ended.status, 'succeeded')
    assert.equal(ended.language, language)
    assert.match(ended.language_version, /^\d+\.\d+/)
    assert.deepEqual([ended.stdout, ended.stderr, ended.exit_code, ended.signal], [stdout, '', 0, null])
    assert.deepEqual(ended.files, [{ name, content: source }])
    assert.equal(ended.attempt, 1)
    for (const field of ['cpu_ms', 'wall_ms', 'queue_ms']) assert.ok(Number.isInteger(ended[field]), field)
    assert.ok(Date.parse(ended.created_at) <= Date.parse(ended.started_at))
    assert.ok(Date.parse(ended.started_at) <= Date.parse(ended.finished_at))
  })
}

test('an alias names its language, in either case', { skip }, async () => {
  for (const [alias, id] of [
    ['py', 'python'],
    ['Python3', 'python'],
    ['SH', 'bash'],
    ['node', 'javascript'],
  ]) {
    assert.equal((await run({ language: alias, source: ' ' })).language, id)
  }
})

test('what can be run, and within which limits, is told to anybody', async () => {
  const { status, body } = await send(server, 'GET', '/v1/languages')
  assert.equal(status, 200)
  if (!skip) {
    const ids = body.languages.map((language: { id: string }) => language.id)
    assert.deepEqual(ids, ['python', 'javascript', 'typescript', 'bash'])
  }
  for (const language of body.languages) {
    assert.deepEqual(Object.keys(language), ['id', 'name', 'version', 'aliases', 'source_file'])
  }
  for (const [name, value] of Object.entries(body.limits.default as Record<string, number>)) {
    assert.ok(value > 0 && value <= body.limits.max[name], name)
  }
  assert.ok(body.sandbox.length > 0)
})

test('an accepted run is answered at once with its place, and read until it has ended', { skip }, async () => {
  const { status, body, headers } = await ann.post(server, '/v1/runs', {
    language: 'bash',
    source: 'sleep 0.3; echo x',
  })
  assert.equal(status, 202)
  assert.equal(headers.get('location'), `/v1/runs/${body.id}`)
  assert.deepEqual([body.status, body.attempt, body.stdout, body.finished_at], ['queued', 0, '', null])
  const read = await ann.get(server, `/v1/runs/${body.id}`)
  assert.equal(read.status, 200)
  assert.deepEqual(Object.keys(read.body).sort(), Object.keys(body).sort())
  await until(async () => (await statusOf(server, ann, body.id)) === 'succeeded')
})

test('a wait that is over before the run answers 202, and the run goes on', { skip }, async () => {
  const begunAt = performance.now()
  const { status, body } = await ann.post(server, '/v1/runs?wait=0.2', { language: 'bash', source: 'sleep 1; echo x' })
  assert.equal(status, 202)
  assert.ok(performance.now() - begunAt < 900)
  await until(async () => (await statusOf(server, ann, body.id)) === 'succeeded')
})

test('latest is the newest run of the caller, 404 before the first', { skip }, async () => {
  const newcomer = await makeUser(server, 'newcomer')
  const none = await newcomer.get(server, '/v1/runs/latest')
  assert.deepEqual([none.status, none.body.code], [404, 'run_not_found'])
  for (const n of [1, 2]) await newcomer.post(server, '/v1/runs?wait=30', { language: 'bash', source: `echo ${n}` })
  await run({ source: 'echo another’s' })
  assert.equal((await newcomer.get(server, '/v1/runs/latest')).body.stdout, '2\n')
})

test('a list goes newest first, page by page, through what the filters let pass', { skip }, async () => {
  const lister = await makeUser(server, 'lister')
  const ids: string[] = []
  for (let n = 0; n < 5; n++) {
    const program = n % 2 ? { language: 'python', source: 'exit(1)' } : { language: 'bash', source: 'echo x' }
    ids.unshift((await lister.post(server, '/v1/runs?wait=30', program)).body.id)
  }
  const list = async (query: string) => (await lister.get(server, `/v1/runs?${query}`)).body
  const idsOf = (page: { runs: { id: string }[] }) => page.runs.map(each => each.id)
  assert.deepEqual(idsOf(await list('')), ids)
  const seen: string[] = []
  let cursor: string | null = ''
  for (let pages = 0; cursor !== null && pages < 10; pages++) {
    const page: { runs: { id: string }[]; next_cursor: string | null } = await list(
      `limit=2${cursor === '' ? '' : `&cursor=${cursor}`}`,
    )
    seen.push(...idsOf(page))
    cursor = page.next_cursor
  }
  assert.deepEqual(seen, ids)
  assert.deepEqual(idsOf(await list('language=python')), [ids[1], ids[3]])
  assert.deepEqual(idsOf(await list('status=failed&language=python&limit=1')), [ids[1]])
  assert.deepEqual(idsOf(await list('status=timed_out')), [])
  const [summary] = (await list('limit=1')).runs
  for (const large of ['files', 'stdin', 'stdout', 'stderr']) assert.equal(large in summary, false, large)
})

test('stdin and arguments reach the program as they were sent', { skip }, async () => {
  const args = ['', 'two words', '-c', '$HOME', '"\'`', 'ünï', '*']
  const echoed = await run({
    language: 'python',
    source: 'import sys, json\nprint(json.dumps(sys.argv[1:]))\nsys.stdout.write(sys.stdin.read())',
    args,
    stdin: 'line 1\nzwölf\n\tend without newline',
  })
  const [first, ...rest] = echoed.stdout.split('\n')
  assert.deepEqual(JSON.parse(first), args)
  assert.equal(rest.join('\n'), 'line 1\nzwölf\n\tend without newline')
  assert.deepEqual(echoed.args, args)
})

test('of several files the first is run and the others are there, in folders too', { skip }, async () => {
  const files = [
    { name: 'start.py', content: 'import deep.er.three\nprint(open("data/words.txt").read(), deep.er.three.value)' },
    { name: 'deep/er/three.py', content: 'value = 3' },
    { name: 'data/words.txt', content: 'ein Wort' },
    { name: 'empty', content: '' },
  ]
  const ended = await run({ language: 'python', files })
  assert.deepEqual([ended.stdout, ended.stderr], ['ein Wort 3\n', ''])
  assert.deepEqual(ended.files, files)
})

test('a first file whose name looks like an option is a file', { skip }, async () => {
  for (const name of ['-c', '--version', '-']) {
    const ended = await run({ language: 'python', files: [{ name, content: 'print("ran")' }] })
    assert.deepEqual([ended.stdout, ended.status], ['ran\n', 'succeeded'], name)
  }
})

test('limits that were asked for are told again, the others are the usual ones', { skip }, async () => {
  const usual = (await send(server, 'GET', '/v1/languages')).body.limits.default
  const limits = { cpu_ms: 1234, memory_bytes: 100_000_000 }
  assert.deepEqual((await run({ source: ':', limits })).limits, { ...usual, ...limits })
  assert.deepEqual((await run({ source: ':', limits: {} })).limits, usual)
})

const endings: { name: string; program: Program; ended: Record<string, unknown>; stdout?: string }[] = [
  {
    name: 'a program that sleeps past its time is timed out and keeps what it wrote',
    program: { source: 'echo before; sleep 20', limits: { wall_ms: 500 } },
    ended: { status: 'timed_out', stdout: 'before\n', exit_code: null, signal: 'SIGKILL' },
  },
  {
    name: 'a program that computes past its CPU time is timed out',
    program: { language: 'python', source: 'while True: pass', limits: { cpu_ms: 300 } },
    ended: { status: 'timed_out', stdout: '' },
  },
  {
    name: 'a program that takes more memory than it may is out of memory',
    program: {
      language: 'python',
      source: 'held = []\nwhile True: held.append(bytearray(b"x" * 1000000))',
      limits: { memory_bytes: 64 * 1024 * 1024 },
    },
    ended: { status: 'out_of_memory', stdout: '' },
  },
  {
    name: 'a program that writes more than it may is cut there',
    program: { source: 'printf %05000d 0', limits: { output_bytes: 1000 } },
    ended: { status: 'output_limit', stdout: '0'.repeat(1000), stdout_truncated: true, stderr_truncated: false },
  },
  {
    name: 'a program that fails has its exit code',
    program: { source: 'echo out; echo err >&2; exit 3' },
    ended: { status: 'failed', stdout: 'out\n', stderr: 'err\n', exit_code: 3, signal: null },
  },
  {
    name: 'a program that dies of a signal has the signal',
    program: { source: 'kill -SEGV $$' },
    ended: { status: 'failed', exit_code: null, signal: 'SIGSEGV' },
  },
  {
    name: 'a program that is killed has the signal',
    program: { source: 'kill -KILL $$' },
    ended: { status: 'failed', exit_code: null, signal: 'SIGKILL' },
  },
  {
    name: 'a program that says 137 itself was not killed',
    program: { source: 'exit 137' },
    ended: { status: 'failed', exit_code: 137, signal: null },
  },
  {
    name: 'a program with a syntax error fails with what its interpreter says',
    program: { language: 'python', source: 'print("' },
    ended: { status: 'failed', exit_code: 1, stdout: '' },
  },
]
for (const { name, program, ended } of endings) {
  test(name, { skip }, async () => {
    const seen = await run(program)
    assert.deepEqual(Object.fromEntries(Object.keys(ended).map(field => [field, seen[field]])), ended)
    const job = await ann.get(server, `/v1/jobs/${seen.id}`)
    // A program that failed is a job that was done.
    assert.deepEqual([job.body.state, job.body.result.status], ['succeeded', seen.status])
  })
}

test('bytes that are no text are shown as U+FFFD, and with base64 all of them come', { skip }, async () => {
  const ended = await run({ source: String.raw`printf 'a\xff\0\xc3\xa9\xc3'; printf '\xfe' >&2` })
  assert.deepEqual([ended.stdout, ended.stderr], ['a\ufffd\0é\ufffd', '\ufffd'])
  for (const path of [`/v1/runs/${ended.id}`, '/v1/runs/latest']) {
    const { stdout, stderr } = (await ann.get(server, `${path}?encoding=base64`)).body
    assert.deepEqual(Buffer.from(stdout, 'base64'), Buffer.from([0x61, 0xff, 0, 0xc3, 0xa9, 0xc3]))
    assert.deepEqual(Buffer.from(stderr, 'base64'), Buffer.from([0xfe]))
  }
  assert.equal((await run({ source: 'printf x' }, '&encoding=base64')).stdout, Buffer.from('x').toString('base64'))
})

/** Every frame of a subscription to a run, from the handshake to the end of the topic. */
async function follow(user: User, id: string, after = 0) {
  const socket = new WebSocket(`${server.url.replace('http', 'ws')}/v1/live`, {
    headers: { authorization: `Bearer ${user.token}` },
  })
  atEnd(() => socket.terminate())
  // biome-ignore lint/suspicious/noExplicitAny: frames of several kinds.
  const frames: any[] = []
  socket.on('message', data => frames.push(JSON.parse(data.toString())))
  await until(() => socket.readyState === WebSocket.OPEN)
  socket.send(JSON.stringify({ type: 'subscribe', topic: `runs/${id}`, after }))
  return {
    frames,
    events: () => frames.filter(frame => frame.type === 'events').flatMap(frame => frame.events),
    done: () => until(() => frames.some(frame => frame.type === 'complete' || frame.type === 'error')),
  }
}

test('a follower is told of a run from queued to its end, in order, each stream’s output whole', { skip }, async () => {
  const source = 'for n in 1 2 3; do echo "out $n"; echo "err $n" >&2; sleep 0.1; done; printf "é"; exit 4'
  const { id } = (await ann.post(server, '/v1/runs', { language: 'bash', source })).body
  const { events, done } = await follow(ann, id)
  await done()
  const all = events()
  assert.deepEqual(
    all.map((event: { seq: number }) => event.seq),
    all.map((_: unknown, index: number) => index + 1),
  )
  assert.deepEqual(all[0].data, { status: 'queued' })
  assert.deepEqual(all[1].data, { status: 'running', attempt: 1 })
  assert.deepEqual([all.at(-1).data.status, all.at(-1).data.exit_code], ['failed', 4])
  const output = all.slice(2, -1)
  assert.ok(output.every((event: { type: string }) => event.type === 'output'))
  const textOf = (stream: string) =>
    output
      .filter((event: { data: { stream: string } }) => event.data.stream === stream)
      .map((event: { data: { text: string } }) => event.data.text)
      .join('')
  assert.equal(textOf('stdout'), 'out 1\nout 2\nout 3\né')
  assert.equal(textOf('stderr'), 'err 1\nerr 2\nerr 3\n')
  assert.ok(output.length >= 4, 'it came as it was written')
  // Whoever comes back with a number gets what is above it.
  const late = await follow(ann, id, all.length - 1)
  await late.done()
  assert.deepEqual(late.events(), all.slice(-1))
})

test('a running program that is cancelled is gone at once, and its run says so', { skip }, async () => {
  const marker = `cancel-${process.pid}`
  const source = 'trap "" TERM; echo before; sleep 30 & wait; sleep 30'
  const { id } = (await ann.post(server, '/v1/runs', { language: 'bash', source, args: [marker] })).body
  const live = await follow(ann, id)
  await until(() => live.events().some((event: { type: string }) => event.type === 'output'))
  assert.ok(processesWith(marker).length > 0)
  const cancelled = await ann.post(server, `/v1/runs/${id}/cancel`, undefined)
  assert.equal(cancelled.status, 202)
  await live.done()
  const { body } = await ann.get(server, `/v1/runs/${id}`)
  assert.deepEqual([body.status, body.stdout, body.exit_code], ['cancelled', 'before\n', null])
  assert.equal(live.events().at(-1).data.status, 'cancelled')
  await until(() => processesWith(marker).length === 0, 3000)
  const again = await ann.post(server, `/v1/runs/${id}/cancel`, undefined)
  assert.deepEqual([again.status, again.body.code], [409, 'job_ended'])
})

test('a lone user’s 300 waiting runs delay another’s one by no more than what runs', { skip }, async () => {
  const [greedy, modest] = [await makeUser(narrow, 'greedy'), await makeUser(narrow, 'modest')]
  const sleeper = { language: 'bash', source: 'sleep 0.5' }
  const accepted = await Promise.all(Array.from({ length: 300 }, () => greedy.post(narrow, '/v1/runs', sleeper)))
  assert.ok(accepted.every(answer => answer.status === 202))
  const begunAt = performance.now()
  const { body } = await modest.post(narrow, '/v1/runs?wait=30', { language: 'bash', source: 'echo mine' })
  const tookMs = performance.now() - begunAt
  assert.equal(body.stdout, 'mine\n')
  // Alone the others would take 75 s; before this one run two that had begun, and at most a turn of the greedy one.
  assert.ok(tookMs < 4000, `it took ${tookMs} ms`)
})

test('a waiting run that is cancelled never begins', { skip }, async () => {
  const user = await makeUser(narrow, 'waverer')
  const sleeper = { language: 'bash', source: 'sleep 2' }
  const ids: string[] = []
  for (let n = 0; n < 4; n++) ids.push((await user.post(narrow, '/v1/runs', sleeper)).body.id)
  const last = ids.at(-1)!
  const { status, body } = await user.post(narrow, `/v1/runs/${last}/cancel`, undefined)
  assert.equal(status, 202)
  assert.deepEqual([body.status, body.attempt, body.started_at], ['cancelled', 0, null])
  const job = (await user.get(narrow, `/v1/jobs/${last}`)).body
  assert.deepEqual([job.state, job.attempt, job.attempts], ['cancelled', 0, []])
  for (const id of ids.slice(0, 3)) await user.post(narrow, `/v1/runs/${id}/cancel`, undefined)
})

test('past a user’s bound the answer is 429, past everybody’s 503, and nothing is stored', { skip }, async () => {
  const [hoarder, other] = [await makeUser(narrow, 'hoarder'), await makeUser(narrow, 'other')]
  const sleeper = { language: 'bash', source: 'sleep 5' }
  const answers = await Promise.all(Array.from({ length: 330 }, () => hoarder.post(narrow, '/v1/runs', sleeper)))
  const refused = answers.filter(answer => answer.status !== 202)
  assert.ok(refused.length >= 20, `${refused.length} refused`)
  for (const { status, body, headers } of refused) {
    assert.ok(['429 too_many_runs', '503 queue_full'].includes(`${status} ${body.code}`), JSON.stringify(body))
    assert.ok(Number(headers.get('retry-after')) >= 1)
  }
  const stored = async (user: User) => {
    const { rows } = await narrow.db.query<{ n: number }>(
      'select count(*)::int as n from runner.runs where owner_name = $1',
      [user.name],
    )
    return rows[0]!.n
  }
  assert.equal(await stored(hoarder), 330 - refused.length)
  // The length of the line is known as of a second ago.
  let last: Answer | undefined
  await until(async () => {
    last = await other.post(narrow, '/v1/runs', sleeper)
    return last.status !== 202
  })
  assert.deepEqual([last!.status, last!.body.code], [503, 'queue_full'])
  assert.ok(Number(last!.headers.get('retry-after')) >= 1)
})

test('nothing of all this was unforeseen', () => {
  const foreseen = /"status":503/
  assert.deepEqual(
    [...server.complaints, ...narrow.complaints].filter(line => !foreseen.test(line)),
    [],
  )
})
