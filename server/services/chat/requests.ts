/** From what a caller sent to what is meant: every check that needs no database, each with its own code. */
import { isUuid } from '#platform/ids.ts'
import { errors } from './errors.ts'
import { type Draft, type Role, roles } from './types.ts'

export const textBytesMax = 8192
export const pageMax = 500
const clientIdCharsMax = 128
const mentionsMax = 50
const attachmentsMax = 10
const nameCharsMax = 100
const usernameCharsMax = 64
const emojiBytesMax = 32
const queryCharsMax = 200
const membersAtOnceMax = 100
const invitationSecondsMax = 30 * 86_400
const invitationUsesMax = 10_000

export type Fields = Record<string, unknown>

/** @throws not_an_object, unknown_field */
export function readFields(params: unknown, known: readonly string[]): Fields {
  if (typeof params !== 'object' || params === null || Array.isArray(params)) throw errors.notAnObject()
  for (const field of Object.keys(params)) if (!known.includes(field)) throw errors.unknownField(field)
  return params as Fields
}

/** @throws chat_not_found: what is no id names no chat */
export function readChatId(value: unknown): string {
  if (typeof value !== 'string' || !isUuid(value)) throw errors.chatNotFound()
  return value.toLowerCase()
}

export const draftFields = ['text', 'client_id', 'reply_to', 'mentions', 'attachments']

/** @throws text_empty, text_too_long, bad_text, bad_client_id, bad_reply_to, bad_mentions, bad_attachments */
export function readDraft(fields: Fields): Draft {
  return {
    text: readText(fields.text),
    clientId: readClientId(fields.client_id),
    replyTo: readReplyTo(fields.reply_to),
    mentions: readMentions(fields.mentions),
    attachments: readAttachments(fields.attachments),
  }
}

/** @throws text_empty, text_too_long, bad_text */
export function readText(value: unknown): string {
  if (typeof value !== 'string' || value.length === 0) throw errors.textEmpty()
  if (value.length > textBytesMax || Buffer.byteLength(value) > textBytesMax) throw errors.textTooLong(textBytesMax)
  return storable(value, 'text')
}

/** @throws bad_text */
export function storable(text: string, field: string): string {
  if (text.includes('\0') || !text.isWellFormed()) throw errors.badText(field)
  return text
}

function readClientId(value: unknown): string | null {
  if (value === undefined || value === null) return null
  if (typeof value !== 'string' || value.length > clientIdCharsMax || !/^[\x20-\x7e]+$/.test(value))
    throw errors.badClientId(clientIdCharsMax)
  return value
}

function readReplyTo(value: unknown): number | null {
  if (value === undefined || value === null) return null
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 1) throw errors.badReplyTo()
  return value
}

const none: readonly string[] = []

function readMentions(value: unknown): readonly string[] {
  if (value === undefined) return none
  if (!Array.isArray(value) || value.length > mentionsMax || !value.every(isName)) throw errors.badMentions(mentionsMax)
  return value
}

function readAttachments(value: unknown): readonly string[] {
  if (value === undefined) return none
  const isId = (each: unknown) => typeof each === 'string' && isUuid(each)
  if (!Array.isArray(value) || value.length > attachmentsMax || !value.every(isId))
    throw errors.badAttachments(attachmentsMax)
  return value.map(each => (each as string).toLowerCase())
}

/** Anything that a person here can be called; whether somebody is called so is another question. */
export function isName(value: unknown): value is string {
  return (
    typeof value === 'string' &&
    value.length > 0 &&
    value.length <= usernameCharsMax &&
    !/[\x00-\x1f\x7f:]/.test(value) &&
    value.isWellFormed()
  )
}

/** @throws bad_chat_username */
export function readUsername(value: unknown, field: string): string {
  if (!isName(value)) throw errors.badUsername(field)
  return value
}

/** @throws too_many_members, bad_chat_username */
export function readUsernames(value: unknown, field: string): string[] {
  if (value === undefined) return []
  if (!Array.isArray(value)) throw errors.badUsername(field)
  if (value.length > membersAtOnceMax) throw errors.tooManyMembers(membersAtOnceMax)
  return value.map(each => readUsername(each, field))
}

/** @throws bad_chat_name, bad_text */
export function readName(value: unknown): string {
  const name = typeof value === 'string' ? value.trim() : ''
  if (name.length === 0 || name.length > nameCharsMax) throw errors.badChatName(nameCharsMax)
  return storable(name, 'name')
}

/** @throws bad_flag */
export function readFlag(value: unknown, field: string): boolean {
  if (typeof value !== 'boolean') throw errors.badFlag(field)
  return value
}

/** @throws bad_role */
export function readRole(value: unknown): Role {
  if (!roles.includes(value as Role)) throw errors.badRole()
  return value as Role
}

/** A number of a message, as a JSON number or, in a path or query, as digits. @throws bad_message_number */
export function readSeq(value: unknown, field: string): number {
  const number = wholeOf(value)
  if (number === undefined || number < 0) throw errors.badNumber(field)
  return number
}

/** @throws bad_limit */
export function readLimit(value: unknown, fallback: number): number {
  if (value === undefined) return fallback
  const number = wholeOf(value)
  if (number === undefined || number < 1 || number > pageMax) throw errors.badLimit(pageMax)
  return number
}

function wholeOf(value: unknown): number | undefined {
  const number = typeof value === 'string' && /^-?\d{1,16}$/.test(value) ? Number(value) : value
  return typeof number === 'number' && Number.isSafeInteger(number) ? number : undefined
}

/** Which messages of a chat are wanted. Numbers are of messages, and are themselves left out but for `around`. */
export type Position = { after: number } | { before: number } | { around: number } | { from: Date } | { until: Date }

export const positionFields = ['after', 'before', 'around', 'from_time', 'until_time']

/** The newest ones where nothing is said. @throws two_positions, bad_message_number, bad_time */
export function readPosition(fields: Fields): Position {
  const said = positionFields.filter(field => fields[field] !== undefined)
  if (said.length > 1) throw errors.twoPositions()
  const [field] = said
  switch (field) {
    case 'after':
      return { after: readSeq(fields.after, field) }
    case 'before':
      return { before: readSeq(fields.before, field) }
    case 'around':
      return { around: readSeq(fields.around, field) }
    case 'from_time':
      return { from: readTime(fields.from_time, field) }
    case 'until_time':
      return { until: readTime(fields.until_time, field) }
    default:
      return { before: Number.MAX_SAFE_INTEGER }
  }
}

const timePattern = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$/

/** @throws bad_time */
export function readTime(value: unknown, field: string): Date {
  const time = typeof value === 'string' && timePattern.test(value) ? new Date(value) : undefined
  if (time === undefined || Number.isNaN(time.getTime())) throw errors.badTime(field)
  return time
}

/** @throws bad_query, bad_text */
export function readQuery(value: unknown): string {
  if (typeof value !== 'string' || value.length > queryCharsMax || !/[\p{L}\p{N}]/u.test(value))
    throw errors.badQuery(queryCharsMax)
  return storable(value, 'q')
}

/** @throws bad_emoji */
export function readEmoji(value: unknown): string {
  const isEmoji =
    typeof value === 'string' &&
    value.length > 0 &&
    Buffer.byteLength(value) <= emojiBytesMax &&
    !/[\s\p{Cc}]/u.test(value) &&
    value.isWellFormed()
  if (!isEmoji) throw errors.badEmoji(emojiBytesMax)
  return value
}

/** @throws bad_invitation */
export function readInvitation(fields: Fields): { expiresInMs: number; uses: number } {
  const seconds = fields.expires_in_seconds ?? 86_400
  const uses = fields.uses ?? 1
  const isWithin = (value: unknown, min: number, max: number): value is number =>
    typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max
  if (!isWithin(seconds, 60, invitationSecondsMax) || !isWithin(uses, 1, invitationUsesMax))
    throw errors.badInvitation(invitationSecondsMax, invitationUsesMax)
  return { expiresInMs: seconds * 1000, uses }
}

/** What a Date can hold, in Unix milliseconds. */
const latestMs = 8_640_000_000_000_000

export function isInstant(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= latestMs
}
