/** The statements about how far members have come. */
import { toArray } from '#platform/database/arrays.ts'
import type { Tx } from '#platform/database/pool.ts'

export interface NewMark {
  chatId: string
  personId: number
  read: number
  delivered: number
}

export interface MarkRow {
  chat_id: string
  person_id: number
  last_seq: number
  read_seq: number
  delivered_seq: number
  /** Before this. */
  old_read_seq: number
  old_delivered_seq: number
}

/**
 * Raises marks, never lowers them, never past the newest message. One mark a member; those who are no members are left
 * out of the answer. Locks in the order that batches of messages keep to.
 */
export async function raiseMarks(tx: Tx, marks: readonly NewMark[]): Promise<MarkRow[]> {
  const { rows } = await tx.query<MarkRow>(
    `with locked as materialized (
       select m.chat_id, m.person_id, m.read_seq as old_read_seq, m.delivered_seq as old_delivered_seq, c.last_seq,
              greatest(m.read_seq, least(w.read, c.last_seq)) as read_seq,
              greatest(m.delivered_seq, least(w.delivered, c.last_seq)) as delivered_seq
       from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[]) w(chat_id, person_id, read, delivered)
       join chat.members m on m.chat_id = w.chat_id and m.person_id = w.person_id
       join chat.chats c on c.id = m.chat_id
       where m.left_at is null
       order by m.chat_id, m.person_id for no key update of m),
     raised as (
       update chat.members m set read_seq = l.read_seq, delivered_seq = l.delivered_seq
       from locked l where m.chat_id = l.chat_id and m.person_id = l.person_id
         and (l.read_seq > l.old_read_seq or l.delivered_seq > l.old_delivered_seq))
     select chat_id, person_id, last_seq, read_seq, delivered_seq, old_read_seq, old_delivered_seq from locked`,
    [
      toArray(marks, mark => mark.chatId),
      toArray(marks, mark => mark.personId),
      toArray(marks, mark => mark.read),
      toArray(marks, mark => mark.delivered),
    ],
  )
  return rows
}
