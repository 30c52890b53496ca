/** The old code runner's contract, as a client written for it sees it: its bodies, its text, its cookie, its history. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestApp } from '../../../test/support/app.ts'
import { makeUser, send } from '../../../test/support/http.ts'
import { whyNoPrograms } from '../../../test/support/programs.ts'
import { until } from '../../../test/support/until.ts'

const skip = await whyNoPrograms(['python', 'bash'])
const server = await makeTestApp({ env: { RUN_CONCURRENCY: '2', RUN_WALL_MS: '1500' } })
const uuid = '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'

let clients = 0

/** Registers and logs in as the old front end did, and keeps the cookie. */
async function makeClient() {
  const credentials = { username: `test${++clients}`, password: `test${clients}` }
  const registered = await send(server, 'POST', '/auth/register', {}, credentials)
  assert.equal(registered.status, 201, JSON.stringify(registered.body))
  const login = await send(server, 'POST', '/auth/login', {}, credentials)
  assert.deepEqual([login.status, login.body], [200, {}])
  const setCookie = login.headers.get('set-cookie')!
  const cookie = setCookie.split(';')[0]!
  return {
    ...credentials,
    id: registered.body.user.ID as number,
    setCookie,
    token: cookie.slice('Authorization='.length),
    run: (language: string, content: string) =>
      send(server, 'POST', '/api/run_code', { cookie }, { language, content }),
    history: async () => (await send(server, 'GET', '/api/get_history', { cookie })).body.data,
  }
}

test('the walkthrough: health, register, login, and the cookie', async () => {
  assert.equal((await send(server, 'GET', '/auth/health')).status, 200)
  const client = await makeClient()
  assert.match(
    client.setCookie,
    /^Authorization=[\w-]+\.[\w-]+\.[\w-]+; Max-Age=[1-9]\d+; Path=\/; HttpOnly; SameSite=Lax$/,
  )
  const again = await send(server, 'POST', '/auth/register', {}, { username: client.username, password: 'other' })
  assert.deepEqual([again.status, Object.keys(again.body)], [400, ['error']])
  const wrong = await send(server, 'POST', '/auth/login', {}, { username: client.username, password: 'other' })
  assert.deepEqual([wrong.status, Object.keys(wrong.body)], [400, ['error']])
  assert.equal(wrong.headers.get('set-cookie'), null)
})

test('a run is answered with the text of old, line by line', { skip }, async () => {
  const client = await makeClient()
  const code = 'class Solution:\n\tdef add(a,b):\n\t\treturn a + b\n\nprint(Solution.add(1,1))'
  const { status, body, headers } = await client.run('python', code)
  assert.equal(status, 200)
  assert.match(headers.get('content-type')!, /^text\/plain/)
  const lines = (body as string).split('\n')
  assert.match(lines[0]!, new RegExp(`^UUID is ${uuid}$`))
  assert.deepEqual(lines.slice(1, 6), ['', `User is ${client.username}`, '', 'Code executed is:', ''])
  assert.equal(lines.slice(6, -1).join('\n'), code)
  assert.match(lines.at(-1)!, /^Time between instanciation and result is \d+(\.\d+)?(e-\d+)? seconds$/)
  const [entry] = await client.history()
  assert.equal(`UUID is ${entry.RequestUUID}`, lines[0])
})

test('the history has its shape, oldest first, and each run its own result', { skip }, async () => {
  const client = await makeClient()
  const programs: [string, string, string, string][] = [
    ['python', 'print(1+1)', 'success', '2\n'],
    // The old server pasted code between these quotes and stored failures as success.
    ['python', `print('''it's "three"''' + """ and \\"three\\\\" """)`, 'success', 'it\'s "three" and "three\\" \n'],
    ['bash', 'echo out; echo err >&2; exit 3', 'failed', 'out\nerr\n'],
    ['bash', 'echo before; sleep 20', 'timed_out', 'before\n'],
    ['bash', "printf 'é\\0x'", 'success', 'é\0x'],
    ['bash', ':', 'success', ''],
  ]
  for (const [language, code] of programs) assert.equal((await client.run(language, code)).status, 200)
  const history = await client.history()
  for (const entry of history) {
    assert.deepEqual(Object.keys(entry), [
      'UserID',
      'InstanciationTS',
      'RequestUUID',
      'CodeContent',
      'WorkerStatus',
      'OutputResult',
    ])
    assert.equal(entry.UserID, client.id)
    assert.match(entry.InstanciationTS, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/)
    assert.ok(Math.abs(Date.parse(entry.InstanciationTS) - Date.now()) < 60_000)
    assert.match(entry.RequestUUID, new RegExp(`^${uuid}$`))
  }
  assert.deepEqual(
    history.map((entry: Record<string, unknown>) => [entry.CodeContent, entry.WorkerStatus, entry.OutputResult]),
    programs.map(([, code, status, output]) => [
      code,
      { String: status, Valid: true },
      { String: output, Valid: true },
    ]),
  )
})

test('what waits or runs is in the history without a result', { skip }, async () => {
  const client = await makeClient()
  const open = { String: '', Valid: false }
  const pending: Promise<unknown>[] = []
  // Two take both places; the third waits. One after another, for what arrives first would run first.
  for (const [n, code] of ['sleep 5; echo 1', 'sleep 5; echo 2', 'echo 3'].entries()) {
    pending.push(client.run('bash', code))
    await until(async () => (await client.history()).length === n + 1)
  }
  const before = await client.history()
  assert.deepEqual(
    before.map((entry: Record<string, unknown>) => [entry.WorkerStatus, entry.OutputResult]),
    [
      [open, open],
      [open, open],
      [open, open],
    ],
  )
  await Promise.all(pending)
  assert.ok((await client.history()).every((entry: { OutputResult: { Valid: boolean } }) => entry.OutputResult.Valid))
})

test('many runs at once, of several users, each get their own answer', { skip }, async () => {
  const users = await Promise.all([makeClient(), makeClient(), makeClient()])
  await Promise.all(
    users.flatMap(client =>
      Array.from({ length: 6 }, async (_, n) => {
        const { status, body } = await client.run('bash', `echo ${client.username} ${n}`)
        assert.equal(status, 200)
        assert.ok(body.includes(`User is ${client.username}\n`) && body.includes(`echo ${client.username} ${n}\n`))
      }),
    ),
  )
  for (const client of users) {
    const outputs = (await client.history()).map(
      (entry: { OutputResult: { String: string } }) => entry.OutputResult.String,
    )
    assert.deepEqual(
      outputs.toSorted(),
      Array.from({ length: 6 }, (_, n) => `${client.username} ${n}\n`),
    )
  }
})

test('old and native routes show the same runs, and a bearer token does what the cookie does', { skip }, async () => {
  const user = await makeUser(server, 'native')
  const ran = await user.post(server, '/api/run_code', { language: 'python', content: 'print(7)' })
  assert.equal(ran.status, 200)
  const { body } = await user.get(server, '/v1/runs/latest')
  assert.deepEqual([body.stdout, ran.body.split('\n')[0]], ['7\n', `UUID is ${body.id}`])
  assert.equal((await user.get(server, '/api/get_history')).body.data[0].RequestUUID, body.id)
  const client = await makeClient()
  const byBearer = await send(server, 'GET', '/api/get_history', { authorization: `Bearer ${client.token}` })
  assert.deepEqual([byBearer.status, byBearer.body], [200, { data: [] }])
})

test('who is not logged in gets 401, whose request is wrong 4xx, both as {"error"}; nothing is stored', async () => {
  const { rows: before } = await server.db.query('select count(*) from runner.runs')
  const { token } = await makeClient()
  const cookie = `Authorization=${token}`
  const program = { language: 'python', content: 'print(1)' }
  const cases: [number, string, string, Record<string, string>, unknown?][] = [
    [401, 'POST', '/api/run_code', {}, program],
    [401, 'GET', '/api/get_history', {}],
    [401, 'POST', '/api/run_code', { cookie: 'Authorization=x' }, program],
    [401, 'GET', '/api/get_history', { cookie: `Authorization=${token}x` }],
    [401, 'GET', '/api/get_history', { authorization: 'Bearer x' }],
    [400, 'POST', '/api/run_code', { cookie }, { language: 'cobol', content: 'x' }],
    [400, 'POST', '/api/run_code', { cookie }, { language: 'python', content: '' }],
    [400, 'POST', '/api/run_code', { cookie }, { language: 'python', content: '\0' }],
    [400, 'POST', '/api/run_code', { cookie }, { language: 'python' }],
    [400, 'POST', '/api/run_code', { cookie }, { language: 5, content: 'x' }],
    [400, 'POST', '/api/run_code', { cookie }, []],
    [413, 'POST', '/api/run_code', { cookie }, { language: 'python', content: 'x'.repeat(100_000) }],
    [400, 'GET', '/api/get_history?limit=0', { cookie }],
    [403, 'POST', '/api/run_code', { cookie, origin: 'https://elsewhere.example' }, program],
  ]
  for (const [status, method, path, headers, body] of cases) {
    const answer = await send(server, method, path, headers, body)
    assert.equal(answer.status, status, `${method} ${path} ${JSON.stringify(body)}: ${JSON.stringify(answer.body)}`)
    assert.deepEqual(Object.keys(answer.body), ['error'])
    assert.equal(typeof answer.body.error, 'string')
  }
  const { rows: after } = await server.db.query('select count(*) from runner.runs')
  assert.deepEqual(after, before)
})

test('nothing of all this was unforeseen', () => assert.deepEqual(server.complaints, []))
