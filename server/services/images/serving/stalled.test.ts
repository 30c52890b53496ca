import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fastify } from 'fastify'
import { atEnd } from '../../../../test/support/at-end.ts'
import { until } from '../../../../test/support/until.ts'
import { endWhenStalled } from './stalled.ts'

const stalledMs = 700
const chunk = Buffer.alloc(256 * 1024, 1)
/** More than all the buffers between the two hold. */
const chunks = 200
const bodies: Readable[] = []
const app = fastify({ forceCloseConnections: true })
app.get('/', (_, reply) => {
  const body = Readable.from(
    (function* () {
      for (let sent = 0; sent < chunks; sent++) yield chunk
    })(),
    { objectMode: false },
  )
  bodies.push(body)
  endWhenStalled(reply, stalledMs)
  reply.send(body)
})
await app.listen({ host: '127.0.0.1', port: 0 })
atEnd(() => app.close())

function ask() {
  const socket = connect((app.server.address() as AddressInfo).port, '127.0.0.1').pause()
  socket.on('error', () => {})
  socket.write('GET / HTTP/1.1\r\nhost: here\r\n\r\n')
  return socket
}

test('what feeds an answer that nobody takes is let go of', async () => {
  const socket = ask()
  await until(() => bodies.length === 1)
  await until(() => bodies[0]!.destroyed, 10_000)
  assert.ok(!bodies[0]!.readableEnded)
  socket.destroy()
})

test('who takes it slowly gets all of it', async () => {
  const socket = ask()
  await once(socket, 'connect')
  const begun = performance.now()
  let bytes = 0
  for (;;) {
    const some = socket.read() as Buffer | null
    bytes += some?.length ?? 0
    if (bytes > chunks * chunk.length) break
    if (performance.now() - begun < 3 * stalledMs) await sleep(50)
    else if (!some) await once(socket, 'readable', { signal: AbortSignal.timeout(10_000) })
  }
  assert.ok(performance.now() - begun > 2 * stalledMs)
  socket.destroy()
})
