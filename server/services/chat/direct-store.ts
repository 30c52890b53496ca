/** The statements about direct chats and who may speak in them. */
import { toArray } from '#platform/database/arrays.ts'
import type { Queryable, Tx } from '#platform/database/pool.ts'
import type { Pair } from './types.ts'

/** The direct chats of the pairs that have one. */
export async function findDirects(
  db: Queryable,
  pairs: readonly Pair[],
): Promise<{ id: string; low_id: number; high_id: number }[]> {
  const { rows } = await db.query<{ id: string; low_id: number; high_id: number }>(
    `select c.id, c.low_id, c.high_id from unnest($1::bigint[], $2::bigint[]) w(low, high)
     join chat.chats c on c.low_id = w.low and c.high_id = w.high`,
    [toArray(pairs, pair => pair.low), toArray(pairs, pair => pair.high)],
  )
  return rows
}

/** Makes what is missing of them, with their members. */
export async function insertDirects(
  tx: Tx,
  given: { chats: readonly (Pair & { id: string })[]; at: Date },
): Promise<void> {
  const { chats, at } = given
  await tx.query(
    `with made as (
       insert into chat.chats (id, kind, low_id, high_id, low_blocked, high_blocked, members, created_at, last_at)
       select w.id, 'direct', w.low, w.high,
              exists (select from chat.blocks b where b.blocker_id = w.high and b.blocked_id = w.low),
              exists (select from chat.blocks b where b.blocker_id = w.low and b.blocked_id = w.high),
              2, $1::timestamptz, $1::timestamptz
       from unnest($2::uuid[], $3::bigint[], $4::bigint[]) w(id, low, high) order by w.low, w.high
       on conflict (low_id, high_id) where low_id is not null do nothing
       returning id, low_id, high_id)
     insert into chat.members (chat_id, person_id, role, joined_at)
     select made.id, person_id, 'member', $1 from made, unnest(array[low_id, high_id]) person_id`,
    [at, toArray(chats, chat => chat.id), toArray(chats, chat => chat.low), toArray(chats, chat => chat.high)],
  )
}

/**
 * Blocks change one at a time, and not while direct chats are being made: a new chat sees every block, or the block
 * sees the chat.
 */
export async function lockBlocks(tx: Tx, mode: 'to read' | 'to change'): Promise<void> {
  const lock = mode === 'to read' ? 'pg_advisory_xact_lock_shared' : 'pg_advisory_xact_lock'
  await tx.query(`select ${lock}('chat.blocks'::regclass::oid::integer, 0)`)
}

/** Says in a pair's direct chat, where there is one, whether one of the two is blocked. */
export async function blockInDirect(tx: Tx, given: Pair & { blockedId: number; isBlocked: boolean }): Promise<void> {
  const column = given.blockedId === given.low ? 'low_blocked' : 'high_blocked'
  await tx.query(`update chat.chats set ${column} = $3 where low_id = $1 and high_id = $2`, [
    given.low,
    given.high,
    given.isBlocked,
  ])
}
