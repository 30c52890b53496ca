import assert from 'node:assert/strict'
import { test } from 'node:test'
import { until } from '../../../test/support/until.ts'
import { makeFolderSync } from './folder-sync.ts'

/** Syncs that end when the test says so. */
function makeSyncs() {
  const begun: { folder: string; end: (error?: Error) => void }[] = []
  const sync = makeFolderSync(
    folder =>
      new Promise((resolve, reject) => {
        begun.push({ folder, end: error => (error ? reject(error) : resolve()) })
      }),
  )
  return { begun, sync }
}

test('whoever asks while a folder is synced shares the next sync, not the one that runs', async () => {
  const { begun, sync } = makeSyncs()
  const first = sync('a')
  const others = Promise.all([sync('a'), sync('a'), sync('a')])
  const elsewhere = sync('b')
  assert.deepEqual(
    begun.map(each => each.folder),
    ['a', 'b'],
  )
  begun[0]!.end()
  await first
  await until(() => begun.length === 3)
  const late = sync('a')
  assert.equal(begun.length, 3, 'who comes while the second runs waits for a third')
  begun[2]!.end()
  await others
  begun[1]!.end()
  await elsewhere
  await until(() => begun.length === 4)
  begun[3]!.end()
  await late
  void sync('a')
  assert.equal(begun.length, 5)
})

test('a sync that fails fails those who shared it, and no others', async () => {
  const { begun, sync } = makeSyncs()
  const first = sync('a')
  const second = sync('a')
  begun[0]!.end(new Error('the disk'))
  await assert.rejects(first, { message: 'the disk' })
  begun[1]!.end()
  await second
})
