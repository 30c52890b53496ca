/** Clients that go away stop what is done for them alone, and leave nothing open. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { until } from '../../../../test/support/until.ts'
import { askAndLeave, at, goAway, makeMakingKit } from './test-kit.ts'

const { server, get, settled, hold } = await makeMakingKit()

test('a making is aborted when the last who waits for it has gone, and not before', async () => {
  const image = await server.add()
  const release = hold()
  const before = server.works.length
  const [one, other] = [askAndLeave(server, at(image, 'width=29')), askAndLeave(server, at(image, 'width=29'))]
  await until(() => server.works.length > before)
  const { signal } = server.works.at(-1)!
  const third = get(image, 'width=30')
  await until(() => server.works.length === before + 2)
  // Both have come when a later one has.
  await goAway(server, one)
  assert.equal(signal!.aborted, false)
  await goAway(server, other)
  await until(() => signal!.aborted)
  const complaints = server.complaints.length
  // Whoever comes now begins another.
  const fourth = get(image, 'width=29')
  await until(() => server.works.length === before + 3)
  release()
  assert.deepEqual([(await third).shown, (await fourth).shown], ['200', '200'])
  await settled(image, 2)
  assert.deepEqual(server.complaints.slice(complaints), [], 'it is nobody’s fault')
})

test('a client that goes away while it is sent something stops the reading', async () => {
  const image = await server.add({ width: 2000, height: 1500, format: 'png' })
  assert.ok(image.original.length > 4_000_000)
  const gone = Promise.withResolvers<void>()
  server.faults.get = async (key, range) => {
    const blob = await server.blobs.get(key, range)
    blob!.stream.once('close', () => gone.resolve())
    return blob
  }
  try {
    const socket = askAndLeave(server, at(image, 'original'))
    await once(socket, 'readable')
    socket.destroy()
    await gone.promise
  } finally {
    server.faults.get = undefined
  }
})

test('a client that has gone when the bytes are found leaves nothing open', async () => {
  const image = await server.add()
  const found = Promise.withResolvers<void>()
  const gone = Promise.withResolvers<void>()
  server.faults.get = async key => {
    const blob = await server.blobs.get(key)
    found.resolve()
    await gone.promise
    return blob
  }
  try {
    const socket = askAndLeave(server, at(image, 'original'))
    await found.promise
    await goAway(server, socket)
    assert.equal((await server.openFiles()).length, 1)
    gone.resolve()
    await until(async () => (await server.openFiles()).length === 0)
  } finally {
    server.faults.get = undefined
  }
})

test('a client that goes away in the middle of something large and just made leaves nothing open', async () => {
  const image = await server.add({ width: 2000, height: 1500 })
  const socket = askAndLeave(server, at(image, 'width=2000,format=png'))
  await once(socket, 'readable')
  socket.destroy()
  await settled(image, 1)
  await until(async () => (await server.openFiles()).length === 0)
  assert.ok(!server.complaints.some(line => line.includes('was not removed')))
})
