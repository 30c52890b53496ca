import assert from 'node:assert/strict'
import type { IncomingMessage } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { Readable } from 'node:stream'
import { mock, test } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { fastify } from 'fastify'
import { atEnd } from '../../../../test/support/at-end.ts'
import { until } from '../../../../test/support/until.ts'
import { endWhenSlow, takenFrom } from './slow.ts'

const mib = 1024 * 1024
const windowMs = 300_000
const bytesMin = 20 * mib
const chunk = Buffer.alloc(256 * 1024, 1)
/** More than all the buffers between the two hold. */
const bytes = 100 * mib

// Windows pass when a test says so, however slow the machine is.
mock.timers.enable({ apis: ['setInterval'] })
const answers: { body: Readable; socket: IncomingMessage['socket'] }[] = []
const app = fastify({ forceCloseConnections: true })
app.get<{ Querystring: { stalledMs: string } }>('/', (request, reply) => {
  const body = Readable.from(chunks(), { objectMode: false })
  answers.push({ body, socket: request.raw.socket })
  endWhenSlow(reply, { stalledMs: Number(request.query.stalledMs), windowMs, bytesMin })
  reply.send(body)
})
await app.listen({ host: '127.0.0.1', port: 0 })
atEnd(() => app.close())

function* chunks() {
  for (let sent = 0; sent < bytes; sent += chunk.length) yield chunk
}

/** Asks, and takes nothing of the answer but what the test does. */
async function ask({ stalledMs = 120_000 } = {}) {
  const client = connect((app.server.address() as AddressInfo).port, '127.0.0.1').pause()
  atEnd(() => client.destroy())
  client.on('error', () => {})
  client.write(`GET /?stalledMs=${stalledMs} HTTP/1.1\r\nhost: here\r\n\r\n`)
  await until(() => answers.length > 0)
  const { body, socket } = answers.shift()!
  let read = 0
  async function readUntil(isEnough: () => boolean) {
    while (!isEnough()) {
      read += (client.read() as Buffer | null)?.length ?? 0
      await setImmediate()
    }
  }
  return {
    body,
    isEnded: () => socket.destroyed,
    /** Reads until the server has got rid of so many bytes more. */
    take(count: number) {
      const wanted = takenFrom(socket) + count
      return readUntil(() => takenFrom(socket) >= wanted)
    },
    takeAll: () => readUntil(() => read > bytes),
  }
}

test('what feeds an answer that nobody takes is let go of', async () => {
  const { body } = await ask({ stalledMs: 700 })
  await until(() => body.destroyed)
  assert.ok(!body.readableEnded)
})

test('what feeds an answer that is taken too slowly is let go of, however steadily it is taken', async () => {
  const { body, isEnded, take } = await ask()
  // What the kernel's buffers take is taken in the first.
  await take(bytesMin)
  mock.timers.tick(windowMs)
  assert.ok(!isEnded())
  await take(1)
  mock.timers.tick(windowMs)
  await until(() => body.destroyed)
  assert.ok(!body.readableEnded)
})

test('who takes it slowly, and not too slowly, gets all of it', async () => {
  const { body, isEnded, take, takeAll } = await ask()
  for (let n = 0; n < 3; n++) {
    await take(bytesMin)
    mock.timers.tick(windowMs)
    assert.ok(!isEnded())
  }
  await takeAll()
  await until(() => body.readableEnded)
})
