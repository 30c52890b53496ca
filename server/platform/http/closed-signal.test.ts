import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import { test } from 'node:test'
import { fastify } from 'fastify'
import { atEnd } from '../../../test/support/at-end.ts'
import { until } from '../../../test/support/until.ts'
import { closedSignal } from './closed-signal.ts'

const signals: AbortSignal[] = []
const app = fastify({ forceCloseConnections: true })
app.get('/answered', async (_, reply) => {
  signals.push(closedSignal(reply))
  return 'done'
})
app.get('/left', async (_, reply) => {
  const signal = closedSignal(reply)
  signals.push(signal)
  await once(signal, 'abort')
  signals.push(closedSignal(reply))
  return 'too late'
})
await app.listen({ host: '127.0.0.1', port: 0 })
atEnd(() => app.close())

test('all are aborted for one reason, be it before or after they are asked for', async () => {
  await app.inject('/answered')
  const socket = connect((app.server.address() as AddressInfo).port, '127.0.0.1')
  socket.write('GET /left HTTP/1.1\r\nhost: here\r\n\r\n')
  await until(() => signals.length === 2)
  socket.destroy()
  await until(() => signals.length === 3)
  await until(() => signals.every(signal => signal.aborted))
  assert.equal(signals[0]!.reason.name, 'AbortError')
  assert.equal(new Set(signals.map(signal => signal.reason)).size, 1)
})
