import assert from 'node:assert/strict'
import { PassThrough } from 'node:stream'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Body, openBody } from './body.ts'

const patient = { IMAGE_IDLE_MS: 20_000, IMAGE_UPLOAD_MS: 20_000 }
/** Much less than a patient body waits. */
const inTime = { timeout: 5000 }

async function readText({ stream }: Body): Promise<string> {
  return Buffer.concat(await stream.toArray()).toString()
}

const ends: Record<string, (source: PassThrough) => unknown> = {
  ends: source => source.end(),
  breaks: source => source.destroy(new Error('broken')),
  goes: source => source.destroy(),
}
for (const [what, end] of Object.entries(ends)) {
  test(`a body whose sender ${what} has what came`, inTime, async () => {
    const source = new PassThrough()
    const body = openBody(source, patient)
    source.once('data', () => end(source))
    source.write('some')
    assert.equal(await readText(body), 'some')
  })

  test(`a body whose sender ${what} before it is opened is empty`, inTime, async () => {
    const source = new PassThrough().on('error', () => {})
    source.resume()
    end(source)
    await new Promise(resolve => source.once('close', resolve))
    assert.equal(await readText(openBody(source, patient)), '')
  })
}

test('a body that nobody reads is not idle', inTime, async () => {
  const source = new PassThrough()
  const body = openBody(source, { ...patient, IMAGE_IDLE_MS: 20 })
  const bytes = 'x'.repeat(100_000)
  source.write(bytes)
  // The time itself is what is tested.
  await sleep(100)
  const reading = readText(body)
  source.end('y')
  assert.equal(await reading, `${bytes}y`)
})

test('what comes after the end stays with the source', inTime, async () => {
  const source = new PassThrough()
  const body = openBody(source, patient)
  body.end()
  source.end('late')
  assert.equal(await readText(body), '')
  assert.equal((await source.toArray()).join(''), 'late')
})
