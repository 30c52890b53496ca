/** Over plain sockets, as clients that mean no good speak. */
import assert from 'node:assert/strict'
import { connect, type Socket } from 'node:net'
import { test } from 'node:test'
import { fastify } from 'fastify'
import { atEnd } from '../../../test/support/at-end.ts'
import { until } from '../../../test/support/until.ts'
import { limitBodyTime } from './body-time.ts'
import type { HttpApp } from './server.ts'

const bodyMs = 500
const app = fastify() as unknown as HttpApp
limitBodyTime(app, bodyMs)
app.post('/json', async request => request.body)
app.get('/slow', async () => new Promise(resolve => setTimeout(resolve, 4000, { slow: true })))
app.addContentTypeParser('text/plain', (_request, _payload, done) => done(null))
app.post('/early', async () => ({ early: true }))
app.post('/lines', { config: { isUnending: request => request.headers['x-lines'] === '1' } }, async request => {
  let bytes = 0
  for await (const chunk of request.raw) bytes += chunk.length
  return { bytes }
})
await app.listen({ port: 0, host: '127.0.0.1' })
atEnd(() => app.close())
const { port } = app.server.address() as { port: number }

interface Client {
  socket: Socket
  said(): string
  isClosed(): boolean
}

function open(text: string): Client {
  const socket = connect(port, '127.0.0.1')
  let said = ''
  let isClosed = false
  socket.setEncoding('utf8').on('data', piece => {
    said += piece
  })
  socket.on('error', () => {})
  socket.on('close', () => {
    isClosed = true
  })
  socket.write(text)
  return { socket, said: () => said, isClosed: () => isClosed }
}

const post = (path: string, headers: string, body: string) =>
  `POST ${path} HTTP/1.1\r\nhost: x\r\n${headers}\r\n\r\n${body}`
const json = 'content-type: application/json\r\ncontent-length: 1000'

/** Sends a byte now and then, for as long as it is heard. */
function drip({ socket }: Client) {
  const timer = setInterval(() => (socket.writable ? socket.write(' ') : clearInterval(timer)), 50)
  socket.on('close', () => clearInterval(timer))
}

test('a body that drips is answered 408 and its connection closed', async () => {
  for (const headers of [json, 'content-type: application/json\r\ntransfer-encoding: chunked']) {
    const client = open(post('/json', headers, headers === json ? '{' : '1\r\n{\r\n'))
    if (headers === json) drip(client)
    await until(client.isClosed)
    assert.match(client.said(), /^HTTP\/1\.1 408 /)
  }
})

test('each request of a connection has its time', async () => {
  const whole = post('/json', 'content-type: application/json\r\ncontent-length: 2', '{}')
  const client = open(whole)
  await until(() => client.said().includes('{}'))
  await new Promise(resolve => setTimeout(resolve, bodyMs + 2500))
  client.socket.write(whole)
  await until(() => client.said().split('HTTP/1.1 200').length === 3)
  client.socket.write(post('/json', json, '{'))
  drip(client)
  await until(client.isClosed)
  assert.match(client.said(), /HTTP\/1\.1 408 /)
})

test('who is answered early is closed all the same when the rest does not come', async () => {
  const client = open(post('/early', 'content-type: text/plain\r\ncontent-length: 1000', 'x'))
  await until(() => client.said().includes('"early"'))
  drip(client)
  await until(client.isClosed)
  assert.doesNotMatch(client.said(), /408/)
})

test('answers may take longer, and so may bodies that a route calls unending', async () => {
  const [slow, lines, others] = [
    open('GET /slow HTTP/1.1\r\nhost: x\r\n\r\n'),
    open(post('/lines', 'content-type: text/plain\r\nx-lines: 1\r\ncontent-length: 3', 'a')),
    open(post('/lines', 'content-type: text/plain\r\ncontent-length: 3', 'a')),
  ]
  await until(others.isClosed)
  assert.match(others.said(), /^HTTP\/1\.1 408 /)
  await until(() => slow.said().includes('"slow"'))
  lines.socket.write('bc')
  await until(() => lines.said().includes('"bytes":3'))
  for (const { socket } of [slow, lines]) socket.destroy()
})
