import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeLog } from '#platform/log.ts'
import { makeOutage } from './outage.ts'
import { makeRelay } from './relay.ts'
import type { StreamRow } from './types.ts'

test('that the ingest server is away is told once, with what to look at', async () => {
  const lines: string[] = []
  const relay = makeRelay({
    url: 'http://127.0.0.1:1',
    key: '00',
    waitingMax: 10,
    log: makeLog('info', { write: line => void lines.push(line) }),
  })
  for (let n = 0; n < 3; n++) {
    await assert.rejects(relay.append({ name: 'any' } as StreamRow, { texts: ['{}'], keys: ['[]'] }), {
      code: 'route_unavailable',
    })
  }
  relay.stop()
  assert.equal(lines.length, 1, lines.join(''))
  assert.match(lines[0]!, /INGEST_RPC_URL.*|127\.0\.0\.1:1/)
})

test('each outage is told, and its end', () => {
  const lines: string[] = []
  const outage = makeOutage(makeLog('info', { write: line => void lines.push(JSON.parse(line).msg) }), {
    began: 'away',
    ended: 'back',
  })
  outage.worked()
  for (let n = 0; n < 2; n++) {
    outage.failed({})
    outage.failed({})
    outage.worked()
    outage.worked()
  }
  assert.deepEqual(lines, ['away', 'back', 'away', 'back'])
})
