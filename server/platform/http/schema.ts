import { type TSchema, Type } from 'typebox'
import { isUuid } from '../ids.ts'

/** Pieces that schemas of every part are made of. */

export const time = Type.String({ format: 'date-time' })

export function nullable<T extends TSchema>(type: T) {
  return Type.Union([type, Type.Null()])
}

/** For lists ordered by id alone; see `decodeCursor`. */
export function isIdCursor(values: readonly unknown[]): values is [string] {
  return values.length === 1 && typeof values[0] === 'string' && isUuid(values[0])
}
