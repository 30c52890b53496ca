/** The statements about people. */
import { toTextArray } from '#platform/database/arrays.ts'
import type { Queryable } from '#platform/database/pool.ts'

export interface PersonRow {
  id: number
  user_id: string | null
  /** In lower case. */
  name: string
  shown: string
}

export async function findByUserIds(db: Queryable, userIds: readonly string[]): Promise<PersonRow[]> {
  const { rows } = await db.query<PersonRow>(
    `select id, user_id, name, shown from chat.people where user_id = any($1::text[])`,
    [toTextArray(userIds, id => id)],
  )
  return rows
}

/** @param names in lower case */
export async function findByNames(db: Queryable, names: readonly string[]): Promise<PersonRow[]> {
  const { rows } = await db.query<PersonRow>(
    `select id, user_id, name, shown from chat.people where name = any($1::text[])`,
    [toTextArray(names, name => name)],
  )
  return rows
}

/** Makes people of users, or gives them the people who were named like them before they had registered. */
export async function claimPeople(
  db: Queryable,
  users: readonly { userId: string; name: string }[],
): Promise<PersonRow[]> {
  const values = [
    toTextArray(users, user => user.userId),
    toTextArray(users, user => lower(user.name)),
    toTextArray(users, user => user.name),
  ]
  // Another process may do the same just now, so both conflicts, of ids and of names, must be nothing to raise.
  await db.query(
    `insert into chat.people (user_id, name, shown)
     select * from unnest($1::text[], $2::text[], $3::text[]) u(user_id, name, shown) order by name
     on conflict do nothing`,
    values,
  )
  await db.query(
    `update chat.people p set user_id = u.user_id, shown = u.shown
     from unnest($1::text[], $2::text[], $3::text[]) u(user_id, name, shown)
     where p.name = u.name and p.user_id is null`,
    values,
  )
  return findByUserIds(
    db,
    users.map(user => user.userId),
  )
}

/** Makes people of names nobody has registered. Those that are there already stay as they are. */
export async function insertNames(db: Queryable, names: readonly string[]) {
  await db.query(
    `insert into chat.people (name, shown)
     select distinct on (name) name, shown from unnest($1::text[], $2::text[]) n(name, shown) order by name
     on conflict (name) do nothing`,
    [toTextArray(names, lower), toTextArray(names, name => name)],
  )
}

/** As names are compared: here, as PostgreSQL's own `lower` depends on the locale of the database. */
export function lower(name: string): string {
  return name.toLowerCase()
}

export async function insertBlock(db: Queryable, block: { blockerId: number; blockedId: number; at: Date }) {
  await db.query(
    `insert into chat.blocks (blocker_id, blocked_id, created_at) values ($1, $2, $3) on conflict do nothing`,
    [block.blockerId, block.blockedId, block.at],
  )
}

export async function deleteBlock(db: Queryable, block: { blockerId: number; blockedId: number }) {
  await db.query(`delete from chat.blocks where blocker_id = $1 and blocked_id = $2`, [
    block.blockerId,
    block.blockedId,
  ])
}

/** Whether the one blocks the other. */
export async function isBlocked(
  db: Queryable,
  { blockerId, blockedId }: { blockerId: number; blockedId: number },
): Promise<boolean> {
  const { rows } = await db.query(`select from chat.blocks where blocker_id = $1 and blocked_id = $2`, [
    blockerId,
    blockedId,
  ])
  return rows.length > 0
}

/** Whom somebody blocks, in the order of names, from behind `after`. */
export async function listBlocked(
  db: Queryable,
  given: { blockerId: number; after: string; limit: number },
): Promise<{ name: string; shown: string; created_at: Date }[]> {
  const { rows } = await db.query<{ name: string; shown: string; created_at: Date }>(
    `select p.name, p.shown, b.created_at from chat.blocks b join chat.people p on p.id = b.blocked_id
     where b.blocker_id = $1 and p.name > $2 order by p.name limit $3`,
    [given.blockerId, given.after, given.limit],
  )
  return rows
}
