import { errors } from '../errors.ts'

/** Packs the values a list was ordered by, after the last row answered, into an opaque text. */
export function encodeCursor(values: readonly (string | number)[]): string {
  return Buffer.from(JSON.stringify(values)).toString('base64url')
}

/** @throws bad_cursor unless it holds exactly the values `check` accepts. */
export function decodeCursor<T extends readonly (string | number)[]>(
  cursor: string | undefined,
  check: (values: readonly unknown[]) => values is T,
): T | undefined {
  if (cursor === undefined) return undefined
  let values: unknown
  try {
    values = JSON.parse(Buffer.from(cursor, 'base64url').toString())
  } catch {
    throw errors.badCursor()
  }
  if (!Array.isArray(values) || !check(values)) throw errors.badCursor()
  return values
}
