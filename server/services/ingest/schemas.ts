/** Turns a stream's JSON Schema into a function. */
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import { messageOf } from '#platform/errors.ts'
import { errors } from './errors.ts'

const schemaBytesMax = 32_768
const whyCharsMax = 300

/** @returns what says what is wrong with a value, or undefined. @throws bad_schema */
export function compileSchema(schema: unknown): (value: unknown) => string | undefined {
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) throw errors.badSchema('it is no object')
  if (Buffer.byteLength(JSON.stringify(schema)) > schemaBytesMax) {
    throw errors.badSchema(`it is longer than ${schemaBytesMax} bytes`)
  }
  let validate: ValidateFunction
  try {
    validate = makeAjv().compile(schema as Record<string, unknown>)
  } catch (error) {
    throw errors.badSchema(messageOf(error).slice(0, whyCharsMax))
  }
  if ('$async' in validate) throw errors.badSchema('`$async` cannot be used')
  return value => (validate(value) ? undefined : explain(validate))
}

/** One a schema: what a schema calls itself is its own affair. */
function makeAjv(): Ajv2020 {
  const ajv = new Ajv2020({
    allErrors: false,
    strict: true,
    strictTypes: false,
    strictRequired: false,
    useDefaults: false,
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
