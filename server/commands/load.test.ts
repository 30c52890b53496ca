import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { makeTestApp } from '../../test/support/app.ts'
import { atEnd } from '../../test/support/at-end.ts'
import { makeUser } from '../../test/support/http.ts'
import { until } from '../../test/support/until.ts'
import { generateCourses } from '../services/ingest/index.ts'
import { load } from './load.ts'
import { begin, capstan, ended } from './test-support.ts'
import { UsageError } from './usage.ts'

const folder = await mkdtemp(path.join(tmpdir(), 'capstan-load-'))
atEnd(() => rm(folder, { recursive: true, force: true }))

type Handle = (body: string, response: ServerResponse, request: IncomingMessage) => void

/** Takes the place of a Capstan that answers as the test wants. */
async function makeServer(handle: Handle): Promise<string> {
  const server = createServer(async (request, response) => {
    if (request.url === '/healthz') return response.end('{}')
    handle(await text(request), response, request)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  atEnd(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as { port: number }).port}`
}

function answer(response: ServerResponse, status: number, body: object = {}) {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}

async function write(name: string, content: string): Promise<string> {
  const file = path.join(folder, name)
  await writeFile(file, content)
  return file
}

/** The rows of the table of answers. */
function tableOf(stdout: string): Record<string, number> {
  const lines = stdout.split('\n')
  const from = lines.findIndex(line => /^ {2}answer +records$/.test(line)) + 1
  const rows = lines.slice(from, lines.indexOf('', from)).map(line => /^ {2}(.+?) +([\d,]+)(?: {3}.*)?$/.exec(line)!)
  return Object.fromEntries(rows.map(([, kind, times]) => [kind, Number(times!.replaceAll(',', ''))]))
}

test('every record is sent once, and the table tells what was answered', async () => {
  const seen: string[] = []
  const url = await makeServer((body, response) => {
    seen.push(body)
    const { n } = JSON.parse(body)
    if (n % 100 === 7) answer(response, 422, { error: 'It is a seven.' })
    else if (n % 100 === 8) answer(response, 503, { code: 'overloaded', detail: 'Too much.' })
    else answer(response, 201)
  })
  const lines = Array.from({ length: 1000 }, (_, n) => `{"n":${n},"text":"niño"}`)
  const { code, stdout, stderr } = await capstan('load', url, '--records', await write('a.ndjson', lines.join('\n')))
  assert.equal(code, 1, stderr)
  assert.deepEqual(tableOf(stdout), { 201: 980, 422: 10, 503: 10 })
  assert.match(stdout, /^\/course over 128 connections: 980 taken in /)
  assert.match(stdout, /422 +10 {3}It is a seven\./)
  assert.match(stdout, /503 +10 {3}overloaded: Too much\./)
  assert.match(stdout, /p50 .* p90 .* p99 .* max /)
  assert.deepEqual(seen.sort(), [...lines].sort())
})

test('all taken is a success, and is drawn', async () => {
  const url = await makeServer((_body, response) => answer(response, 201))
  const plot = path.join(folder, 'plot.svg')
  const { code, stdout } = await capstan('load', url, '--count', '300', '--connections', '7', '--plot', plot)
  assert.equal(code, 0)
  assert.deepEqual(tableOf(stdout), { 201: 300 })
  const svg = await readFile(plot, 'utf8')
  assert.match(svg, /^<svg [^>]*aria-label="[^"]*300 records/)
  assert.equal(svg.match(/<polyline points="[\d., ]+"/g)?.length, 4)
  assert.doesNotMatch(svg, /NaN|Infinity/)
})

test('generated records are those of the seed', async () => {
  const seen: string[] = []
  const url = await makeServer((body, response) => {
    seen.push(body)
    answer(response, 201)
  })
  await capstan('load', url, '--count', '50', '--seed', '9')
  const { stdout } = await capstan('generate', 'courses', '50', '--seed', '9', '--format', 'ndjson')
  assert.deepEqual(seen.sort(), stdout.trimEnd().split('\n').sort())
})

test('a connection that breaks loses its record alone, and that is told', async () => {
  let requests = 0
  const url = await makeServer((_body, response) => {
    requests++
    if (requests % 50 === 0) return response.destroy()
    // Whoever is told that the connection closes makes another.
    if (requests % 50 === 1) response.setHeader('connection', 'close')
    answer(response, 201)
  })
  const { code, stdout } = await capstan('load', url, '--count', '500', '--connections', '5')
  assert.equal(code, 1)
  assert.deepEqual(tableOf(stdout), { 201: 490, 'no answer: ECONNRESET': 10 })
  assert.equal(requests, 500)
  assert.match(stdout, /may have been taken or not/)
})

test('a load that can only fail ends at once with what to do', async () => {
  let requests = 0
  const refusing = (status: number) =>
    makeServer((_body, response) => {
      requests++
      answer(response, status, { code: 'why', detail: 'Not you.' })
    })
  const closed = await makeServer(() => {})
  const cases: [url: string, args: string[], words: RegExp][] = [
    [await refusing(401), [], /^\/course is closed there.*--token.*OPEN_ROUTES=\/course.*why: Not you\.$/m],
    [await refusing(401), ['--route', 'records'], /asks who calls: --token takes/],
    [await refusing(401), ['--route', 'ndjson'], /asks who calls: --token takes/],
    [await refusing(403), ['--token', 'x'], /may not add records.*streams:write/],
    [await refusing(404), ['--route', 'records', '--stream', 'none'], /There is no \/v1\/streams\/none\/records/],
    ['http://127.0.0.1:9', [], /Nothing answers at http:\/\/127\.0\.0\.1:9 .*Is Capstan running/],
    [closed, ['--route', 'fast'], /--route takes course, records, ndjson/],
    [closed, ['--records', path.join(folder, 'none')], /cannot be read \(ENOENT\).*capstan generate/],
    [closed, ['--count', '5', '--records', 'x'], /do not go together/],
    ['localhost', [], /`localhost` is no address/],
  ]
  for (const [url, args, words] of cases) {
    requests = 0
    await assert.rejects(load([url, ...args], { settings: { PORT: 1 }, generateCourses }), error => {
      assert.ok(error instanceof UsageError, String(error))
      assert.match(error.message, words)
      return true
    })
    assert.ok(requests <= 128, `${requests} requests`)
  }
  const said = await capstan('load', 'http://127.0.0.1:9')
  assert.deepEqual([said.code, said.stdout], [1, ''])
  assert.match(said.stderr, /^Nothing answers at [^\n]*\n$/)
})

test('Ctrl-C prints what there is', async () => {
  let requests = 0
  const url = await makeServer((_body, response) => {
    requests++
    answer(response, 201)
  })
  const child = begin('load', url, '--seconds', '600', '--connections', '2')
  await until(() => requests > 100)
  child.kill('SIGINT')
  const { code, stdout } = await ended(child)
  assert.equal(code, 130)
  assert.deepEqual(tableOf(stdout), { 201: requests })
})

test('a load ends after its time, the records of a file again and again', async () => {
  let requests = 0
  const url = await makeServer((_body, response) => {
    requests++
    answer(response, 201)
  })
  const file = await write('few.ndjson', '{"a":1}\n{"a":2}\n')
  const { code, stdout } = await capstan('load', url, '--seconds', '1', '--records', file)
  assert.equal(code, 0)
  assert.ok(requests > 2)
  assert.deepEqual(tableOf(stdout), { 201: requests })
})

test('NDJSON that a real Capstan takes is in the stream, and what it refuses is told apart', async () => {
  const app = await makeTestApp()
  const user = await makeUser(app, 'ada')
  const record = '{"curso":"SO1","facultad":"Ingenieria","carrera":"Civil","region":"PETEN"}'
  const lines = Array.from({ length: 12_345 }, (_, n) => (n % 1000 === 5 ? 'no record' : record))
  const file = await write('lines.ndjson', lines.join('\n'))
  const args = ['--route', 'ndjson', '--records', file, '--token', user.token]
  const { code, stdout, stderr } = await capstan('load', app.url, ...args)
  assert.equal(code, 1, stderr)
  assert.deepEqual(tableOf(stdout), { taken: 12_332, record_not_json: 13 })
  const counted = await user.get(app, '/v1/streams/courses/counts')
  await until(async () => (await user.get(app, '/v1/streams/courses/counts')).body.total === 12_332).catch(error => {
    throw new Error(`${counted.body.total} were counted: ${error.message}`)
  })
  const single = await capstan('load', app.url, '--route', 'records', '--count', '200', '--token', user.token)
  assert.deepEqual([single.code, tableOf(single.stdout)], [0, { 201: 200 }])
})

test('a server that goes in the middle of NDJSON leaves lines without an answer', async () => {
  const server = createServer((request, response) => {
    if (request.url === '/healthz') return response.end('{}')
    response.writeHead(200, { 'content-type': 'application/x-ndjson' })
    response.write('{"line":1,"count":400,"offset":"1","route":"a"}\n')
    request.once('data', () => setImmediate(() => response.destroy()))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  atEnd(() => server.close())
  const url = `http://127.0.0.1:${(server.address() as { port: number }).port}`
  const args = ['--route', 'ndjson', '--count', '1000', '--connections', '1']
  const { code, stdout } = await capstan('load', url, ...args)
  assert.equal(code, 1)
  const { taken, ...others } = tableOf(stdout)
  assert.equal(taken, 400)
  assert.deepEqual(Object.values(others), [600])
  assert.match(Object.keys(others)[0]!, /^no answer: /)
})
