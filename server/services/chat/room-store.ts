/** The statements about chats, their members and invitations. */
import type { Queryable, Tx } from '#platform/database/pool.ts'
import type { Role } from './types.ts'

/** A chat as one person sees it. */
export interface ViewRow {
  id: string
  kind: 'direct' | 'room'
  name: string | null
  is_open: boolean
  /** The other one of a direct chat. */
  with_name: string | null
  last_seq: number
  change_seq: number
  members: number
  created_at: Date
  last_at: Date
  /** Null for one who is no member. */
  role: Role | null
  read_seq: number
  delivered_seq: number
  muted_until: Date | null
}

const viewColumns = `c.id, c.kind, c.name, c.is_open, other.shown as with_name, c.last_seq, c.change_seq, c.members,
  c.created_at, c.last_at, m.role, coalesce(m.read_seq, 0) as read_seq, coalesce(m.delivered_seq, 0) as delivered_seq,
  m.muted_until`
/** With the person as $1. */
const otherJoin = `left join chat.people other
  on other.id = case $1::bigint when c.low_id then c.high_id when c.high_id then c.low_id end`

export async function findView(
  db: Queryable,
  given: { personId: number; chatId: string },
): Promise<ViewRow | undefined> {
  const { rows } = await db.query<ViewRow>(
    `select ${viewColumns} from chat.chats c
     left join chat.members m on m.chat_id = c.id and m.person_id = $1 and m.left_at is null
     ${otherJoin} where c.id = $2`,
    [given.personId, given.chatId],
  )
  return rows[0]
}

export interface ListCursor {
  lastAt: Date
  id: string
}

/**
 * A person's chats, the newest activity first, from behind `before`. Reads all of them, as what changes with every
 * message is in no index.
 */
export async function listViews(
  db: Queryable,
  given: { personId: number; before: ListCursor | undefined; unreadOnly: boolean; limit: number },
): Promise<ViewRow[]> {
  const { rows } = await db.query<ViewRow>(
    `select ${viewColumns} from chat.members m join chat.chats c on c.id = m.chat_id ${otherJoin}
     where m.person_id = $1 and m.left_at is null and (not $2 or c.last_seq > m.read_seq)
       and ($3::timestamptz is null or (c.last_at, c.id) < ($3, $4::uuid))
     order by c.last_at desc, c.id desc limit $5`,
    [given.personId, given.unreadOnly, given.before?.lastAt ?? null, given.before?.id ?? null, given.limit],
  )
  return rows
}

/** The newest of a person's chats, for a search. */
export async function listNewestChats(
  db: Queryable,
  given: { personId: number; limit: number },
): Promise<{ id: string; last_seq: number }[]> {
  const { rows } = await db.query<{ id: string; last_seq: number }>(
    `select c.id, c.last_seq from chat.members m join chat.chats c on c.id = m.chat_id
     where m.person_id = $1 and m.left_at is null order by c.last_at desc, c.id desc limit $2`,
    [given.personId, given.limit],
  )
  return rows
}

/** Open rooms whose names begin so, in the order of names, from behind `after`. */
export async function listOpenRooms(
  db: Queryable,
  given: { personId: number; prefix: string; after: { name: string; id: string } | undefined; limit: number },
): Promise<(ViewRow & { sort_name: string })[]> {
  const { rows } = await db.query<ViewRow & { sort_name: string }>(
    `select ${viewColumns}, lower(c.name) as sort_name from chat.chats c
     left join chat.members m on m.chat_id = c.id and m.person_id = $1 and m.left_at is null
     ${otherJoin}
     where c.is_open and lower(c.name) like lower($2) || '%'
       and ($3::text is null or lower(c.name) ~>~ $3 or (lower(c.name) = $3 and c.id > $4::uuid))
     order by lower(c.name) using ~<~, c.id limit $5`,
    [
      given.personId,
      given.prefix.replace(/[\\%_]/g, '\\$&'),
      given.after?.name ?? null,
      given.after?.id ?? null,
      given.limit,
    ],
  )
  return rows
}

export async function insertRoom(tx: Tx, room: { id: string; name: string; isOpen: boolean; at: Date }): Promise<void> {
  await tx.query(
    `insert into chat.chats (id, kind, name, is_open, created_at, last_at) values ($1, 'room', $2, $3, $4, $4)`,
    [room.id, room.name, room.isOpen, room.at],
  )
}

export async function updateRoom(tx: Tx, given: { id: string; name: string; isOpen: boolean }): Promise<void> {
  await tx.query(`update chat.chats set name = $2, is_open = $3 where id = $1`, [given.id, given.name, given.isOpen])
}

// Members

export interface MemberRow {
  person_id: number
  user_id: string | null
  shown: string
  role: Role
  joined_at: Date
  read_seq: number
  delivered_seq: number
}

const memberColumns = 'm.person_id, p.user_id, p.shown, m.role, m.joined_at, m.read_seq, m.delivered_seq'

/** Those of the people who are members now. */
export async function findMembers(
  db: Queryable,
  given: { chatId: string; personIds: readonly number[] },
): Promise<Map<number, MemberRow>> {
  const { rows } = await db.query<MemberRow>(
    `select ${memberColumns} from chat.members m join chat.people p on p.id = m.person_id
     where m.chat_id = $1 and m.person_id = any($2::bigint[]) and m.left_at is null`,
    [given.chatId, given.personIds],
  )
  return new Map(rows.map(row => [row.person_id, row]))
}

/** In the order of names, from behind `after`. */
export async function listMembers(
  db: Queryable,
  given: { chatId: string; after: string; limit: number },
): Promise<(MemberRow & { name: string })[]> {
  const { rows } = await db.query<MemberRow & { name: string }>(
    `select ${memberColumns}, p.name from chat.members m join chat.people p on p.id = m.person_id
     where m.chat_id = $1 and m.left_at is null and p.name > $2 order by p.name limit $3`,
    [given.chatId, given.after, given.limit],
  )
  return rows
}

/**
 * Lets people in, or in again, under the lock of the chat. What was written before counts as read, so that nobody
 * begins with a thousand unread messages.
 */
export async function insertMembers(
  tx: Tx,
  given: { chatId: string; personIds: readonly number[]; role: Role; at: Date },
): Promise<void> {
  await tx.query(
    `with joined as (
       insert into chat.members as m (chat_id, person_id, role, joined_at, read_seq, delivered_seq)
       select c.id, person_id, $3, $4::timestamptz, c.last_seq, c.last_seq
       from chat.chats c, unnest($2::bigint[]) person_id where c.id = $1
       on conflict (chat_id, person_id) do update
         set role = excluded.role, joined_at = excluded.joined_at, left_at = null, muted_until = null,
             read_seq = greatest(m.read_seq, excluded.read_seq),
             delivered_seq = greatest(m.delivered_seq, excluded.delivered_seq)
       returning person_id)
     update chat.chats set members = members + (select count(*) from joined) where id = $1`,
    [given.chatId, given.personIds, given.role, given.at],
  )
}

export async function endMembership(tx: Tx, given: { chatId: string; personId: number; at: Date }): Promise<void> {
  await tx.query(
    `with ended as (
       update chat.members set left_at = $3, role = 'member' where chat_id = $1 and person_id = $2 returning 1)
     update chat.chats set members = members - (select count(*) from ended) where id = $1`,
    [given.chatId, given.personId, given.at],
  )
}

export async function updateRole(tx: Tx, given: { chatId: string; personId: number; role: Role }): Promise<void> {
  await tx.query(`update chat.members set role = $3 where chat_id = $1 and person_id = $2`, [
    given.chatId,
    given.personId,
    given.role,
  ])
}

/** False for one who is no member. */
export async function updateMute(
  db: Queryable,
  given: { chatId: string; personId: number; until: Date | null },
): Promise<boolean> {
  const { rowCount } = await db.query(
    `update chat.members set muted_until = $3 where chat_id = $1 and person_id = $2 and left_at is null`,
    [given.chatId, given.personId, given.until],
  )
  return rowCount > 0
}

// Invitations

export async function insertInvitation(
  tx: Tx,
  given: { digest: Buffer; chatId: string; madeBy: number; uses: number; expiresAt: Date },
): Promise<void> {
  await tx.query(
    `insert into chat.invitations (digest, chat_id, made_by, uses_left, expires_at) values ($1, $2, $3, $4, $5)`,
    [given.digest, given.chatId, given.madeBy, given.uses, given.expiresAt],
  )
}

/** The chat that an invitation is to, unless it has expired or is used up. */
export async function findInvitation(db: Queryable, given: { digest: Buffer; at: Date }): Promise<string | undefined> {
  const { rows } = await db.query<{ chat_id: string }>(
    `select chat_id from chat.invitations where digest = $1 and expires_at > $2 and uses_left > 0`,
    [given.digest, given.at],
  )
  return rows[0]?.chat_id
}

/** Uses it once. False when it has expired, is used up or was taken back meanwhile. */
export async function useInvitation(tx: Tx, given: { digest: Buffer; at: Date }): Promise<boolean> {
  const { rowCount } = await tx.query(
    `update chat.invitations set uses_left = uses_left - 1
     where digest = $1 and expires_at > $2 and uses_left > 0`,
    [given.digest, given.at],
  )
  return rowCount > 0
}

export async function deleteInvitations(tx: Tx, chatId: string): Promise<void> {
  await tx.query(`delete from chat.invitations where chat_id = $1`, [chatId])
}

/** Those that expired before an instant, a bounded number. */
export async function deleteOldInvitations(db: Queryable, given: { before: Date; limit: number }): Promise<void> {
  await db.query(
    `delete from chat.invitations where digest in (
       select digest from chat.invitations where expires_at < $1 limit $2)`,
    [given.before, given.limit],
  )
}
