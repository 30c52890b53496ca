/** The old pipeline's load test, by a real Locust: what it says was accepted is what the stream holds. */
import assert from 'node:assert/strict'
import { appendFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { makeTestApp, type TestApp } from './support/app.ts'
import { atEnd } from './support/at-end.ts'
import { runCapstan } from './support/capstan.ts'
import { makeUser, type User } from './support/http.ts'
import { locustIsMissing, runLocust } from './support/locust.ts'

const good = 600
const bad = [{ curso: 'SO1' }, { curso: 'SO1', facultad: 'Ingenieria', carrera: 'Civil', region: 7 }]
const users = 20
/** More than it needs: it ends by itself when all records were sent. */
const secondsMax = 60

const folder = await mkdtemp(path.join(tmpdir(), 'capstan-locust-records-'))
atEnd(() => rm(folder, { recursive: true, force: true }))
const recordsFile = path.join(folder, 'courses.json')

test('every record that Locust sent is in the stream once, but the wrong ones', { skip: locustIsMissing }, async () => {
  const app = await makeTestApp()
  const user = await makeUser(app, 'ada')
  const records = await generate()
  await writeFile(recordsFile, JSON.stringify([...records.slice(0, 100), ...bad, ...records.slice(100)]))
  const run = await locust(app)
  assert.deepEqual([run.requests, run.failures], [good + bad.length, bad.length], run.output)
  assert.deepEqual(
    run.entries.map(entry => `${entry.method} ${entry.name}`),
    ['POST /course'],
  )
  const stored = await readAll(app, user)
  assert.equal(stored.length, run.requests - run.failures)
  assert.deepEqual(stored.map(each => JSON.stringify(each)).sort(), records.map(each => JSON.stringify(each)).sort())
  assert.deepEqual(app.complaints, [])
})

test('where /course is closed Locust is refused without a token, and taken with one', {
  skip: locustIsMissing,
}, async () => {
  const app = await makeTestApp({ env: { OPEN_ROUTES: '/api/send' } })
  const user = await makeUser(app, 'ada')
  await generate('ndjson')
  await appendFile(recordsFile, '\n')
  const refused = await locust(app)
  assert.deepEqual([refused.requests, refused.failures], [good, good], refused.output)
  assert.equal((await readAll(app, user)).length, 0)
  const taken = await locust(app, { TOKEN: user.token })
  assert.deepEqual([taken.requests, taken.failures], [good, 0], taken.output)
  assert.equal((await readAll(app, user)).length, good)
})

/** As the command writes them, into the file that Locust reads. */
async function generate(format = 'json'): Promise<object[]> {
  const made = await runCapstan(
    folder,
    ...['generate', 'courses', String(good), '--seed', '3', '--format', format, '--output', recordsFile],
  )
  assert.equal(made.code, 0, made.output)
  return format === 'json' ? JSON.parse(await readFile(recordsFile, 'utf8')) : []
}

function locust(app: TestApp, env: Record<string, string> = {}) {
  return runLocust({
    file: path.resolve(import.meta.dirname, '../load/locustfile.py'),
    host: app.url,
    users,
    seconds: secondsMax,
    env: { PYTHONDONTWRITEBYTECODE: '1', RECORDS_FILE: recordsFile, WAIT: '0-0.01', ...env },
  })
}

async function readAll(app: TestApp, user: User): Promise<object[]> {
  const records: object[] = []
  for (let after = '0'; ; ) {
    const { status, body } = await user.get(app, `/v1/streams/courses/records?after=${after}&limit=500`)
    assert.equal(status, 200)
    if (body.records.length === 0) return records
    records.push(...body.records.map((each: { record: object }) => each.record))
    after = body.next
  }
}
