/** Every query of the dashboards: the SQL ones as Grafana's role, the others by a real Prometheus. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { before, test } from 'node:test'
import pg from 'pg'
import { makeTestApp } from './support/app.ts'
import { atEnd } from './support/at-end.ts'
import { makeUser, send, type User } from './support/http.ts'
import { makeTestPrometheus, prometheusIsMissing } from './support/prometheus.ts'
import { until } from './support/until.ts'

interface Target {
  refId: string
  expr?: string
  rawSql?: string
}

interface Panel {
  title: string
  datasource: { uid: string }
  targets: Target[]
}

interface Time {
  from: Date
  to: Date
}

const folder = path.resolve(import.meta.dirname, '../deploy/grafana')
const read = (name: string) => readFileSync(path.join(folder, name), 'utf8')
const dashboard = JSON.parse(read('dashboards/ingest.json')) as {
  panels: Panel[]
  templating: { list: { query: string }[] }
}
const queries = dashboard.panels.flatMap(({ title, targets }) =>
  targets.map(target => ({ title: `${title} ${target.refId}`, ...target })),
)
const minuteMs = 60_000
const hourMs = 60 * minuteMs
const dayMs = 24 * hourMs

const app = await makeTestApp({
  env: { NODE_ENV: 'production', AUTH_SECRET: 'a secret of tests, long enough to be one' },
})
let user: User
let grafana: pg.Client
/** When all records were there. */
let now: number

before(async () => {
  user = await makeUser(app, 'ada')
  grafana = await connectAsGrafana()
  const records = JSON.parse(await generated(1000))
  const added = await user.post(app, '/v1/streams/courses/records', records)
  assert.deepEqual([added.body.accepted, added.body.refused], [1000, 0])
  await addOldCounts()
  await until(async () => (await mergedNow()) === 1000)
  now = Date.now()
})

async function generated(count: number): Promise<string> {
  const { generateCourses } = await import('../server/services/ingest/index.ts')
  return JSON.stringify([...generateCourses({ count, seed: 7 })])
}

/** The role that the README says, under a name of this test's own. */
async function connectAsGrafana(): Promise<pg.Client> {
  const name = `grafana_${process.pid}`
  const statements = /```sql\n([^`]*)```/.exec(read('README.md'))![1]!.replaceAll('grafana', name)
  for (const statement of statements.split(';\n').filter(text => text.trim() !== '')) await app.db.query(statement)
  const { rows } = await app.db.query<{ host: string; database: string; port: string }>(
    `select current_setting('unix_socket_directories') as host, current_database() as database, current_setting('port') as port`,
  )
  const { host, database, port } = rows[0]!
  const client = new pg.Client({ host, database, port: Number(port), user: name, password: 'change me' })
  await client.connect()
  atEnd(async () => {
    await client.end()
    await app.db.query(`drop owned by ${name}`)
    await app.db.query(`drop role ${name}`)
  })
  return client
}

/** Counts of the last three days, a record in each region every seven minutes, as the merging would have left them. */
async function addOldCounts() {
  await app.db.query(`
    insert into ingest.rollups (stream_id, grain, dimensions, bucket, key, count)
    select s.id, grain, 'region', date_bin(make_interval(secs => grain), at, 'epoch'), key, count(*)
    from ingest.streams s
    cross join unnest(array[60, 3600, 86400]) grain
    cross join unnest(array['["NORTE"]', '["PETEN"]']) key
    cross join generate_series(now() - interval '3 days', now() - interval '2 hours', interval '7 minutes') at
    where s.name = 'courses' group by 1, 2, 4, 5`)
}

/** What the rollups have of the newest records. */
async function mergedNow(): Promise<number> {
  const { rows } = await app.db.query<{ sum: number }>(
    `select coalesce(sum(count), 0)::integer as sum from ingest.rollups where grain = 60 and dimensions = 'route'`,
  )
  return rows[0]!.sum
}

/** What Grafana makes of a query to PostgreSQL. */
function fillInSql(text: string, { from, to }: Time, intervalMs: number): string {
  const quote = (time: Date) => `'${time.toISOString()}'`
  return text
    .replaceAll('$stream', 'courses')
    .replaceAll('$__interval_ms', String(intervalMs))
    .replaceAll('$__interval', `${intervalMs / 1000}s`)
    .replaceAll('$__timeFrom()', quote(from))
    .replaceAll('$__timeTo()', quote(to))
    .replace(/\$__timeFilter\(([^)]*)\)/g, (_, column) => `${column} BETWEEN ${quote(from)} AND ${quote(to)}`)
    .replace(/\$__timeGroupAlias\(([^,)]*), *(\d+)s\)/g, (_, column, seconds) => {
      return `floor(extract(epoch from ${column})/${seconds})*${seconds} AS "time"`
    })
}

async function ask<R extends object>(text: string, time: Time, intervalMs = minuteMs): Promise<R[]> {
  const filled = fillInSql(text, time, intervalMs)
  assert.doesNotMatch(filled, /\$/)
  return (await grafana.query(filled)).rows as R[]
}

async function counts(by: string, { from, to }: Time, every?: string) {
  const times = `from=${from.toISOString()}&to=${to.toISOString()}${every ? `&every=${every}` : ''}`
  const { status, body } = await user.get(app, `/v1/streams/courses/counts?by=${by}&${times}`)
  assert.equal(status, 200)
  return body as { total: number; rows: { at?: string; values: string[]; count: number }[] }
}

const sqlOf = (title: string) => queries.find(query => query.title === `${title} A`)!.rawSql!

test('every panel asks one of the two provisioned sources', () => {
  const provisioned = [...read('provisioning/datasources/capstan.yaml').matchAll(/uid: (\S+)/g)].map(([, uid]) => uid)
  assert.deepEqual(new Set(dashboard.panels.map(panel => panel.datasource.uid)), new Set(provisioned))
  assert.ok(queries.every(({ expr, rawSql }) => (expr ?? rawSql ?? '') !== ''))
})

test('panels of totals show what /counts answers, at any ends of the time', async () => {
  const times: [name: string, from: number, to: number][] = [
    ['the last hour', now - hourMs, now + minuteMs],
    ['within an hour', now - 50 * minuteMs, now + minuteMs],
    ['a few minutes across an hour', Math.ceil((now - dayMs) / hourMs) * hourMs - 7 * minuteMs, now - dayMs + hourMs],
    ['two days and a bit', now - 2 * dayMs - 11 * minuteMs, now + minuteMs],
    ['a week', now - 7 * dayMs, now + minuteMs],
    ['long ago', now - 300 * dayMs, now - 200 * dayMs],
  ]
  for (const [name, from, to] of times) {
    const time = { from: new Date(from), to: new Date(to) }
    for (const by of ['region', 'facultad', 'carrera', 'curso']) {
      const rows = await ask<Record<string, string | number>>(sqlOf(`Records by ${by}`), time)
      const shown = Object.fromEntries(rows.map(row => [row[by], row.records]))
      const wanted = Object.fromEntries((await counts(by, time)).rows.map(row => [row.values[0], row.count]))
      assert.deepEqual(shown, wanted, `${by} in ${name}`)
    }
  }
})

test('the number of records is that of /counts', async () => {
  const time = { from: new Date(now - hourMs), to: new Date(now + minuteMs) }
  assert.deepEqual(await ask(sqlOf('Records'), time), [{ records: 1000 }])
  assert.equal((await counts('', time)).total, 1000)
  const long = { from: new Date(now - 300 * dayMs), to: new Date(now - 200 * dayMs) }
  assert.deepEqual(await ask(sqlOf('Records'), long), [{ records: 0 }])
})

test('panels over time show what /counts answers by the minute and by the hour', async () => {
  const steps = [
    { intervalMs: minuteMs, every: '1m', spanMs: 6 * hourMs },
    { intervalMs: hourMs, every: '1h', spanMs: 2 * dayMs },
  ]
  for (const { intervalMs, every, spanMs } of steps) {
    const from = new Date(Math.floor((now - spanMs) / intervalMs) * intervalMs)
    const time = { from, to: new Date(Math.ceil((now + 1) / intervalMs) * intervalMs - 1) }
    for (const by of ['region', 'route']) {
      const rows = await ask<{ time: string; metric: string; records: number }>(
        sqlOf(`Records by ${by} over time`),
        time,
        intervalMs,
      )
      const shown = rows.map(row => [Number(row.time) * 1000, row.metric, row.records])
      const wanted = (await counts(by, time, every)).rows.map(row => [Date.parse(row.at!), row.values[0], row.count])
      assert.ok(shown.length > 0)
      assert.deepEqual(shown.sort(), wanted.sort(), `${by} every ${every}`)
    }
  }
})

test('the choice of streams offers them', async () => {
  const { rows } = await grafana.query(dashboard.templating.list[0]!.query)
  assert.deepEqual(rows, [{ name: 'courses' }])
})

test('no panel reads a table as a whole', async () => {
  // So that there is something to read as a whole.
  await app.db.query(`
    insert into ingest.streams (name, schema, dimensions, weight_a, weight_b, retention_days, writers, readers)
    select 'other-' || n, '{}', '{region}', 50, 50, 30, 'users', 'users' from generate_series(1, 50) n`)
  await app.db.query(`
    insert into ingest.rollups (stream_id, grain, dimensions, bucket, key, count)
    select s.id, 60, 'region', now() - n * interval '1 minute', '["PETEN"]', 1
    from ingest.streams s cross join generate_series(1, 500) n where s.name like 'other-%'`)
  await app.db.query(`analyze ingest.rollups, ingest.streams`)
  const time = { from: new Date(now - 30 * dayMs), to: new Date(now) }
  for (const { title, rawSql } of queries.filter(query => query.rawSql)) {
    const { rows } = await grafana.query(`explain ${fillInSql(rawSql!, time, hourMs)}`)
    const plan = rows.map(row => row['QUERY PLAN']).join('\n')
    assert.doesNotMatch(plan, /Seq Scan on rollups/, `${title}\n${plan}`)
  }
})

test('the role sees counts and neither records nor users', async () => {
  for (const table of ['ingest.segments', 'ingest.records', 'ingest.deltas', 'platform.secrets', 'identity.users']) {
    await assert.rejects(grafana.query(`select * from ${table}`), /permission denied/, table)
  }
  await assert.rejects(grafana.query(`delete from ingest.rollups`), /permission denied|read-only/)
})

test('every expression has an answer from a real Prometheus', { skip: prometheusIsMissing }, async () => {
  const key = await makeScraperKey()
  const stranger = await send(app, 'GET', '/metrics')
  assert.equal(stranger.status, 401)
  const prometheus = await makeTestPrometheus({
    async config(home) {
      const file = path.join(home, 'key')
      await writeFile(file, key)
      return read('prometheus.yml')
        .replace('127.0.0.1:8080', new URL(app.url).host)
        .replace('/etc/prometheus/capstan-key', file)
        .replace('scrape_interval: 15s', 'scrape_interval: 200ms\n    scrape_timeout: 200ms')
    },
  })
  const waiting = new Map(queries.filter(query => query.expr).map(({ title, expr }) => [title, expr!]))
  assert.ok(waiting.size > 0)
  const good = JSON.parse(await generated(1))[0]
  await until(async () => {
    await user.post(app, '/course', good)
    await user.post(app, '/course', { ...good, region: 7 })
    for (const [title, expr] of waiting) {
      const filled = expr.replaceAll('$stream', 'courses').replaceAll('$__rate_interval', '2s')
      assert.doesNotMatch(filled, /\$/)
      const found = await prometheus.ask(filled, 10)
      // Readers are not behind for long enough to be seen so.
      const isAnswer = (value: number) => value > 0 || (title.match(/Behind|Lag/) && value === 0)
      if (found.some(({ values }) => values.some(isAnswer))) waiting.delete(title)
    }
    return waiting.size === 0
  }, 30_000).catch(error => {
    throw new Error(`No answer for ${[...waiting.keys()].join(', ')}: ${error.message}`)
  })
})

async function makeScraperKey(): Promise<string> {
  const password = 'a password of tests'
  await app.app.identity.createUser({ username: 'root-of-tests', password, role: 'admin' })
  const login = await send(app, 'POST', '/v1/auth/login', {}, { username: 'root-of-tests', password })
  const made = await send(
    app,
    'POST',
    '/v1/auth/api-keys',
    { authorization: `Bearer ${login.body.access_token}` },
    { name: 'prometheus', scopes: ['metrics:read'] },
  )
  assert.equal(made.status, 201, JSON.stringify(made.body))
  return made.body.key
}
