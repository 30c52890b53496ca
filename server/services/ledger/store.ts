import type { Queryable, Tx } from '#platform/database/pool.ts'
import type { Account, Hold, StoredKey, Transfer } from './types.ts'

// What a batch locks, finds and writes: in a transaction with `byIdsParameters`, so that the plan that is kept goes by
// the indexes however small the tables were when it was made.

interface LockedRow {
  id: number
  owner: string
  currency: string
  balance: string
  pending_in: string
  pending_out: string
  floor: string | null
  version: number
  is_closed: boolean
  moved_at: Date
}

/** Locks in the order of ids, which all batches keep to, so that none waits for another in a circle. */
export async function lockAccounts(tx: Tx, ids: readonly number[]): Promise<Map<number, Account>> {
  const { rows } = await tx.query<LockedRow>(
    `select id, owner, currency, balance::text, pending_in::text, pending_out::text, floor::text, version,
            closed_at is not null as is_closed, moved_at
     from ledger.accounts where id = any($1::bigint[]) order by id for no key update`,
    [toArray(ids)],
  )
  return new Map(rows.map(row => [row.id, toAccount(row)]))
}

function toAccount(row: LockedRow): Account {
  return {
    id: row.id,
    owner: row.owner,
    currency: row.currency,
    balance: BigInt(row.balance),
    pendingIn: BigInt(row.pending_in),
    pendingOut: BigInt(row.pending_out),
    floor: row.floor === null ? null : BigInt(row.floor),
    version: row.version,
    isClosed: row.is_closed,
    movedAt: row.moved_at,
  }
}

interface TransferRow {
  id: number
  from_id: number
  to_id: number
  amount: string
  currency: string
  kind: Transfer['kind']
  from_version: number
  from_balance: string
  to_version: number
  to_balance: string
  hold_id: number | null
  reverses_id: number | null
  made_by: string
  metadata: string | null
  created_at: Date
  idempotency: string | null
  fingerprint: string | null
}

const transferColumns = `id, from_id, to_id, amount::text, currency, kind, from_version, from_balance::text, to_version,
  to_balance::text, hold_id, reverses_id, made_by, metadata::text, created_at, idempotency, fingerprint`

function toTransfer(row: TransferRow): Transfer {
  return {
    id: row.id,
    fromId: row.from_id,
    toId: row.to_id,
    amount: BigInt(row.amount),
    currency: row.currency,
    kind: row.kind,
    fromVersion: row.from_version,
    fromBalance: BigInt(row.from_balance),
    toVersion: row.to_version,
    toBalance: BigInt(row.to_balance),
    holdId: row.hold_id,
    reversesId: row.reverses_id,
    madeBy: row.made_by,
    metadata: row.metadata,
    createdAt: row.created_at,
    key: toKey(row.idempotency, row.fingerprint),
  }
}

interface HoldRow {
  id: number
  from_id: number
  to_id: number
  amount: string
  currency: string
  status: Hold['status']
  transfer_id: number | null
  made_by: string
  metadata: string | null
  created_at: Date
  expires_at: Date
  settled_at: Date | null
  idempotency: string | null
  fingerprint: string | null
  void_idempotency: string | null
  void_fingerprint: string | null
}

const holdColumns = `id, from_id, to_id, amount::text, currency, status, transfer_id, made_by, metadata::text, created_at,
  expires_at, settled_at, idempotency, fingerprint, void_idempotency, void_fingerprint`

function toHold(row: HoldRow): Hold {
  return {
    id: row.id,
    fromId: row.from_id,
    toId: row.to_id,
    amount: BigInt(row.amount),
    currency: row.currency,
    status: row.status,
    transferId: row.transfer_id,
    madeBy: row.made_by,
    metadata: row.metadata,
    createdAt: row.created_at,
    expiresAt: row.expires_at,
    settledAt: row.settled_at,
    key: toKey(row.idempotency, row.fingerprint),
    voidKey: toKey(row.void_idempotency, row.void_fingerprint),
  }
}

function toKey(id: string | null, fingerprint: string | null): StoredKey | null {
  return id === null ? null : { id: id.replaceAll('-', ''), fingerprint: fingerprint!.replaceAll('-', '') }
}

export async function lockHolds(tx: Tx, ids: readonly number[]): Promise<Map<number, Hold>> {
  const { rows } = await tx.query<HoldRow>(
    `select ${holdColumns} from ledger.holds where id = any($1::bigint[]) order by id for no key update`,
    [toArray(ids)],
  )
  return new Map(rows.map(row => [row.id, toHold(row)]))
}

export async function findTransfers(db: Queryable, ids: readonly number[]): Promise<Map<number, Transfer>> {
  const { rows } = await db.query<TransferRow>(
    `select ${transferColumns} from ledger.transfers where id = any($1::bigint[])`,
    [toArray(ids)],
  )
  return new Map(rows.map(row => [row.id, toTransfer(row)]))
}

/** By the reversed transfer's id, the reversal's. */
export async function findReversals(tx: Tx, ids: readonly number[]): Promise<Map<number, number>> {
  const { rows } = await tx.query<{ id: number; reverses_id: number }>(
    `select id, reverses_id from ledger.transfers where reverses_id = any($1::bigint[])`,
    [toArray(ids)],
  )
  return new Map(rows.map(row => [row.reverses_id, row.id]))
}

/** The transfers and holds that were made, and the holds that were voided, with these keys. */
export async function findKeyed(
  tx: Tx,
  keys: readonly string[],
): Promise<{ transferIds: number[]; holdIds: number[] }> {
  const { rows } = await tx.query<{ transfer_id: number | null; hold_id: number | null }>(
    `select id as transfer_id, null::bigint as hold_id from ledger.transfers where idempotency = any($1::uuid[])
     union all
     select null, id from ledger.holds where idempotency = any($1::uuid[])
     union all
     select null, id from ledger.holds where void_idempotency = any($1::uuid[])`,
    [toArray(keys)],
  )
  return {
    transferIds: rows.flatMap(row => row.transfer_id ?? []),
    holdIds: rows.flatMap(row => row.hold_id ?? []),
  }
}

export async function findHolds(db: Queryable, ids: readonly number[]): Promise<Map<number, Hold>> {
  const { rows } = await db.query<HoldRow>(`select ${holdColumns} from ledger.holds where id = any($1::bigint[])`, [
    toArray(ids),
  ])
  return new Map(rows.map(row => [row.id, toHold(row)]))
}

/** A block of free transfer ids: the first, and how many. They are burnt when nobody uses them. */
export async function takeIdBlock(db: Queryable): Promise<{ first: number; count: number }> {
  const { rows } = await db.query<{ first: number }>(`select nextval('ledger.transfer_ids') as first`)
  return { first: rows[0]!.first, count: idBlockSize }
}

/** The sequence's increment. */
export const idBlockSize = 20_000

// What a batch writes

/** One net update an account, one row a transfer, and the note for the chain: one statement. */
export function writeBatch(tx: Tx, given: { accounts: readonly Account[]; transfers: readonly Transfer[]; at: Date }) {
  const { accounts, transfers, at } = given
  tx.send(
    `with moved as (
       update ledger.accounts a
       set balance = n.balance, pending_in = n.pending_in, pending_out = n.pending_out, version = n.version,
           moved_at = $6::timestamptz
       from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
         n(id, balance, pending_in, pending_out, version)
       where a.id = n.id),
     noted as (
       insert into ledger.unchained (first_id, last_id, transfers)
       select min(id), max(id), count(*) from unnest($7::bigint[]) id having count(*) > 0)
     insert into ledger.transfers (id, from_id, to_id, amount, from_version, from_balance, to_version, to_balance,
       hold_id, reverses_id, idempotency, fingerprint, currency, kind, made_by, metadata, created_at)
     select *, $6::timestamptz
     from unnest($7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[],
       $14::bigint[], $15::bigint[], $16::bigint[], $17::uuid[], $18::uuid[], $19::text[], $20::text[], $21::text[],
       $22::jsonb[])`,
    [
      toArray(accounts, account => account.id),
      toArray(accounts, account => account.balance),
      toArray(accounts, account => account.pendingIn),
      toArray(accounts, account => account.pendingOut),
      toArray(accounts, account => account.version),
      at,
      toArray(transfers, transfer => transfer.id),
      toArray(transfers, transfer => transfer.fromId),
      toArray(transfers, transfer => transfer.toId),
      toArray(transfers, transfer => transfer.amount),
      toArray(transfers, transfer => transfer.fromVersion),
      toArray(transfers, transfer => transfer.fromBalance),
      toArray(transfers, transfer => transfer.toVersion),
      toArray(transfers, transfer => transfer.toBalance),
      toArray(transfers, transfer => transfer.holdId),
      toArray(transfers, transfer => transfer.reversesId),
      toArray(transfers, transfer => transfer.key?.id),
      toArray(transfers, transfer => transfer.key?.fingerprint),
      toTextArray(transfers, transfer => transfer.currency),
      toTextArray(transfers, transfer => transfer.kind),
      toTextArray(transfers, transfer => transfer.madeBy),
      toTextArray(transfers, transfer => transfer.metadata),
    ],
  )
}

export function insertHolds(tx: Tx, holds: readonly Hold[]) {
  tx.send(
    `insert into ledger.holds (id, from_id, to_id, amount, currency, made_by, metadata, created_at, expires_at,
       idempotency, fingerprint)
     select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::jsonb[],
       $8::timestamptz[], $9::timestamptz[], $10::uuid[], $11::uuid[])`,
    [
      toArray(holds, hold => hold.id),
      toArray(holds, hold => hold.fromId),
      toArray(holds, hold => hold.toId),
      toArray(holds, hold => hold.amount),
      toTextArray(holds, hold => hold.currency),
      toTextArray(holds, hold => hold.madeBy),
      toTextArray(holds, hold => hold.metadata),
      toTimeArray(holds, hold => hold.createdAt),
      toTimeArray(holds, hold => hold.expiresAt),
      toArray(holds, hold => hold.key?.id),
      toArray(holds, hold => hold.key?.fingerprint),
    ],
  )
}

export function settleHolds(tx: Tx, holds: readonly Hold[]) {
  tx.send(
    `update ledger.holds h
     set status = n.status, transfer_id = n.transfer_id, settled_at = n.settled_at,
         void_idempotency = n.void_idempotency, void_fingerprint = n.void_fingerprint
     from unnest($1::bigint[], $2::text[], $3::bigint[], $4::timestamptz[], $5::uuid[], $6::uuid[])
       n(id, status, transfer_id, settled_at, void_idempotency, void_fingerprint)
     where h.id = n.id`,
    [
      toArray(holds, hold => hold.id),
      toTextArray(holds, hold => hold.status),
      toArray(holds, hold => hold.transferId),
      toTimeArray(holds, hold => hold.settledAt!),
      toArray(holds, hold => hold.voidKey?.id),
      toArray(holds, hold => hold.voidKey?.fingerprint),
    ],
  )
}

// Arrays are written here, not by `pg`, which takes three times as long: at thousands of rows a batch that shows.

type Plain = number | bigint | string | null | undefined

/** Of numbers, ids and whatever else needs no quotes. */
function toArray<T = Plain>(items: readonly T[], pick: (item: T) => Plain = item => item as Plain): string {
  let text = '{'
  for (let index = 0; index < items.length; index++) {
    if (index > 0) text += ','
    text += pick(items[index]!) ?? 'NULL'
  }
  return `${text}}`
}

function toTimeArray<T>(items: readonly T[], pick: (item: T) => Date): string {
  return toArray(items, item => `"${pick(item).toISOString()}"`)
}

function toTextArray<T>(items: readonly T[], pick: (item: T) => string | null): string {
  return toArray(items, item => {
    const text = pick(item)
    if (text === null) return 'NULL'
    return /["\\]/.test(text) ? `"${text.replace(/["\\]/g, '\\$&')}"` : `"${text}"`
  })
}

// Accounts

export interface AccountRow {
  id: number
  owner: string
  owner_name: string
  currency: string
  name: string
  balance: string
  pending_in: string
  pending_out: string
  floor: string | null
  version: number
  metadata: unknown
  created_at: Date
  closed_at: Date | null
}

const accountColumns = `id, owner, owner_name, currency, name, balance::text, pending_in::text, pending_out::text,
  floor::text, version, metadata, created_at, closed_at`

/** Undefined when the owner has one of that currency and name, or has too many. */
export async function insertAccount(
  db: Queryable,
  account: {
    owner: string
    ownerName: string
    currency: string
    name: string
    floor: bigint | null
    metadata: string | null
    at: Date
    /** Most accounts of the owner. */
    max: number
  },
): Promise<AccountRow | undefined> {
  const { rows } = await db.query<AccountRow>(
    `insert into ledger.accounts (owner, owner_name, currency, name, floor, metadata, created_at, moved_at)
     select $1, $2, $3, $4, $5::bigint, $6::jsonb, $7::timestamptz, $7::timestamptz
     where (select count(*) from ledger.accounts where owner = $1) < $8
     on conflict (owner, currency, name) where closed_at is null do nothing
     returning ${accountColumns}`,
    [
      account.owner,
      account.ownerName,
      account.currency,
      account.name,
      account.floor,
      account.metadata,
      account.at,
      account.max,
    ],
  )
  return rows[0]
}

export async function findOpenAccount(
  db: Queryable,
  given: { owner: string; currency: string; name: string },
): Promise<AccountRow | undefined> {
  const { rows } = await db.query<AccountRow>(
    `select ${accountColumns} from ledger.accounts
     where owner = $1 and currency = $2 and name = $3 and closed_at is null`,
    [given.owner, given.currency, given.name],
  )
  return rows[0]
}

export async function findAccounts(db: Queryable, ids: readonly number[]): Promise<Map<number, AccountRow>> {
  const { rows } = await db.query<AccountRow>(
    `select ${accountColumns} from ledger.accounts where id = any($1::bigint[])`,
    [toArray(ids)],
  )
  return new Map(rows.map(row => [row.id, row]))
}

/** In the order of ids, from above `after`. */
export async function listAccounts(
  db: Queryable,
  given: { owner: string; after: number; limit: number; offset?: number },
): Promise<AccountRow[]> {
  const { rows } = await db.query<AccountRow>(
    `select ${accountColumns} from ledger.accounts where owner = $1 and id > $2 order by id limit $3 offset $4`,
    [given.owner, given.after, given.limit, given.offset ?? 0],
  )
  return rows
}

export async function closeAccount(tx: Tx, given: { id: number; at: Date }): Promise<AccountRow> {
  const { rows } = await tx.query<AccountRow>(
    `update ledger.accounts set closed_at = $2 where id = $1 returning ${accountColumns}`,
    [given.id, given.at],
  )
  return rows[0]!
}

// Reading what happened

/** Of an account, newest ids first, from below `before`. */
export async function listTransfers(
  db: Queryable,
  given: { accountId: number; before: { version: number } | undefined; limit: number },
): Promise<{ version: number; transfer: Transfer }[]> {
  const { rows } = await db.query<TransferRow & { version: number }>(
    `(select from_version as version, ${transferColumns} from ledger.transfers
      where from_id = $1 and from_version < $2 order by from_version desc limit $3)
     union all
     (select to_version, ${transferColumns} from ledger.transfers
      where to_id = $1 and to_version < $2 order by to_version desc limit $3)
     order by version desc limit $3`,
    [given.accountId, given.before?.version ?? Number.MAX_SAFE_INTEGER, given.limit],
  )
  return rows.map(row => ({ version: row.version, transfer: toTransfer(row) }))
}

/** Of an account, newest first, from below `before`. */
export async function listHolds(
  db: Queryable,
  given: { accountId: number; before: number; limit: number },
): Promise<Hold[]> {
  const { rows } = await db.query<HoldRow>(
    `(select ${holdColumns} from ledger.holds where from_id = $1 and id < $2 order by id desc limit $3)
     union all
     (select ${holdColumns} from ledger.holds where to_id = $1 and id < $2 order by id desc limit $3)
     order by id desc limit $3`,
    [given.accountId, given.before, given.limit],
  )
  return rows.map(toHold)
}

export interface EntryRow {
  version: number
  amount: string
  balance: string
  transfer_id: number
  other_id: number
  currency: string
  kind: Transfer['kind']
  created_at: Date
}

/** Entries numbered above `after`, up to `upTo`, oldest first. */
export async function listEntries(
  db: Queryable,
  given: { accountId: number; after: number; upTo?: number | undefined; limit: number },
): Promise<EntryRow[]> {
  const { rows } = await db.query<EntryRow>(
    `select version, amount::text, balance::text, transfer_id, other_id, currency, kind, created_at
     from ledger.entries where account_id = $1 and version > $2 and version <= $3 order by version limit $4`,
    [given.accountId, given.after, given.upTo ?? Number.MAX_SAFE_INTEGER, given.limit],
  )
  return rows
}

/** How many entries an account had before an instant. */
export async function versionBefore(db: Queryable, given: { accountId: number; at: Date }): Promise<number> {
  const { rows } = await db.query<{ version: number }>(`select ledger.version_before($1, $2) as version`, [
    given.accountId,
    given.at,
  ])
  return rows[0]!.version
}

export async function listHeads(db: Queryable, ids: readonly number[]): Promise<Map<string, number>> {
  const { rows } = await db.query<{ id: number; version: number }>(
    `select id, version from ledger.accounts where id = any($1::bigint[])`,
    [toArray(ids)],
  )
  return new Map(rows.map(row => [String(row.id), row.version]))
}
