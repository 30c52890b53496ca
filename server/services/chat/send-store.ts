/**
 * What a batch of messages locks, finds and writes: in a transaction with `byIdsParameters`, so that the plan that is
 * kept goes by the indexes however small the tables were when it was made. Whoever uses a statement in another
 * transaction has it planned anew (`replan`), or the plan of that would be kept.
 */
import { toArray, toTextArray } from '#platform/database/arrays.ts'
import type { Queryable, replan, Tx } from '#platform/database/pool.ts'
import type { Chat, Details } from './types.ts'

interface ChatRow {
  id: string
  kind: Chat['kind']
  name: string | null
  is_open: boolean
  low_id: number | null
  high_id: number | null
  low_blocked: boolean
  high_blocked: boolean
  last_seq: number
  change_seq: number
  members: number
  last_at: Date
}

type Planning = typeof replan

/** Locks in the order of ids, which all batches keep to, so that none waits for another in a circle. */
export async function lockChats(tx: Tx, ids: readonly string[], how?: Planning): Promise<Map<string, Chat>> {
  const { rows } = await tx.query<ChatRow>(
    `select id, kind, name, is_open, low_id, high_id, low_blocked, high_blocked, last_seq, change_seq, members, last_at
     from chat.chats where id = any($1::uuid[]) order by id for no key update`,
    [toArray(ids)],
    how,
  )
  return new Map(rows.map(row => [row.id, toChat(row)]))
}

function toChat(row: ChatRow): Chat {
  return {
    id: row.id,
    kind: row.kind,
    name: row.name,
    isOpen: row.is_open,
    pair: row.low_id === null ? undefined : { low: row.low_id, high: row.high_id! },
    lowBlocked: row.low_blocked,
    highBlocked: row.high_blocked,
    lastSeq: row.last_seq,
    changeSeq: row.change_seq,
    members: row.members,
    lastAt: row.last_at,
  }
}

/** Of a chat, somebody who may be a member. */
export interface Place {
  chatId: string
  personId: number
}

export function placeKey({ chatId, personId }: Place): string {
  return `${chatId} ${personId}`
}

/** Those that are members' now, locked in an order that marks keep to as well. */
export async function lockPlaces(tx: Tx, places: readonly Place[]): Promise<Set<string>> {
  const { rows } = await tx.query<{ chat_id: string; person_id: number }>(
    `select m.chat_id, m.person_id
     from unnest($1::uuid[], $2::bigint[]) w(chat_id, person_id)
     join chat.members m on m.chat_id = w.chat_id and m.person_id = w.person_id
     where m.left_at is null
     order by m.chat_id, m.person_id for no key update of m`,
    [toArray(places, place => place.chatId), toArray(places, place => place.personId)],
  )
  return new Set(rows.map(row => placeKey({ chatId: row.chat_id, personId: row.person_id })))
}

/** Those that are members' now. */
export async function findPlaces(db: Queryable, places: readonly Place[]): Promise<Set<string>> {
  const { rows } = await db.query<{ chat_id: string; person_id: number }>(
    `select m.chat_id, m.person_id
     from unnest($1::uuid[], $2::bigint[]) w(chat_id, person_id)
     join chat.members m on m.chat_id = w.chat_id and m.person_id = w.person_id
     where m.left_at is null`,
    [toArray(places, place => place.chatId), toArray(places, place => place.personId)],
  )
  return new Set(rows.map(row => placeKey({ chatId: row.chat_id, personId: row.person_id })))
}

/** A message as it is written. */
export interface NewMessage {
  chatId: string
  seq: number
  senderId: number
  kind: 'text' | 'system'
  text: string
  replyTo: number | null
  clientId: string | null
  fingerprint: string | null
  details: Details | null
}

/**
 * One statement: the chats' numbers, the senders' own marks (who speaks has read what went before), the messages, and
 * the note of what is to be made searchable.
 */
export function writeMessages(tx: Tx, given: { messages: readonly NewMessage[]; at: Date }, how?: Planning) {
  const { messages, at } = given
  const heads = lastOf(messages, message => message.chatId)
  const marks = lastOf(messages, message => placeKey({ chatId: message.chatId, personId: message.senderId }))
  const firsts = firstSeqs(messages)
  tx.send(
    `with counted as (
       update chat.chats c set last_seq = n.seq, last_at = $1::timestamptz
       from unnest($2::uuid[], $3::bigint[]) n(id, seq) where c.id = n.id),
     marked as (
       update chat.members m
       set read_seq = greatest(m.read_seq, n.seq), delivered_seq = greatest(m.delivered_seq, n.seq)
       from unnest($4::uuid[], $5::bigint[], $6::bigint[]) n(chat_id, person_id, seq)
       where m.chat_id = n.chat_id and m.person_id = n.person_id),
     noted as (
       insert into chat.unindexed (messages, chat_ids, first_seqs, last_seqs)
       values ($17, $2::uuid[], $7::bigint[], $3::bigint[]))
     insert into chat.messages (chat_id, seq, sender_id, kind, text, reply_to, client_id, fingerprint, details,
       created_at)
     select *, $1::timestamptz
     from unnest($8::uuid[], $9::bigint[], $10::bigint[], $11::text[], $12::text[], $13::bigint[], $14::text[],
       $15::uuid[], $16::jsonb[])`,
    [
      at,
      toArray(heads, head => head.chatId),
      toArray(heads, head => head.seq),
      toArray(marks, mark => mark.chatId),
      toArray(marks, mark => mark.senderId),
      toArray(marks, mark => mark.seq),
      toArray(heads, head => firsts.get(head.chatId)!),
      toArray(messages, message => message.chatId),
      toArray(messages, message => message.seq),
      toArray(messages, message => message.senderId),
      toArray(messages, message => message.kind),
      toTextArray(messages, message => message.text),
      toArray(messages, message => message.replyTo),
      toTextArray(messages, message => message.clientId),
      toArray(messages, message => message.fingerprint),
      toTextArray(messages, message => message.details && JSON.stringify(message.details)),
      messages.length,
    ],
    how,
  )
}

/** The last of each key. */
function lastOf<T>(items: readonly T[], keyOf: (item: T) => string): T[] {
  const last = new Map<string, T>()
  for (const item of items) last.set(keyOf(item), item)
  return [...last.values()]
}

function firstSeqs(messages: readonly NewMessage[]): Map<string, number> {
  const firsts = new Map<string, number>()
  for (const { chatId, seq } of messages) if (!firsts.has(chatId)) firsts.set(chatId, seq)
  return firsts
}
