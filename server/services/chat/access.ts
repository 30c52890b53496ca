/** Who may look into a chat, and change something in it. */
import { type Database, replan, type Tx } from '#platform/database/pool.ts'
import { errors } from './errors.ts'
import * as rooms from './room-store.ts'
import * as sends from './send-store.ts'
import type { Chat, Person, Role } from './types.ts'

/** @throws chat_not_found, not_a_member */
export async function getView(db: Database, given: { person: Person; chatId: string }): Promise<rooms.ViewRow> {
  const view = await rooms.findView(db, { personId: given.person.id, chatId: given.chatId })
  if (!view) throw errors.chatNotFound()
  if (view.role === null) throw errors.notAMember()
  return view
}

/** A chat that is locked, so that nobody else writes to it, joins or leaves until the commit. */
export interface Scene {
  chat: Chat
  person: Person
  me: rooms.MemberRow
  at: Date
}

/** @throws chat_not_found, not_a_member */
export async function enter(tx: Tx, given: { person: Person; chatId: string; nowMs: number }): Promise<Scene> {
  const { person, chatId } = given
  const { chat, at } = await lockChat(tx, given)
  const me = (await rooms.findMembers(tx, { chatId, personIds: [person.id] })).get(person.id)
  if (!me) throw errors.notAMember()
  return { chat, person, me, at }
}

/** @throws chat_not_found */
export async function lockChat(tx: Tx, { chatId, nowMs }: { chatId: string; nowMs: number }) {
  const chat = (await sends.lockChats(tx, [chatId], replan)).get(chatId)
  if (!chat) throw errors.chatNotFound()
  return { chat, at: new Date(Math.max(nowMs, chat.lastAt.getTime())) }
}

const ranks = { member: 0, moderator: 1, owner: 2 } as const

export function outranks(one: Role, other: Role): boolean {
  return ranks[one] > ranks[other]
}

/** @throws role_too_low */
export function assertRole(role: Role, needed: 'moderator' | 'owner') {
  if (ranks[role] >= ranks[needed]) return
  throw errors.roleTooLow(needed === 'owner' ? 'the owner' : 'the owner and moderators')
}
