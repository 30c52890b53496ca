/** The statements about what `chat-changes/<id>` tells: what became of earlier messages, and of members. */
import type { Queryable, Tx } from '#platform/database/pool.ts'

export interface ChangeRow {
  seq: number
  type: string
  message_seq: number | null
  data: unknown
  ends: string | null
}

export interface Change {
  chatId: string
  type: 'edited' | 'deleted' | 'reaction' | 'member'
  messageSeq?: number
  data?: unknown
  /** The user id of one whose deliveries end here. */
  ends?: string | null
  at: Date
}

/** Gives a change the next number, under the lock of its chat. */
export async function insertChange(tx: Tx, change: Change): Promise<void> {
  await tx.query(
    `with counted as (update chat.chats set change_seq = change_seq + 1 where id = $1 returning change_seq)
     insert into chat.changes (chat_id, seq, type, message_seq, data, ends, created_at)
     select $1, change_seq, $2, $3, $4::jsonb, $5, $6 from counted`,
    [
      change.chatId,
      change.type,
      change.messageSeq ?? null,
      change.data === undefined ? null : JSON.stringify(change.data),
      change.ends ?? null,
      change.at,
    ],
  )
}

/** Numbered above `after`, oldest first. */
export async function listChanges(
  db: Queryable,
  given: { chatId: string; after: number; limit: number },
): Promise<ChangeRow[]> {
  const { rows } = await db.query<ChangeRow>(
    `select seq, type, message_seq, data, ends from chat.changes
     where chat_id = $1 and seq > $2 order by seq limit $3`,
    [given.chatId, given.after, given.limit],
  )
  return rows
}

/** The newest numbers of messages or of changes. */
export async function listHeads(
  db: Queryable,
  given: { chatIds: readonly string[]; of: 'messages' | 'changes' },
): Promise<Map<string, number>> {
  const column = given.of === 'messages' ? 'last_seq' : 'change_seq'
  const { rows } = await db.query<{ id: string; head: number }>(
    `select id, ${column} as head from chat.chats where id = any($1::uuid[])`,
    [given.chatIds],
  )
  return new Map(rows.map(row => [row.id, row.head]))
}

/** Those made before an instant, a bounded number. Answers how many. */
export async function deleteOldChanges(db: Queryable, given: { before: Date; limit: number }): Promise<number> {
  const { rowCount } = await db.query(
    `delete from chat.changes where (chat_id, seq) in (
       select chat_id, seq from chat.changes where created_at < $1 order by created_at limit $2)`,
    [given.before, given.limit],
  )
  return rowCount
}
