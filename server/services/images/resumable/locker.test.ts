import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ERRORS } from '@tus/server'
import { makeLocker } from './locker.ts'

/** Never aborted: turns end by being left. */
const { signal } = new AbortController()

test('turns come one at a time, in order, and whoever has one hears of those who wait', async () => {
  const locker = makeLocker({ waitMs: 5000 })
  const heard: string[] = []
  const enter = (name: string) => {
    const lock = locker.newLock('a')
    const entered = lock.lock(signal, () => void heard.push(`${name} is asked`)).then(() => void heard.push(name))
    return { entered, leave: () => lock.unlock() }
  }
  const [first, second, third] = [enter('first'), enter('second'), enter('third')]
  await first.entered
  await first.leave()
  await second.entered
  await second.leave()
  await third.entered
  await third.leave()
  const last = enter('last')
  await last.entered
  await last.leave()
  assert.deepEqual(heard, ['first is asked', 'first is asked', 'first', 'second is asked', 'second', 'third', 'last'])
})

test('other uploads are not waited for', async () => {
  const locker = makeLocker({ waitMs: 5000 })
  await locker.newLock('a').lock(signal, () => assert.fail('nobody waits'))
  await locker.newLock('b').lock(signal, () => assert.fail('nobody waits'))
})

test('who waited too long goes away, and the others’ turns come all the same', async () => {
  const locker = makeLocker({ waitMs: 20 })
  const [held, late, patient] = [locker.newLock('a'), locker.newLock('a'), locker.newLock('a')]
  await held.lock(signal, () => {})
  await assert.rejects(
    late.lock(signal, () => {}),
    ERRORS.ERR_LOCK_TIMEOUT,
  )
  const entered = patient.lock(signal, () => {})
  await held.unlock()
  await entered
  await patient.unlock()
})
