import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { isAppError } from '#platform/errors.ts'
import { depthMax, inspectJson, prepareRecord, type RecordRules, sliceArray } from './record.ts'
import { makeRouter } from './routing.ts'
import { compileSchema } from './schemas.ts'

const rules: RecordRules = {
  validate: compileSchema({ type: 'object', properties: { n: { type: 'number' } } }),
  dimensions: ['region', 'n'],
  stickyBy: 'region',
  bytesMax: 1000,
}

function codeOf(text: string, given: RecordRules = rules): string {
  try {
    prepareRecord(given, text)
    return 'taken'
  } catch (error) {
    assert.ok(isAppError(error), String(error))
    return error.code
  }
}

test('a record is an object that fits its schema, once each key, not too deep and not too long', () => {
  const deep = (levels: number) => `${'{"a":'.repeat(levels)}1${'}'.repeat(levels)}`
  const expected: [string, string][] = [
    ['{}', 'taken'],
    [' \n{ "region" : "N" }\r\n', 'taken'],
    ['{"a":{"b":[{"c":1},{"c":2}]}}', 'taken'],
    ['{"a:b":"c:\\"d:"}', 'taken'],
    ['{"__proto__":1}', 'taken'],
    ['{"n":"x"}', 'record_invalid'],
    ['[]', 'record_not_an_object'],
    ['1', 'record_not_an_object'],
    ['null', 'record_not_an_object'],
    ['', 'record_not_json'],
    ['{"a":1', 'record_not_json'],
    ['{"a":1}{"a":2}', 'record_not_json'],
    ["{'a':1}", 'record_not_json'],
    ['{"a":01}', 'record_not_json'],
    ['\uFFFD', 'record_not_json'],
    ['{"a":1,"a":1}', 'record_has_duplicate_keys'],
    ['{"x":{"a":1,"b":2,"a":3}}', 'record_has_duplicate_keys'],
    ['{"\\u0061":1,"a":2}', 'record_has_duplicate_keys'],
    [deep(depthMax), 'taken'],
    [deep(depthMax + 1), 'record_too_deep'],
    [`{"a":"${'x'.repeat(1000)}"}`, 'record_too_large'],
    [`{"a":"${'€'.repeat(400)}"}`, 'record_too_large'],
  ]
  for (const [text, code] of expected) assert.equal(codeOf(text), code, text.slice(0, 60))
})

test('what a record counts as is its dimensions, missing ones and long ones under one name', () => {
  const keyOf = (record: unknown) => prepareRecord(rules, JSON.stringify(record)).key
  assert.equal(keyOf({ region: 'N', n: 1 }), '["N","1"]')
  assert.equal(keyOf({ region: null }), '["",""]')
  assert.equal(keyOf({ region: { x: 1 } }), '["(other)",""]')
  assert.equal(keyOf({ region: 'x'.repeat(101) }), '["(other)",""]')
  assert.equal(keyOf({ region: true }), '["true",""]')
})

test('depth, pairs and items are those that the parser finds', () => {
  fc.assert(
    fc.property(fc.json({ maxDepth: 6 }), fc.array(fc.json({ maxDepth: 3 })), fc.boolean(), (text, items, isSpaced) => {
      const spaced = isSpaced ? JSON.stringify(JSON.parse(text), null, 2) : text
      assert.deepEqual(inspectJson(spaced), { depth: depthOf(JSON.parse(text)), colons: pairsOf(JSON.parse(text)) })
      const list = isSpaced ? `[ ${items.join(' , ')} ]` : `[${items.join(',')}]`
      assert.deepEqual(sliceArray(list), items)
    }),
    { numRuns: 500 },
  )
})

function depthOf(value: unknown): number {
  if (typeof value !== 'object' || value === null) return 0
  return 1 + Math.max(0, ...Object.values(value).map(depthOf))
}

function pairsOf(value: unknown): number {
  if (typeof value !== 'object' || value === null) return 0
  const inside = Object.values(value).reduce<number>((sum, each) => sum + pairsOf(each), 0)
  return inside + (Array.isArray(value) ? 0 : Object.keys(value).length)
}

test('the split by weight is exact, one by one and together; equal values stick to a route', () => {
  for (const [a, sticky] of [
    [50, false],
    [90, false],
    [0, false],
    [100, false],
    [33, false],
    [50, true],
  ] as const) {
    const router = makeRouter()
    const stream = { id: 1, weights: { a, b: 100 - a }, stickyBy: sticky ? 'region' : null }
    const record = (n: number) => ({ sticky: sticky ? `value ${n % 5000}` : undefined })
    let ofA = 0
    for (let n = 0; n < 50_000; n++) if (router.routeOf(stream, record(n)) === 'a') ofA++
    for (let n = 50_000; n < 100_000; n += 1000) {
      const records = Array.from({ length: 1000 }, (_, index) => record(n + index))
      const chosen = router.routesOf(stream, records)
      ofA += chosen.filter(route => route === 'a').length
      if (sticky)
        for (const [index, route] of chosen.entries()) assert.equal(route, router.routeOf(stream, records[index]!))
    }
    const tolerance = sticky ? 3000 : 1
    assert.ok(Math.abs(ofA - a * 1000) <= tolerance, `${a}: ${ofA}`)
  }
})

test('a schema that is none is refused with what is wrong about it', () => {
  for (const schema of [
    null,
    [],
    'x',
    { type: 'strnig' },
    { $ref: 'https://example.com/other.json' },
    { $ref: '#/$defs/nothing' },
    { properties: { a: 5 } },
    { pattern: '(' },
    { typo: 1 },
    { description: 'x'.repeat(40_000) },
    { $async: true, type: 'object' },
  ]) {
    assert.throws(
      () => compileSchema(schema),
      (error: Error) => isAppError(error) && error.code === 'bad_schema' && error.message.length > 50,
      JSON.stringify(schema)?.slice(0, 60),
    )
  }
})
