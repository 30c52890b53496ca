/** What goes over the wire. */
import { type Static, type TSchema, Type } from 'typebox'
import { nullable, time } from '#platform/http/schema.ts'
import type { MemberRow, ViewRow } from './room-store.ts'
import { type Message, roles } from './types.ts'

const number = Type.Integer({ minimum: 0 })
export const role = Type.Enum(roles)

const MessageFields = {
  chat_id: Type.String({ format: 'uuid' }),
  seq: Type.Integer({ minimum: 1, description: 'Its number in the chat: 1, 2, 3, … without a gap.' }),
  kind: Type.Enum(['text', 'system']),
  sender: Type.String({ description: 'The username of who sent it, or who did what a system message tells.' }),
  text: Type.String({ description: 'Empty in a message that was deleted, and in a system message.' }),
  client_id: nullable(Type.String()),
  reply_to: nullable(number),
  mentions: Type.Array(Type.String()),
  attachments: Type.Array(Type.String({ format: 'uuid' })),
  event: nullable(
    Type.Object({
      type: Type.Enum(['created', 'joined', 'added', 'left', 'removed', 'renamed', 'opened', 'closed']),
      username: nullable(Type.String({ description: 'Whom it is about, where that is not the sender.' })),
      name: nullable(Type.String()),
    }),
  ),
  created_at: time,
  edited_at: nullable(time),
  edits: Type.Integer({ minimum: 0, description: 'How often it was edited. Earlier texts are not kept.' }),
  deleted_at: nullable(time),
}

export const MessageShape = Type.Object({
  ...MessageFields,
  reactions: Type.Array(
    Type.Object({
      emoji: Type.String(),
      count: Type.Integer({ minimum: 1 }),
      mine: Type.Optional(Type.Boolean({ description: 'Not in live events, which are the same for all.' })),
    }),
  ),
})
export type ShownMessage = Static<typeof MessageShape>

/** @param own the caller's own reactions, where the answer is for one caller */
export function showMessage(message: Message, own?: ReadonlySet<string> | 'none'): ShownMessage {
  const { details } = message
  const event = details?.event
  return {
    chat_id: message.chatId,
    seq: message.seq,
    kind: message.kind,
    sender: message.sender,
    text: message.text,
    client_id: message.clientId,
    reply_to: message.replyTo,
    mentions: [...(details?.mentions ?? [])],
    attachments: [...(details?.attachments ?? [])],
    event: event ? { type: event.type, username: event.username ?? null, name: event.name ?? null } : null,
    created_at: message.createdAt.toISOString(),
    edited_at: message.editedAt?.toISOString() ?? null,
    edits: message.edits,
    deleted_at: message.deletedAt?.toISOString() ?? null,
    reactions: Object.entries(message.reactions ?? {}).map(([emoji, count]) => ({
      emoji,
      count,
      ...(own === undefined ? {} : { mine: own !== 'none' && own.has(emoji) }),
    })),
  }
}

export const ChatShape = Type.Object({
  id: Type.String({ format: 'uuid' }),
  kind: Type.Enum(['direct', 'room']),
  name: nullable(Type.String({ description: 'Of a room.' })),
  with: nullable(Type.String({ description: 'The other one of a direct chat.' })),
  open: Type.Boolean({ description: 'Anybody may find and join it.' }),
  role: nullable(role),
  members: number,
  last_seq: Type.Integer({ minimum: 0, description: 'The number of the newest message.' }),
  change_seq: Type.Integer({ minimum: 0, description: 'The number of the newest change of an earlier message.' }),
  read_seq: number,
  delivered_seq: number,
  unread: Type.Integer({ minimum: 0, description: 'Messages above `read_seq`, those of the system among them.' }),
  muted_until: nullable(time),
  created_at: time,
  last_at: time,
})
export type ShownChat = Static<typeof ChatShape>

export function showChat(row: ViewRow): ShownChat {
  const isMember = row.role !== null
  return {
    id: row.id,
    kind: row.kind,
    name: row.name,
    with: row.with_name,
    open: row.is_open,
    role: row.role,
    members: row.members,
    last_seq: row.last_seq,
    change_seq: row.change_seq,
    read_seq: row.read_seq,
    delivered_seq: row.delivered_seq,
    unread: isMember ? row.last_seq - row.read_seq : 0,
    muted_until: row.muted_until?.toISOString() ?? null,
    created_at: row.created_at.toISOString(),
    last_at: row.last_at.toISOString(),
  }
}

export const MemberShape = Type.Object({
  username: Type.String(),
  role,
  joined_at: time,
  read_seq: number,
  delivered_seq: number,
})

export function showMember(row: MemberRow): Static<typeof MemberShape> {
  return {
    username: row.shown,
    role: row.role,
    joined_at: row.joined_at.toISOString(),
    read_seq: row.read_seq,
    delivered_seq: row.delivered_seq,
  }
}

export const MarksShape = Type.Object({ read_seq: number, delivered_seq: number, unread: number })
export type ShownMarks = Static<typeof MarksShape>

export const PageShape = Type.Object({
  messages: Type.Array(MessageShape, { description: 'In the order of their numbers.' }),
  before: nullable(Type.Integer({ description: 'What to send as `before` for the page before this one.' })),
  after: nullable(Type.Integer({ description: 'What to send as `after` for the page behind this one.' })),
  last_seq: number,
})
export type ShownPage = Static<typeof PageShape>

export const nextCursor = nullable(Type.String({ description: 'Send it as `cursor` for the next page.' }))

/** A field that is checked by hand, so that each fault has a code of its own. */
export function given(description: string, ...examples: unknown[]) {
  return Type.Unsafe<unknown>({ description, examples })
}

/** Fields that may be left out. */
export function optional<T extends Record<string, TSchema>>(fields: T) {
  return Type.Partial(Type.Object(fields, { additionalProperties: false }))
}
