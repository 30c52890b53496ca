/** Turns a stream's JSON Schema into a function. */
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import { isAppError, messageOf } from '#platform/errors.ts'
import { errors } from './errors.ts'
import { makeLinearPattern } from './linear-pattern.ts'

const schemaBytesMax = 32_768
const whyCharsMax = 300
/** With what `$ref`s stand for written out: what checking a value may cost. */
const subschemasMax = 10_000
/** Each is compared with each. */
const uniqueItemsMax = 1000
/** What PostgreSQL’s `jsonb` cannot hold: U+0000, and half of a surrogate pair. */
const unkeepable = /(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/

/** @returns what says what is wrong with a value, or undefined. @throws bad_schema */
export function compileSchema(schema: unknown): (value: unknown) => string | undefined {
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) throw errors.badSchema('it is no object')
  let validate: ValidateFunction
  try {
    assertBounded(schema as Record<string, unknown>)
    validate = makeAjv().compile(schema as Record<string, unknown>)
  } catch (error) {
    if (isAppError(error)) throw error
    throw errors.badSchema(
      error instanceof RangeError ? 'it is nested too deep' : messageOf(error).slice(0, whyCharsMax),
    )
  }
  if ('$async' in validate) throw errors.badSchema('`$async` cannot be used')
  return value => (validate(value) ? undefined : explain(validate))
}

/** So that no record takes longer to be checked than its length says. @throws bad_schema */
function assertBounded(schema: Record<string, unknown>) {
  const text = JSON.stringify(schema)
  if (Buffer.byteLength(text) > schemaBytesMax) throw errors.badSchema(`it is longer than ${schemaBytesMax} bytes`)
  if (unkeepable.test(text)) throw errors.badSchema('it has U+0000 in it, or half of a surrogate pair')
  if (countSubschemas(schema) > subschemasMax) {
    throw errors.badSchema(`its \`$ref\`s stand for more than ${subschemasMax} schemas`)
  }
}

/** Of a schema, with what its `$ref`s stand for. @throws bad_schema when one leads back to itself, or out of the schema */
function countSubschemas(root: Record<string, unknown>): number {
  const counts = new Map<object, number>()
  const underWay = new Set<object>()
  function count(value: unknown): number {
    if (typeof value !== 'object' || value === null) return 0
    const known = counts.get(value)
    if (known !== undefined) return known
    if (underWay.has(value)) throw errors.badSchema('a `$ref` leads back to itself')
    underWay.add(value)
    const { $ref } = value as { $ref?: unknown }
    if (!Array.isArray(value)) assertPlain(value as Record<string, unknown>, value === root)
    let sum = typeof $ref === 'string' ? 1 + count(resolve(root, $ref)) : 1
    for (const inner of Object.values(value)) sum += count(inner)
    underWay.delete(value)
    counts.set(value, sum)
    return sum
  }
  return count(root)
}

function assertPlain(schema: Record<string, unknown>, isRoot: boolean) {
  const { uniqueItems, maxItems } = schema
  if (uniqueItems === true && !(typeof maxItems === 'number' && maxItems <= uniqueItemsMax)) {
    throw errors.badSchema(`\`uniqueItems\` needs a \`maxItems\` of at most ${uniqueItemsMax} beside it`)
  }
  const odd = ['$dynamicRef', '$recursiveRef', ...(isRoot ? [] : ['$id'])].find(key => typeof schema[key] === 'string')
  if (odd !== undefined) throw errors.badSchema(`\`${odd}\` cannot be used here`)
}

/** What a pointer such as `#/$defs/name` points to. */
function resolve(root: unknown, ref: string): unknown {
  if (!/^#(?:\/|$)/.test(ref))
    throw errors.badSchema('a `$ref` is a pointer into the schema itself, such as `#/$defs/name`')
  const names = decodeURIComponent(ref).split('/').slice(1)
  let value = root
  for (const name of names) {
    const key = name.replaceAll('~1', '/').replaceAll('~0', '~')
    value = Object.hasOwn(Object(value), key) ? (value as Record<string, unknown>)[key] : undefined
  }
  return value
}

/** One a schema: what a schema calls itself is its own affair. */
function makeAjv(): Ajv2020 {
  const ajv = new Ajv2020({
    allErrors: false,
    strict: true,
    strictTypes: false,
    strictRequired: false,
    useDefaults: false,
    code: { regExp: Object.assign(makeLinearPattern, { code: '' }) },
  })
  addFormats.default(ajv)
  return ajv
}

function explain(validate: ValidateFunction): string {
  const [first] = validate.errors ?? []
  if (!first) return 'it is not valid'
  const where = first.instancePath === '' ? 'it' : `\`${first.instancePath.slice(1).replaceAll('/', '.')}\``
  return `${where} ${first.message ?? 'is not valid'}`.slice(0, whyCharsMax)
}
