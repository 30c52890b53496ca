/**
 * A record as a document: `{ _id: { stream, offset }, offset, route, at, record }`, with the record's own fields under
 * `record`. Where a document cannot hold them as they are (names that MongoDB gives a meaning, numbers it has no type
 * for), the record's JSON text is under `json` instead, so that nothing is lost or changed.
 */
import { Long } from 'mongodb'
import type { Route } from './types.ts'

export interface RecordDocument {
  /** In this order: documents of a stream follow each other by their numbers. */
  _id: { stream: number; offset: number }
  offset: number
  route: Route
  at: Date
  record?: Record<string, unknown>
  json?: string
}

interface Given {
  streamId: number
  offset: number
  route: Route
  at: Date
  text: string
}

export function toDocument(given: Given): RecordDocument {
  const record = readRecord(given.text)
  const { json, ...rest } = toTextDocument(given)
  return record ? { ...rest, record } : { ...rest, json: json! }
}

/** The same with the record as a text, for one that a server does not take otherwise. */
export function toTextDocument({ streamId, offset, route, at, text }: Given): RecordDocument {
  return { _id: { stream: streamId, offset }, offset, route, at, json: text }
}

/** Longer numbers may stand for others than they say, once they are JavaScript's. */
const longNumber = /[\d.]{16}|\d[eE]/
const mayBeOdd = /[$.]|\\u|_bsontype|__proto__/
const longMin = -(2n ** 63n)
const longMax = 2n ** 63n - 1n

class Unfit extends Error {}

/** Undefined when a document cannot hold it as it is. */
function readRecord(text: string): Record<string, unknown> | undefined {
  try {
    const isPlain = !longNumber.test(text) && !mayBeOdd.test(text)
    return isPlain ? JSON.parse(text) : JSON.parse(text, keepExact)
  } catch (error) {
    if (error instanceof Unfit) return undefined
    throw error
  }
}

function keepExact(key: string, value: unknown, context?: { source?: string }): unknown {
  // The driver takes a key `_bsontype` for a type of its own.
  if (/^\$|[.\0]|^_bsontype$|^__proto__$/.test(key) || !key.isWellFormed()) throw new Unfit()
  // BSON is UTF-8, which has no half of a surrogate pair.
  if (typeof value === 'string' && (value.includes('\0') || !value.isWellFormed())) throw new Unfit()
  return typeof value === 'number' ? toNumber(value, context?.source ?? String(value)) : value
}

/** Decimal128 would hold more of them, but not all, and not everything that speaks the protocol knows it. */
function toNumber(value: number, source: string): number | Long {
  if (/^-?\d+$/.test(source) && !Number.isSafeInteger(value)) {
    const exact = BigInt(source)
    if (exact < longMin || exact > longMax) throw new Unfit()
    return Long.fromBigInt(exact)
  }
  if (!Number.isFinite(value) || digitsOf(source) !== digitsOf(String(value))) throw new Unfit()
  return value
}

/** The digits that tell, wherever the point is. */
function digitsOf(source: string): string {
  return source
    .replace(/[eE].*/, '')
    .replace(/[-.]/g, '')
    .replace(/^0+|0+$/g, '')
}
