import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isAppError } from '#platform/errors.ts'
import { isKnown, rangeOf } from './conditions.ts'

const etag = '"right"'

test('If-None-Match matches by the tag, alone or in a list, weak or not', () => {
  const cases: [header: string | undefined, known: boolean][] = [
    [undefined, false],
    ['', false],
    [etag, true],
    [` ${etag} `, true],
    [`W/${etag}`, true],
    ['*', true],
    [' * ', true],
    ['"other"', false],
    [`"other", ${etag}`, true],
    [`"other",W/${etag},"third"`, true],
    ['"other", "third"', false],
    // Without quotes it is no tag.
    ['right', false],
    ['"righ"', false],
    ['"*"', false],
  ]
  for (const [header, known] of cases) assert.equal(isKnown(header, etag), known, header)
})

test('a Range is the part that was asked for, the whole, or too late', () => {
  const cases: [range: string | undefined, wanted: [number, number] | 'whole' | 'too late'][] = [
    [undefined, 'whole'],
    ['bytes=0-0', [0, 0]],
    ['bytes=0-99', [0, 99]],
    ['bytes=10-19', [10, 19]],
    ['BYTES=10-19', [10, 19]],
    ['bytes= 10-19 ', [10, 19]],
    ['bytes=10-', [10, 99]],
    ['bytes=99-', [99, 99]],
    ['bytes=90-1000', [90, 99]],
    ['bytes=0-99999999999999999999999', [0, 99]],
    ['bytes=-1', [99, 99]],
    ['bytes=-100', [0, 99]],
    ['bytes=-1000', [0, 99]],
    ['bytes=100-', 'too late'],
    ['bytes=100-200', 'too late'],
    ['bytes=99999999999999999999999-', 'too late'],
    ['bytes=-0', 'too late'],
    ['bytes=20-10', 'whole'],
    ['bytes=-', 'whole'],
    ['bytes=', 'whole'],
    ['bytes=a-b', 'whole'],
    ['bytes=0x1-2', 'whole'],
    ['bytes=1-2,5-6', 'whole'],
    ['bytes=1-2,', 'whole'],
    ['rows=1-2', 'whole'],
    ['1-2', 'whole'],
  ]
  for (const [range, wanted] of cases) assert.deepEqual(picked({ range }), wanted, range)
})

test('If-Range lets a Range count only for the very same bytes', () => {
  const cases: [ifRange: string, wanted: [number, number] | 'whole'][] = [
    [etag, [1, 2]],
    [`W/${etag}`, 'whole'],
    ['"other"', 'whole'],
    ['*', 'whole'],
    ['Wed, 21 Oct 2015 07:28:00 GMT', 'whole'],
    ['', 'whole'],
  ]
  for (const [ifRange, wanted] of cases) {
    assert.deepEqual(picked({ range: 'bytes=1-2', 'if-range': ifRange }), wanted, ifRange)
  }
  // Nor is it too late then.
  assert.equal(picked({ range: 'bytes=500-', 'if-range': '"other"' }), 'whole')
})

function picked(headers: { range?: string | undefined; 'if-range'?: string }) {
  try {
    const range = rangeOf(headers, { bytes: 100, etag })
    return range ? [range.start, range.end] : 'whole'
  } catch (error) {
    assert.ok(isAppError(error) && error.status === 416, String(error))
    return 'too late'
  }
}
