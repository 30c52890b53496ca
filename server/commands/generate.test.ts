import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { atEnd } from '../../test/support/at-end.ts'
import { until } from '../../test/support/until.ts'
import { generateCourses } from '../services/ingest/index.ts'
import { generate, writeRecords } from './generate.ts'
import { begin, capstan } from './test-support.ts'
import { UsageError } from './usage.ts'

const folder = await mkdtemp(path.join(tmpdir(), 'capstan-generate-'))
atEnd(() => rm(folder, { recursive: true, force: true }))

test('the same seed makes the same records, in either format and place', async () => {
  const file = path.join(folder, 'courses.json')
  const saved = await capstan('generate', 'courses', '1200', '--seed', '5', '--output', file)
  assert.deepEqual([saved.code, saved.stdout], [0, ''])
  assert.equal(saved.stderr, `1,200 records of seed 5 are in ${file}.\n`)
  const json = await readFile(file, 'utf8')
  const shown = await capstan('generate', 'courses', '1200', '--seed', '5')
  assert.equal(shown.stdout, json)
  const lines = await capstan('generate', 'courses', '1200', '--seed', '5', '--format', 'ndjson')
  const records = JSON.parse(json)
  assert.equal(records.length, 1200)
  assert.deepEqual(
    lines.stdout
      .trimEnd()
      .split('\n')
      .map(line => JSON.parse(line)),
    records,
  )
  const other = await capstan('generate', 'courses', '1200', '--seed', '6')
  assert.notEqual(other.stdout, json)
})

test('any number of records is well-formed', () => {
  for (const count of [0, 1, 2, 499, 500, 501, 1000]) {
    const records = Array.from({ length: count }, (_, index) => ({ index }))
    assert.deepEqual(JSON.parse([...writeRecords(records, 'json')].join('')), records)
    const lines = [...writeRecords(records, 'ndjson')].join('').split('\n')
    assert.equal(lines.filter(line => line !== '').length, count)
  }
})

test('nothing is made that nobody reads yet', { skip: process.platform !== 'linux' && 'reads /proc' }, async () => {
  const child = begin('generate', 'courses', '100000000')
  atEnd(() => child.kill('SIGKILL'))
  await once(child.stdout!, 'readable')
  const usedTime = () => readFileSync(`/proc/${child.pid}/stat`, 'utf8').split(') ')[1]!.split(' ').slice(11, 13).join()
  // It has come to rest when it uses no more of the processor.
  await until(async () => {
    const before = usedTime()
    await sleep(300)
    return usedTime() === before
  })
  child.stdout!.resume()
  child.kill('SIGTERM')
  await once(child, 'exit')
})

test('what is wrong is said in a sentence', async () => {
  const cases: [args: string[], words: RegExp][] = [
    [[], /capstan generate courses 10000/],
    [['courses'], /capstan generate courses 10000/],
    [['students', '10'], /capstan generate courses 10000/],
    [['courses', '0'], /COUNT takes a whole number from 1 to 1,000,000,000, not `0`/],
    [['courses', '1e3'], /COUNT takes/],
    [['courses', '5', '--seed', '-1'], /--seed/],
    [['courses', '5', '--format', 'csv'], /--format takes json or ndjson/],
    [['courses', '5', '--output', path.join(folder, 'none/x')], /cannot be written: ENOENT/],
  ]
  for (const [args, words] of cases) {
    await assert.rejects(generate(args, generateCourses), error => {
      assert.ok(error instanceof UsageError, String(error))
      assert.match(error.message, words)
      return true
    })
  }
  const { code, stderr, stdout } = await capstan('generate', 'courses', '0')
  assert.deepEqual([code, stdout], [1, ''])
  assert.match(stderr, /^COUNT takes [^\n]*\n$/)
})
