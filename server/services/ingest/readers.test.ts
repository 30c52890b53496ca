import { test } from 'node:test'
import { makeBus } from '#platform/bus.ts'
import { silentLog } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { until } from '../../../test/support/until.ts'
import { appendedChannel, makeReaders } from './readers.ts'

test('a clock that is set back stops no reader', async t => {
  const { db } = await makeTestDatabase()
  const bus = makeBus({ db, redisUrl: undefined, log: silentLog })
  await bus.start()
  atEnd(() => bus.stop())
  let rounds = 0
  const kind = {
    name: 'counting',
    counted: 'last_offset',
    restMs: 50,
    prepare: async () => void rounds++,
    step: async () => false,
  } as const
  const readers = makeReaders({
    db,
    bus,
    log: silentLog,
    metrics: makeMetrics({ processMetrics: false }),
    kinds: [kind],
  })
  const inAnHour = Date.now() + 3_600_000
  t.mock.method(Date, 'now', () => inAnHour)
  readers.start()
  atEnd(() => readers.stop())
  while (rounds < 2) await new Promise(resolve => setTimeout(resolve, 10))
  t.mock.restoreAll()
  const before = rounds
  bus.publish(appendedChannel, ['any'])
  await until(() => rounds >= before + 2)
})
