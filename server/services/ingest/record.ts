/** Looks at one record: whether it may go in, what it counts as, and what decides its route. */
import { errors } from './errors.ts'
import type { Prepared } from './types.ts'

/** What a stream asks of its records, made ready once a declaration. */
export interface RecordRules {
  /** Answers what is wrong with a value; undefined when it fits the schema. */
  validate: (value: unknown) => string | undefined
  dimensions: readonly string[]
  stickyBy: string | null
  bytesMax: number
}

export const depthMax = 32
/** Longer values are counted under one name. */
const valueCharsMax = 100
/** What a value is counted as that is missing or null. */
const noValue = ''
/** What values are counted as that are too long, or too many. */
export const otherValue = '(other)'

/**
 * @param text one JSON value; whitespace around it is let go
 * @throws record_not_json, record_not_an_object, record_too_large, record_too_deep, record_has_duplicate_keys, record_invalid
 */
export function prepareRecord(rules: RecordRules, text: string): Prepared {
  if (text.length > rules.bytesMax || Buffer.byteLength(text) > rules.bytesMax) {
    throw errors.recordTooLarge(rules.bytesMax)
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw errors.recordNotJson()
  }
  return prepareValue(rules, value, text)
}

/** The same for a value that is parsed already. @param text what it was parsed from */
export function prepareValue(rules: RecordRules, value: unknown, text: string): Prepared {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw errors.recordNotAnObject()
  const { depth, colons } = inspectJson(text)
  if (depth > depthMax) throw errors.recordTooDeep(depthMax)
  // Each pair of a JSON text has one colon outside its strings; of equal keys in an object, the parser keeps one.
  if (countKeys(value) !== colons) throw errors.recordHasDuplicateKeys()
  const wrong = rules.validate(value)
  if (wrong !== undefined) throw errors.recordInvalid(wrong)
  const record = value as Record<string, unknown>
  return {
    text: onOneLine(text),
    key: keyOf(rules.dimensions, record),
    sticky: rules.stickyBy === null ? undefined : wordOf(fieldOf(record, rules.stickyBy)),
  }
}

/** What a record counts as: the values of the dimensions, as a JSON array. */
export function keyOf(dimensions: readonly string[], record: Record<string, unknown>): string {
  return JSON.stringify(dimensions.map(name => wordOf(fieldOf(record, name))))
}

/** The record's own: every object has a `constructor`. */
export function fieldOf(record: Record<string, unknown>, name: string): unknown {
  return Object.hasOwn(record, name) ? record[name] : undefined
}

/** A line break can stand between tokens alone. Writing the value anew would change numbers that JavaScript cannot hold. */
export function onOneLine(text: string): string {
  return /[\n\r]/.test(text) ? text.replace(/[\n\r]+/g, ' ').trim() : text
}

/** A value as it is counted and shown. */
function wordOf(value: unknown): string {
  if (value === undefined || value === null) return noValue
  const word = typeof value === 'string' ? value : typeof value === 'object' ? otherValue : String(value)
  return word.length > valueCharsMax ? otherValue : word
}

const quote = 0x22
const backslash = 0x5c
const colon = 0x3a
const openers = new Set([0x7b, 0x5b])
const closers = new Set([0x7d, 0x5d])

/** Of a text that is valid JSON: how deep it nests, and how many pairs its objects have. */
export function inspectJson(text: string): { depth: number; colons: number } {
  let depth = 0
  let deepest = 0
  let colons = 0
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code === quote) at = endOfString(text, at)
    else if (code === colon) colons++
    else if (openers.has(code)) deepest = Math.max(deepest, ++depth)
    else if (closers.has(code)) depth--
  }
  return { depth: deepest, colons }
}

/** Where the string that opens at `at` closes. */
function endOfString(text: string, at: number): number {
  for (let end = text.indexOf('"', at + 1); end >= 0; end = text.indexOf('"', end + 1)) {
    let slashes = 0
    while (text.charCodeAt(end - 1 - slashes) === backslash) slashes++
    if (slashes % 2 === 0) return end
  }
  return text.length
}

function countKeys(value: unknown): number {
  if (typeof value !== 'object' || value === null) return 0
  let count = 0
  if (Array.isArray(value)) {
    for (const item of value) count += countKeys(item)
    return count
  }
  for (const key in value) count += 1 + countKeys((value as Record<string, unknown>)[key])
  return count
}

/** The texts of the items of a JSON array. @param text a valid one */
export function sliceArray(text: string): string[] {
  const items: string[] = []
  let depth = 0
  let from = 0
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code === quote) at = endOfString(text, at)
    else if (openers.has(code)) {
      if (++depth === 1) from = at + 1
    } else if (closers.has(code)) {
      if (--depth === 0) items.push(text.slice(from, at).trim())
    } else if (code === 0x2c && depth === 1) {
      items.push(text.slice(from, at).trim())
      from = at + 1
    }
  }
  return items.length === 1 && items[0] === '' ? [] : items
}
