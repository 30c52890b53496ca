/** NDJSON requests without an end: who is idle is ended, and so are all when the process stops. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type ClientRequest, type IncomingMessage, request } from 'node:http'
import { connect } from 'node:net'
import { test } from 'node:test'
import { makeTestApp, type TestApp } from '../../../test/support/app.ts'
import { until } from '../../../test/support/until.ts'
import { makeAdmin, readAll, type Sender } from './test-support.ts'

interface Opened {
  sender: ClientRequest
  /** Lines of the answer. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it as they need.
  told(): any[]
  status(): number | undefined
  isOver(): boolean
}

function open({ url }: TestApp, { headers }: Sender, stream: string): Opened {
  const sender = request(`${url}/v1/streams/${stream}/records`, {
    method: 'POST',
    headers: { ...headers, 'content-type': 'application/x-ndjson' },
  })
  let text = ''
  let response: IncomingMessage | undefined
  sender.on('error', () => {})
  sender.on('response', answer => {
    response = answer
    answer.on('error', () => {})
    answer.setEncoding('utf8').on('data', piece => {
      text += piece
    })
  })
  return {
    sender,
    told: () =>
      text
        .split('\n')
        .slice(0, -1)
        .map(line => JSON.parse(line)),
    status: () => response?.statusCode,
    isOver: () => response?.complete === true,
  }
}

async function makeServer(env: Record<string, string>) {
  const server = await makeTestApp({ env })
  const admin = await makeAdmin(server)
  await admin.put('/v1/streams/open', { schema: {}, routes: { a: 0, b: 100 } })
  return { server, admin }
}

test('who sends nothing is told so and ended; who sends now and then is not', async () => {
  const { server, admin } = await makeServer({ INGEST_IDLE_MS: '1000' })
  const [idle, busy] = [open(server, admin, 'open'), open(server, admin, 'open')]
  idle.sender.write('{"id":1}\n{"id":2')
  let sent = 0
  const timer = setInterval(() => busy.sender.write(`{"busy":${sent++}}\n`), 300)
  await until(() => idle.isOver())
  assert.deepEqual(
    idle.told().map(each => each.error?.code ?? each.line),
    [1, 'records_idle'],
  )
  await until(() => idle.sender.destroyed)
  await until(() => sent > 6)
  clearInterval(timer)
  busy.sender.end()
  await until(() => busy.isOver())
  assert.ok(busy.told().length > 6 && busy.told().every(each => !each.error), JSON.stringify(busy.told()))
  assert.deepEqual(server.complaints, [])
})

test('who does not read the answers is read no further, and ended', async () => {
  const { server, admin } = await makeServer({ INGEST_IDLE_MS: '1000' })
  const { hostname, port } = new URL(server.url)
  const socket = connect(Number(port), hostname)
  socket.on('error', () => {})
  // Nothing is read as nobody listens for data.
  socket.pause()
  const head = Object.entries({
    ...admin.headers,
    'content-type': 'application/x-ndjson',
    'transfer-encoding': 'chunked',
  })
  socket.write(
    `POST /v1/streams/open/records HTTP/1.1\r\nhost: x\r\n${head.map(([k, v]) => `${k}: ${v}\r\n`).join('')}\r\n`,
  )
  const lines = 'x\n'.repeat(30_000)
  const chunk = `${lines.length.toString(16)}\r\n${lines}\r\n`
  let sent = 0
  const isEnded = () => socket.destroyed
  // Each wrong line is answered by a longer one.
  const sending = (async () => {
    while (!isEnded()) {
      sent += chunk.length
      if (!socket.write(chunk)) await Promise.race([once(socket, 'drain'), once(socket, 'close')]).catch(() => {})
    }
  })()
  await until(isEnded)
  await sending
  assert.ok(sent < 200_000_000, `${sent} bytes were taken`)
  assert.deepEqual(server.complaints, [])
})

test('so many are open at once, and no more', async () => {
  const { server, admin } = await makeServer({ INGEST_OPEN_MAX: '2' })
  const two = [open(server, admin, 'open'), open(server, admin, 'open')]
  for (const each of two) each.sender.write('{"id":1}\n')
  await until(() => two.every(each => each.told().length === 1))
  const third = open(server, admin, 'open')
  third.sender.end('{"id":1}\n')
  await until(() => third.isOver())
  assert.equal(third.status(), 503)
  two[0]!.sender.destroy()
  await until(async () => {
    const next = open(server, admin, 'open')
    next.sender.end('{"id":1}\n')
    await until(() => next.isOver())
    return next.status() === 200
  })
  two[1]!.sender.end()
})

test('when the process stops, what came is answered, and the answer ends', async () => {
  const { server, admin } = await makeServer({ SHUTDOWN_GRACE_MS: '5000' })
  const endless = open(server, admin, 'open')
  endless.sender.write('{"id":1}\n{"id":2}\n{"id"')
  await until(() => endless.told().length > 0)
  const began = performance.now()
  const stopped = server.app.stop()
  // It stops once.
  server.app.stop = () => stopped
  await stopped
  assert.ok(performance.now() - began < 4000, `${performance.now() - began} ms`)
  await until(() => endless.isOver())
  assert.deepEqual(
    endless.told().map(each => each.error?.code ?? each.count),
    [2, 'unavailable'],
  )
})

test('a request without an end sees its stream changed, deleted and declared anew', async () => {
  const { server, admin } = await makeServer({})
  const endless = open(server, admin, 'open')
  const answerTo = async (line: string) => {
    const before = endless.told().length
    endless.sender.write(`${line}\n`)
    await until(() => endless.told().length > before)
    const { error, offset, route } = endless.told().at(-1)!
    return error?.code ?? `${offset}${route}`
  }
  assert.equal(await answerTo('{"id":1}'), '1b')
  await admin.put('/v1/streams/open', { schema: { required: ['n'] }, routes: { a: 100, b: 0 } })
  await until(async () => (await answerTo('{"id":2}')) === 'record_invalid')
  assert.match(await answerTo('{"n":2}'), /^\d+a$/)
  await admin.delete('/v1/streams/open')
  await until(async () => (await answerTo('{"n":3}')) === 'stream_not_found')
  await admin.put('/v1/streams/open', { schema: {} })
  await until(async () => /^1[ab]$/.test(await answerTo('{"n":4}')))
  endless.sender.end()
  await until(() => endless.isOver())
  assert.equal((await readAll(admin, 'open')).length, 1)
})

test('a JSON body on the same route may not take for ever', async () => {
  // Its time is the platform's, told by the type alone.
  const { default: fastify } = await import('fastify')
  const { limitBodyTime } = await import('#platform/http/body-time.ts')
  const { addRecordRoutes } = await import('./record-routes.ts')
  const app = fastify()
  limitBodyTime(app as never, 200)
  addRecordRoutes(app as never, { settings: { INGEST_ARRAY_BYTES_MAX: 1000 } } as never)
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  const drip = request(`${url}/v1/streams/x/records`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
  })
  drip.on('error', () => {})
  drip.write('[')
  const [response] = (await once(drip, 'response')) as [IncomingMessage]
  assert.equal(response.statusCode, 408)
  await app.close()
})
