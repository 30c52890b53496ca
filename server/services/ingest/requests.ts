/** Records as a body brings them. */
import { isUtf8 } from 'node:buffer'
import type { Outcome } from '#platform/batch.ts'
import { type AppError, isAppError, errors as platformErrors } from '#platform/errors.ts'
import type { Accepted, Appending } from './appending.ts'
import { errors } from './errors.ts'
import { prepareRecord, prepareValue, type RecordRules, sliceArray } from './record.ts'
import { isStreamChanged, type ReadyStream, type Streams } from './streams.ts'
import type { Prepared } from './types.ts'

/** What a JSON body holds: one record, or several each with its own outcome. */
export type Body = { one: Prepared } | { several: Outcome<Prepared>[] }

/** @throws malformed_json, records_empty, records_too_many, and what is wrong with a single record */
export function readBody(rules: RecordRules, body: unknown, arrayMax: number): Body {
  const text = decodeBody(body)
  if (!/^\s*\[/.test(text)) return { one: prepareSingle(rules, text) }
  let values: unknown[]
  try {
    values = JSON.parse(text)
  } catch {
    throw platformErrors.malformedJson()
  }
  if (values.length === 0) throw errors.recordsEmpty()
  if (values.length > arrayMax) throw errors.recordsTooMany(arrayMax)
  const texts = sliceArray(text)
  return { several: values.map((value, index) => attempt(() => prepareItem(rules, value, texts[index]!))) }
}

/** @throws malformed_json, records_empty */
export function decodeBody(body: unknown): string {
  // Without a body there is no type to read it by.
  if (!Buffer.isBuffer(body)) throw errors.recordsEmpty()
  if (!isUtf8(body)) throw platformErrors.malformedJson()
  return body.toString('utf8')
}

/** The body is the record, so what is no JSON is called what it is called everywhere. */
function prepareSingle(rules: RecordRules, text: string): Prepared {
  if (text.trim() === '') throw errors.recordsEmpty()
  return prepareRecord(rules, text)
}

function prepareItem(rules: RecordRules, value: unknown, text: string): Prepared {
  if (Buffer.byteLength(text) > rules.bytesMax) throw errors.recordTooLarge(rules.bytesMax)
  return prepareValue(rules, value, text)
}

export function prepareAll(rules: RecordRules, texts: readonly string[]): Outcome<Prepared>[] {
  return texts.map(text => attempt(() => prepareRecord(rules, text)))
}

function attempt<T>(prepare: () => T): Outcome<T> {
  try {
    return { value: prepare() }
  } catch (error) {
    if (!isAppError(error)) throw error
    return { error }
  }
}

/** Where records go: the stream as it was found, and the way to find it again. */
export interface Target {
  appending: Pick<Appending, 'appendMany'>
  streams: Pick<Streams, 'forget'>
  stream: ReadyStream
  find: () => Promise<ReadyStream>
}

/**
 * Appends those that are right. Answers an outcome for each, in order. What is refused since the stream was deleted
 * meanwhile is looked at anew, for the one of its name that is there now.
 */
export async function appendRight(
  target: Target,
  prepared: readonly Outcome<Prepared>[],
): Promise<Outcome<Accepted>[]> {
  const { appending, streams, stream, find } = target
  const outcomes = await append(appending, stream, prepared)
  const late = outcomes.flatMap((each, index) => ('error' in each && isStreamChanged(each.error) ? [index] : []))
  if (late.length === 0) return outcomes
  streams.forget(stream)
  const texts = late.map(index => (prepared[index] as { value: Prepared }).value.text)
  const again = await appendTexts(appending, find, texts)
  for (const [place, index] of late.entries()) outcomes[index] = again[place]!
  return outcomes
}

async function appendTexts(appending: Target['appending'], find: Target['find'], texts: readonly string[]) {
  let stream: ReadyStream
  try {
    stream = await find()
  } catch (error) {
    return texts.map(() => ({ error }))
  }
  return append(appending, stream, prepareAll(stream.rules, texts))
}

async function append(
  appending: Target['appending'],
  stream: ReadyStream,
  prepared: readonly Outcome<Prepared>[],
): Promise<Outcome<Accepted>[]> {
  const right = prepared.flatMap(each => ('value' in each ? [each.value] : []))
  const appended = right.length > 0 ? await appending.appendMany(stream, right) : []
  let next = 0
  return prepared.map(each => ('value' in each ? appended[next++]! : each))
}

/** As a record's own error is shown, in a list of outcomes. */
export function showError(error: AppError) {
  return { code: error.code, message: error.message, ...(error.details ? { details: error.details } : {}) }
}
