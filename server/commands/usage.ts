/** What the commands share: how arguments are read, and what is said when they are wrong. */
import { parseArgs } from 'node:util'
import { messageOf } from '#platform/errors.ts'

/** Said to a person instead of a stack: the command was used wrongly, or something outside is not as it must be. */
export class UsageError extends Error {}

/** @throws UsageError */
export function parse<const T extends NonNullable<Parameters<typeof parseArgs>[0]>['options']>(
  args: string[],
  options: T,
) {
  try {
    return parseArgs({ args, options: options as NonNullable<T>, allowPositionals: true })
  } catch (error) {
    throw new UsageError(messageOf(error))
  }
}

/** @param name how the number is called where it is wrong @throws UsageError */
export function readWhole(name: string, text: string, { min, max }: { min: number; max: number }): number {
  const number = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN
  if (number >= min && number <= max) return number
  throw new UsageError(`${name} takes a whole number from ${min} to ${max.toLocaleString('en')}, not \`${text}\`.`)
}
