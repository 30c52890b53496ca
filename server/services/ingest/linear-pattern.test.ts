import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { makeLinearPattern } from './linear-pattern.ts'

const atom = fc.constantFrom(
  'a',
  'b',
  '.',
  '[ab]',
  '[^a]',
  '\\w',
  '\\d',
  '^',
  '$',
  '\\b',
  '\\B',
  '-',
  '\\.',
  'é',
  '😀',
  '\\p{L}',
)
const { pattern } = fc.letrec<{ pattern: string }>(tie => ({
  pattern: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    atom,
    fc.array(tie('pattern'), { maxLength: 3 }).map(parts => parts.join('')),
    fc.tuple(tie('pattern'), tie('pattern')).map(([a, b]) => `(?:${a}|${b})`),
    fc
      .tuple(tie('pattern'), fc.constantFrom('*', '+', '?', '{2}', '{0,2}', '{1,}', '*?', '{0}'))
      .map(([a, q]) => `(${a})${q}`),
  ),
}))
const text = fc.string({ unit: fc.constantFrom('a', 'b', '-', '.', '1', ' ', 'é', '😀', '\n'), maxLength: 8 })

/**
 * As ECMA-262 has it: before each character and at the end (RegExpBuiltinExec). V8, left to search by itself, looks
 * between the halves of a surrogate pair, too, and finds `\B` there.
 */
function isFoundIn(source: string, given: string): boolean {
  const sticky = new RegExp(source, 'uy')
  let at = 0
  for (const character of [...given, '']) {
    sticky.lastIndex = at
    if (sticky.test(given)) return true
    at += character.length
  }
  return false
}

test('a pattern is found where JavaScript finds it', () => {
  fc.assert(
    fc.property(pattern, text, (source, given) => {
      assert.equal(makeLinearPattern(source).test(given), isFoundIn(source, given), `${source} in ${given}`)
    }),
    { numRuns: 3000 },
  )
  for (const [source, given, isFound] of [
    ['^(?<year>\\d{4})-\\d{2}$', '2026-11', true],
    ['^[\\]a-c\\u0041-\\u{43}]+$', ']abcABC', true],
    ['^\\uD83D\\uDE00$', '😀', true],
    ['^\\u0061\\x62\\/\\t$', 'ab/\t', true],
    ['^[A-Z]{2,3}$', 'ABCD', false],
    ['', 'x', true],
    ['a|', 'b', true],
    ['\\B', 'a😀a', false],
  ] as const) {
    assert.equal(makeLinearPattern(source).test(given), isFound, source)
  }
})

test('no pattern takes more than its time, whatever the text', () => {
  const began = performance.now()
  for (const source of ['^(a+)+$', '(a|a)*b', '^(a|aa)+$', 'a*a*a*a*b', '(.*)*x', '^(\\w+\\s?)*$']) {
    makeLinearPattern(source).test(`${'a'.repeat(20_000)}!`)
  }
  assert.ok(performance.now() - began < 5000, `${performance.now() - began} ms`)
})

test('a pattern that cannot be followed so is refused', () => {
  for (const source of [
    '(a)\\1',
    '(?<x>a)\\k<x>',
    '(?=a)',
    '(?!a)',
    '(?<=a)',
    '(?<!a)',
    '(',
    '[',
    'a{1001}',
    '((a{30}){30}){30}',
  ]) {
    assert.throws(() => makeLinearPattern(source), SyntaxError, source)
  }
})
