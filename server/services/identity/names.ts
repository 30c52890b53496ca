import { isUuid } from '#platform/ids.ts'
import { errors } from './errors.ts'

const usernamePattern = /^[A-Za-z0-9][A-Za-z0-9._-]{2,29}$/
/** No more than what Better Auth takes at sign-in: an address it refuses there would lock its owner out. */
const emailPattern = /^(?!\.)(?!.*\.\.)[A-Za-z0-9_'+.-]*[A-Za-z0-9_+-]@(?:[A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}$/
const emailLengthMax = 254
const fullNameCharsMax = 200
/** `.invalid` is reserved for what never resolves (RFC 2606). */
const internalDomain = '@users.invalid'

export function assertUsername(name: string) {
  if (!usernamePattern.test(name)) throw errors.badUsername()
}

export function assertEmail(email: string) {
  if (!isEmail(email) || email.toLowerCase().endsWith('.invalid')) throw errors.badEmail()
}

/** @throws bad_full_name */
export function assertFullName(name: string) {
  const isFit = name.length > 0 && name.length <= fullNameCharsMax && name.isWellFormed() && !/\p{Cc}/u.test(name)
  if (!isFit) throw errors.badFullName(fullNameCharsMax)
}

function isEmail(text: string): boolean {
  return text.length <= emailLengthMax && emailPattern.test(text)
}

/** What to look for when somebody signs in, or undefined for what no account can be called. */
export function signInName(typed: string): { username: string } | { email: string } | undefined {
  if (usernamePattern.test(typed)) return { username: typed.toLowerCase() }
  if (isEmail(typed) && !typed.toLowerCase().endsWith(internalDomain)) return { email: typed.toLowerCase() }
  return undefined
}

/** Better Auth wants every user to have an address. */
export function internalEmail(unique: string): string {
  return `${unique}${internalDomain}`
}

export function shownEmail(email: string): string | null {
  return email.endsWith(internalDomain) ? null : email
}

export function isId(text: unknown): text is string {
  return typeof text === 'string' && isUuid(text)
}
