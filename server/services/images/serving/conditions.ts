/** Conditional requests and ranges, as in RFC 9110, sections 13 and 14. */
import type { IncomingHttpHeaders } from 'node:http'
import type { ByteRange } from '#platform/blobs/types.ts'
import { errors } from './errors.ts'

/** Whether If-None-Match says that the client has it already. */
export function isKnown(ifNoneMatch: string | undefined, etag: string): boolean {
  if (ifNoneMatch === undefined) return false
  if (ifNoneMatch.trim() === '*') return true
  // Weak comparison: a proxy that compressed an answer made its ETag a weak one.
  return ifNoneMatch.match(/"[^"]*"/g)?.includes(etag) ?? false
}

/**
 * The part that was asked for; undefined means the whole, as it does for several ranges at once and for what is no range.
 * @throws range_not_satisfiable
 */
export function rangeOf(headers: IncomingHttpHeaders, whole: { bytes: number; etag: string }): ByteRange | undefined {
  const ifRange = headers['if-range']
  // No date is ever sent, so none can match.
  if (ifRange !== undefined && String(ifRange).trim() !== whole.etag) return undefined
  const [, first, last] = /^\s*bytes=\s*(\d*)-(\d*)\s*$/i.exec(headers.range ?? '') ?? []
  if (first === undefined || last === undefined || first + last === '') return undefined
  const end = whole.bytes - 1
  if (first === '') {
    if (Number(last) === 0) throw errors.rangeNotSatisfiable(whole.bytes)
    return { start: Math.max(whole.bytes - Number(last), 0), end }
  }
  const start = Number(first)
  if (last !== '' && Number(last) < start) return undefined
  if (start > end) throw errors.rangeNotSatisfiable(whole.bytes)
  return { start, end: last === '' ? end : Math.min(Number(last), end) }
}
