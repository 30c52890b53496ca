/** What a load is made of: bounded histograms and timelines, and as much HTTP as it speaks. */
import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { atEnd } from '../../../test/support/at-end.ts'
import { readReply } from './connection.ts'
import { makeHistogram } from './histogram.ts'
import { makeSupply, openRecords, repeat } from './records.ts'
import { makeTally } from './tally.ts'

test('a quantile is off by a few hundredths at most, and the largest time is exact', () => {
  const histogram = makeHistogram()
  const times = Array.from({ length: 10_000 }, (_, index) => 0.1 * 1.002 ** index).filter(ms => ms < 3_000_000)
  for (const ms of times) histogram.add(ms)
  for (const share of [0.01, 0.5, 0.9, 0.99, 1]) {
    const exact = times[Math.ceil(share * times.length) - 1]!
    const found = histogram.quantile(share)
    assert.ok(found >= exact * 0.95 && found <= exact * 1.05, `${share}: ${found} rather than ${exact}`)
  }
  assert.equal(histogram.max, times.at(-1))
  assert.equal(histogram.between(0, Number.POSITIVE_INFINITY), times.length)
  assert.equal(makeHistogram().quantile(0.5), 0)
})

test('a timeline of any length has a bounded number of slots and loses nothing', () => {
  let now = 0
  const tally = makeTally(() => now)
  for (let step = 0; step < 10_000; step++) {
    now += 77
    tally.count({ kind: '201', taken: 2, refused: 0, lost: 0 })
    tally.count({ kind: '500', taken: 0, refused: 1, lost: 1 })
    tally.time(step % 100)
  }
  const { slotMs, slots } = tally.timeline()
  assert.ok(slots.length <= 600 && slots.length * slotMs >= now)
  const sum = (of: (slot: (typeof slots)[number]) => number) => slots.reduce((total, slot) => total + of(slot), 0)
  assert.deepEqual([sum(slot => slot.taken), sum(slot => slot.notTaken)], [20_000, 20_000])
  assert.equal(
    sum(slot => slot.times.total),
    10_000,
  )
  assert.deepEqual([tally.taken, tally.refused, tally.lost], [20_000, 10_000, 10_000])
})

test('an answer is read when it has come as a whole, with a length or in chunks', () => {
  const cases: [text: string, status: number, body: string, closes: boolean][] = [
    ['HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\nniñ', 201, 'niñ', false],
    ['HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n', 204, '', true],
    [
      'HTTP/1.1 422 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0\r\n\r\n45678\r\n0\r\n\r\n',
      422,
      'abc0\r\n\r\n45678',
      false,
    ],
  ]
  for (const [text, status, body, closes] of cases) {
    const bytes = Buffer.from(text)
    for (let end = 0; end < bytes.length; end++) assert.equal(readReply(bytes.subarray(0, end)), undefined, text)
    assert.deepEqual(readReply(bytes), { status, body, closes })
  }
})

test('a file may be an array in any form', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-load-records-'))
  atEnd(() => rm(folder, { recursive: true, force: true }))
  const file = path.join(folder, 'records')
  const records = Array.from({ length: 3000 }, (_, n) => ({ n, list: ['[', '{'], text: 'a\nb' }))
  const lines = records.map(each => JSON.stringify(each))
  const forms = {
    minified: JSON.stringify(records),
    pretty: JSON.stringify(records, null, 2),
    'one line': `[\n${lines[0]}\n]`,
    lines: `[\n${lines.join(',\n')}\n]\n`,
    'lines of Windows': `[\r\n${lines.join(',\r\n')}\r\n]\r\n`,
    ndjson: `${lines.join('\n\n')}\n`,
  }
  for (const [name, content] of Object.entries(forms)) {
    await writeFile(file, content)
    const wanted = name === 'one line' ? records.slice(0, 1) : records
    const { open } = await openRecords(file)
    const supply = makeSupply(open())
    // Several pull at once, as connections do.
    const pulled = await Promise.all(Array.from({ length: wanted.length }, () => supply.next()))
    assert.deepEqual(
      pulled.map(text => JSON.parse(text!)),
      wanted,
      name,
    )
    assert.equal(await supply.next(), undefined)
    const again = makeSupply(repeat(open))
    for (let index = 0; index < wanted.length; index++) await again.next()
    assert.equal(await again.next(), JSON.stringify(wanted[0]), name)
  }
})
