/** The statements about what can be found. */
import { toArray } from '#platform/database/arrays.ts'
import { replan, type Tx } from '#platform/database/pool.ts'

/** A stretch of a chat, as the word by which the index knows it. Each is of so many numbers, a power of two. */
const stretchBits = 16

export function stretchOf(seq: number): number {
  return Math.floor(seq / 2 ** stretchBits)
}

export interface Stretch {
  chatId: string
  /** From 0 on. */
  at: number
}

/** The lowest number in it; 1 is the lowest of all. */
export function firstOf({ at }: Stretch): number {
  return Math.max(1, at * 2 ** stretchBits)
}

const wordOf = `replace(m.chat_id::text, '-', '') || 'x' || (m.seq >> ${stretchBits})`

function toWord({ chatId, at }: Stretch): string {
  return `'${chatId.replaceAll('-', '')}x${at}'`
}

/** One indexer at a time, of all processes. False when there is one already. */
export async function lockIndexing(tx: Tx): Promise<boolean> {
  const { rows } = await tx.query<{ locked: boolean }>(
    `select pg_try_advisory_xact_lock('chat.search'::regclass::oid::integer, 0) as locked`,
  )
  return rows[0]!.locked
}

export async function noteUnindexed(tx: Tx, { chatId, seq }: { chatId: string; seq: number }): Promise<void> {
  await tx.query(
    `insert into chat.unindexed (messages, chat_ids, first_seqs, last_seqs)
     values (1, array[$1::uuid], array[$2::bigint], array[$2::bigint])`,
    [chatId, seq],
  )
}

/**
 * Makes findable what the oldest notes name, and what was edited or deleted no longer by what it was. Takes notes of
 * about as many messages as given, one note at least. Answers how many messages they were of.
 */
export async function indexOldest(tx: Tx, given: { notesMax: number; messagesMax: number }): Promise<number> {
  const { rows } = await tx.query<{ messages: number }>(
    `with oldest as (select id, messages from chat.unindexed order by id limit $1),
     noted as materialized (
       delete from chat.unindexed where id in (
         select id from (select id, messages, sum(messages) over (order by id) as so_far from oldest) o
         where so_far - messages < $2)
       returning messages, chat_ids, first_seqs, last_seqs),
     changed as materialized (
       select distinct on (m.chat_id, m.seq) m.chat_id, m.seq, m.created_at, m.deleted_at,
              array_to_tsvector(array[${wordOf}]) || to_tsvector('simple', m.text) as words
       from noted, unnest(chat_ids, first_seqs, last_seqs) r(chat_id, first_seq, last_seq)
       join chat.messages m on m.chat_id = r.chat_id and m.seq between r.first_seq and r.last_seq
       where m.kind = 'text' order by m.chat_id, m.seq),
     gone as (
       delete from chat.search s using changed c
       where c.deleted_at is not null and s.chat_id = c.chat_id and s.seq = c.seq),
     kept as (
       insert into chat.search (chat_id, seq, created_at, words)
       select chat_id, seq, created_at, words from changed where deleted_at is null
       on conflict (chat_id, seq) do update set words = excluded.words)
     select coalesce(sum(messages), 0)::integer as messages from noted`,
    [given.notesMax, given.messagesMax],
    replan,
  )
  return rows[0]!.messages
}

export interface Hit {
  chat_id: string
  seq: number
  created_at: Date
}

/** A query of nothing but marks finds nothing, not everything. */
const matches = `s.words @@ ($1::tsquery && websearch_to_tsquery('simple', $2))
  and numnode(websearch_to_tsquery('simple', $2)) > 0`

/** In one stretch of a chat, the newest first, numbered below `before`. */
export async function findHitsIn(
  tx: Tx,
  given: { stretch: Stretch; query: string; before: number; limit: number },
): Promise<Hit[]> {
  const { rows } = await tx.query<Hit>(
    `select s.chat_id, s.seq, s.created_at from chat.search s
     where ${matches} and s.chat_id = $3 and s.seq < $4 order by s.seq desc limit $5`,
    [toWord(given.stretch), given.query, given.stretch.chatId, given.before, given.limit],
    replan,
  )
  return rows
}

/** In stretches of several chats, the newest first, from behind `before`. */
export async function findHitsAcross(
  tx: Tx,
  given: { stretches: readonly Stretch[]; query: string; before: Hit | undefined; limit: number },
): Promise<Hit[]> {
  const { stretches, query, before, limit } = given
  const { rows } = await tx.query<Hit>(
    `select s.chat_id, s.seq, s.created_at from chat.search s
     where ${matches} and s.chat_id = any($3::uuid[])
       and ($4::timestamptz is null or (s.created_at, s.chat_id, s.seq) < ($4, $5::uuid, $6::bigint))
     order by s.created_at desc, s.chat_id desc, s.seq desc limit $7`,
    [
      stretches.map(toWord).join(' | '),
      query,
      toArray([...new Set(stretches.map(stretch => stretch.chatId))]),
      before?.created_at ?? null,
      before?.chat_id ?? null,
      before?.seq ?? null,
      limit,
    ],
    replan,
  )
  return rows
}

/** What follows in this transaction is given up after so long. */
export async function limitTime(tx: Tx, ms: number): Promise<void> {
  await tx.query(`select set_config('statement_timeout', $1, true)`, [String(ms)])
}
