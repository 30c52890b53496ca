/** How messages stand in the table. */
import type { Queryable } from '#platform/database/pool.ts'
import type { Details, Message } from './types.ts'

interface MessageRow {
  chat_id: string
  seq: number
  sender: string
  kind: Message['kind']
  text: string
  client_id: string | null
  reply_to: number | null
  details: Details | null
  reactions: Record<string, number> | null
  created_at: Date
  edited_at: Date | null
  edits: number
  deleted_at: Date | null
}

/** Of `chat.messages m join chat.people p on p.id = m.sender_id`. */
const columns = `m.chat_id, m.seq, p.shown as sender, m.kind, m.text, m.client_id, m.reply_to, m.details, m.reactions,
  m.created_at, m.edited_at, m.edits, m.deleted_at`
const tables = 'chat.messages m join chat.people p on p.id = m.sender_id'

function toMessage(row: MessageRow): Message {
  return {
    chatId: row.chat_id,
    seq: row.seq,
    sender: row.sender,
    kind: row.kind,
    text: row.text,
    clientId: row.client_id,
    replyTo: row.reply_to,
    details: row.details,
    reactions: row.reactions,
    createdAt: row.created_at,
    editedAt: row.edited_at,
    edits: row.edits,
    deletedAt: row.deleted_at,
  }
}

/** Numbered above `after`, oldest first. */
export async function listUp(
  db: Queryable,
  given: { chatId: string; after: number; limit: number },
): Promise<Message[]> {
  const { rows } = await db.query<MessageRow>(
    `select ${columns} from ${tables} where m.chat_id = $1 and m.seq > $2 order by m.seq limit $3`,
    [given.chatId, given.after, given.limit],
  )
  return rows.map(toMessage)
}

/** Numbered below `before`, newest first. */
export async function listDown(
  db: Queryable,
  given: { chatId: string; before: number; limit: number },
): Promise<Message[]> {
  const { rows } = await db.query<MessageRow>(
    `select ${columns} from ${tables} where m.chat_id = $1 and m.seq < $2 order by m.seq desc limit $3`,
    [given.chatId, given.before, given.limit],
  )
  return rows.map(toMessage)
}

export async function findMessage(
  db: Queryable,
  given: { chatId: string; seq: number },
): Promise<(Message & { senderId: number }) | undefined> {
  const { rows } = await db.query<MessageRow & { sender_id: number }>(
    `select ${columns}, m.sender_id from ${tables} where m.chat_id = $1 and m.seq = $2`,
    [given.chatId, given.seq],
  )
  return rows[0] && { ...toMessage(rows[0]), senderId: rows[0].sender_id }
}

/** The given ones of several chats, in no order. */
export async function findMessages(
  db: Queryable,
  given: readonly { chatId: string; seq: number }[],
): Promise<Message[]> {
  const { rows } = await db.query<MessageRow>(
    `select ${columns} from unnest($1::uuid[], $2::bigint[]) w(chat_id, seq)
     join chat.messages m on m.chat_id = w.chat_id and m.seq = w.seq
     join chat.people p on p.id = m.sender_id`,
    [given.map(each => each.chatId), given.map(each => each.seq)],
  )
  return rows.map(toMessage)
}

/** What was sent before with these client ids, and the digests of it. */
export async function findSent(
  db: Queryable,
  keys: readonly { chatId: string; senderId: number; clientId: string }[],
): Promise<{ message: Message; senderId: number; fingerprint: string }[]> {
  const { rows } = await db.query<MessageRow & { sender_id: number; fingerprint: string }>(
    `select ${columns}, m.sender_id, m.fingerprint
     from unnest($1::uuid[], $2::bigint[], $3::text[]) k(chat_id, sender_id, client_id)
     join chat.messages m on m.chat_id = k.chat_id and m.sender_id = k.sender_id and m.client_id = k.client_id
     join chat.people p on p.id = m.sender_id`,
    [keys.map(key => key.chatId), keys.map(key => key.senderId), keys.map(key => key.clientId)],
  )
  return rows.map(row => ({ message: toMessage(row), senderId: row.sender_id, fingerprint: row.fingerprint }))
}

/** The number of the newest message before an instant, 0 where there is none. */
export async function seqBefore(db: Queryable, given: { chatId: string; at: Date }): Promise<number> {
  const { rows } = await db.query<{ seq: number }>(`select chat.seq_before($1, $2) as seq`, [given.chatId, given.at])
  return rows[0]!.seq
}

/** Which emoji a person put to each of the messages. */
export async function findOwnReactions(
  db: Queryable,
  given: { chatId: string; personId: number; seqs: readonly number[] },
): Promise<Map<number, Set<string>>> {
  const found = new Map<number, Set<string>>()
  const { rows } = await db.query<{ seq: number; emoji: string }>(
    `select seq, emoji from chat.reactions where chat_id = $1 and person_id = $2 and seq = any($3::bigint[])`,
    [given.chatId, given.personId, given.seqs],
  )
  for (const { seq, emoji } of rows) found.set(seq, (found.get(seq) ?? new Set()).add(emoji))
  return found
}

// Changes of a message, under the lock of its chat.

export async function updateText(
  db: Queryable,
  given: { chatId: string; seq: number; text: string; at: Date },
): Promise<void> {
  await db.query(
    `update chat.messages set text = $3, edited_at = $4, edits = edits + 1 where chat_id = $1 and seq = $2`,
    [given.chatId, given.seq, given.text, given.at],
  )
}

/** The text and all that was with it goes; number, sender and times stay. */
export async function eraseMessage(db: Queryable, given: { chatId: string; seq: number; at: Date }): Promise<void> {
  await db.query(
    `with erased as (delete from chat.reactions where chat_id = $1 and seq = $2)
     update chat.messages set text = '', details = null, reactions = null, deleted_at = $3
     where chat_id = $1 and seq = $2`,
    [given.chatId, given.seq, given.at],
  )
}

interface Reaction {
  chatId: string
  seq: number
  personId: number
  emoji: string
}

/** False when it was there already. */
export async function insertReaction(db: Queryable, reaction: Reaction): Promise<boolean> {
  const { rowCount } = await db.query(
    `insert into chat.reactions (chat_id, seq, person_id, emoji) values ($1, $2, $3, $4) on conflict do nothing`,
    [reaction.chatId, reaction.seq, reaction.personId, reaction.emoji],
  )
  return rowCount > 0
}

/** False when there was none. */
export async function deleteReaction(db: Queryable, reaction: Reaction): Promise<boolean> {
  const { rowCount } = await db.query(
    `delete from chat.reactions where chat_id = $1 and seq = $2 and person_id = $3 and emoji = $4`,
    [reaction.chatId, reaction.seq, reaction.personId, reaction.emoji],
  )
  return rowCount > 0
}

export async function updateReactions(
  db: Queryable,
  given: { chatId: string; seq: number; reactions: Record<string, number> | null },
): Promise<void> {
  await db.query(`update chat.messages set reactions = $3::jsonb where chat_id = $1 and seq = $2`, [
    given.chatId,
    given.seq,
    given.reactions && JSON.stringify(given.reactions),
  ])
}
