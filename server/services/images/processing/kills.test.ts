/** Images whose decoders are killed, seen from outside. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isAlive } from '#platform/processes.ts'
import { makeTestApp } from '../../../../test/support/app.ts'
import { makePicture } from '../../../../test/support/pictures.ts'
import { until } from '../../../../test/support/until.ts'
import { makeSender } from '../test-support.ts'
import { isFromOutside, makeKills } from './kills.ts'
import { begunChild, busy } from './test-support.ts'

test('an image whose decoder is killed twice is tried again, and is ready in the end', async () => {
  const server = await makeTestApp({
    // It takes seconds to encode.
    env: { N_WORKERS: '1', IMAGE_PRESETS: 'large:width=1400,format=avif,quality=95', IMAGE_MS_MAX: '600000' },
  })
  const ann = await makeSender(server, 'ann')
  const { body } = await ann.raw(
    await makePicture({ width: 1400, height: 933, format: 'jpeg', kind: 'photo', seed: 1 }),
  )
  for (let n = 0; n < 2; n++) {
    const pid = await begunChild()
    await busy(pid)
    process.kill(pid, 'SIGKILL')
    await until(() => !isAlive(pid))
  }
  assert.equal((await ann.ended(body.id)).status, 'ready')
  const { body: job } = await ann.get(`/v1/jobs/${body.job_id}`)
  const errors = job.attempts.map((attempt: { error: string | null }) => attempt.error)
  assert.deepEqual(errors.filter(Boolean), Array(2).fill('The process that decodes it was killed by SIGKILL.'))
})

test('kills of one thing in a row are counted, until one is too many', () => {
  const kills = makeKills()
  const addSeven = () => Array.from({ length: 7 }, () => kills.add('one'))
  assert.deepEqual(new Set(addSeven()), new Set([undefined]))
  assert.equal(kills.add('other'), undefined)
  kills.forget('one')
  assert.deepEqual(new Set(addSeven()), new Set([undefined]))
  assert.equal(kills.add('one'), 8)
  assert.equal(kills.add('one'), undefined, 'the next row')
})

test('a crash is nobody else’s doing, other signals are', () => {
  for (const signal of ['SIGSEGV', 'SIGBUS', 'SIGILL', 'SIGABRT', 'SIGTRAP', null] as const) {
    assert.ok(!isFromOutside(signal), String(signal))
  }
  for (const signal of ['SIGKILL', 'SIGTERM', 'SIGINT'] as const) assert.ok(isFromOutside(signal), signal)
})
