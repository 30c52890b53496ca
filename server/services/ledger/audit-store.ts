/** The statements of the hash chain and of verify. */
import type { Queryable, Tx } from '#platform/database/pool.ts'

export interface LinkRow {
  seq: number
  first_id: number
  last_id: number
  transfers: number
  digest: Buffer
  hash: Buffer
}

/** One writer of the chain at a time, of all processes. False when there is one already. */
export async function lockChain(tx: Tx): Promise<boolean> {
  const { rows } = await tx.query<{ locked: boolean }>(
    `select pg_try_advisory_xact_lock('ledger.chain'::regclass::oid::integer, 0) as locked`,
  )
  return rows[0]!.locked
}

export async function findLastLink(db: Queryable): Promise<Pick<LinkRow, 'seq' | 'hash'> | undefined> {
  const { rows } = await db.query<Pick<LinkRow, 'seq' | 'hash'>>(
    `select seq, hash from ledger.chain order by seq desc limit 1`,
  )
  return rows[0]
}

/** Takes what waits to be chained, with its digests. */
export async function takeUnchained(tx: Tx, limit: number): Promise<Omit<LinkRow, 'seq' | 'hash'>[]> {
  const { rows } = await tx.query<Omit<LinkRow, 'seq' | 'hash'>>(
    `with taken as (
       delete from ledger.unchained
       where first_id in (select first_id from ledger.unchained order by first_id limit $1)
       returning first_id, last_id, transfers)
     select first_id, last_id, transfers, ledger.digest(first_id, last_id) as digest from taken order by first_id`,
    [limit],
  )
  return rows
}

export async function insertLinks(tx: Tx, links: readonly LinkRow[]) {
  await tx.query(
    `insert into ledger.chain (seq, first_id, last_id, transfers, digest, hash)
     select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::integer[], $5::bytea[], $6::bytea[])`,
    [
      links.map(link => link.seq),
      links.map(link => link.first_id),
      links.map(link => link.last_id),
      links.map(link => link.transfers),
      links.map(link => link.digest),
      links.map(link => link.hash),
    ],
  )
}

/** Links above a number, with the digest and the count that the transfers have now. */
export async function listLinks(
  db: Queryable,
  given: { after: number; limit: number },
): Promise<(LinkRow & { digest_now: Buffer; transfers_now: number })[]> {
  const { rows } = await db.query<LinkRow & { digest_now: Buffer; transfers_now: number }>(
    `select seq, first_id, last_id, transfers, digest, hash, ledger.digest(first_id, last_id) as digest_now,
            (select count(*)::integer from ledger.transfers t where t.id between first_id and last_id) as transfers_now
     from ledger.chain where seq > $1 order by seq limit $2`,
    [given.after, given.limit],
  )
  return rows
}

/** A sentence about one thing that is wrong. */
export interface Finding {
  what: string
}

export async function countTransfers(db: Queryable) {
  const { rows } = await db.query<{ transfers: number; accounts: number; unchained: number; in_unchained: number }>(
    `select (select count(*) from ledger.transfers) as transfers, (select count(*) from ledger.accounts) as accounts,
            (select count(*) from ledger.unchained) as unchained,
            (select coalesce(sum(transfers), 0)::bigint from ledger.unchained) as in_unchained`,
  )
  return rows[0]!
}

/** Accounts whose balance or version is not what their entries come to. */
export async function findWrongBalances(db: Queryable, limit: number): Promise<string[]> {
  return texts(
    await db.query<Finding>(
      `select format('Account %s has the balance %s and the version %s; its entries come to %s and are %s.',
                     a.id, a.balance, a.version, coalesce(e.total, 0), coalesce(e.entries, 0)) as what
       from ledger.accounts a
       left join (select account_id, sum(amount) as total, count(*) as entries from ledger.entries group by account_id) e
         on e.account_id = a.id
       where a.balance <> coalesce(e.total, 0) or a.version <> coalesce(e.entries, 0)
       order by a.id limit $1`,
      [limit],
    ),
  )
}

export async function findWrongPending(db: Queryable, limit: number): Promise<string[]> {
  return texts(
    await db.query<Finding>(
      `select format('Account %s has %s pending in and %s pending out; its open holds come to %s and %s.',
                     a.id, a.pending_in, a.pending_out, coalesce(h.total_in, 0), coalesce(h.total_out, 0)) as what
       from ledger.accounts a
       left join (
         select account_id, sum(amount_in) as total_in, sum(amount_out) as total_out
         from (select to_id as account_id, amount as amount_in, 0 as amount_out from ledger.holds where status = 'open'
               union all
               select from_id, 0, amount from ledger.holds where status = 'open') sides
         group by account_id) h on h.account_id = a.id
       where a.pending_in <> coalesce(h.total_in, 0) or a.pending_out <> coalesce(h.total_out, 0)
       order by a.id limit $1`,
      [limit],
    ),
  )
}

/** Entries whose version does not follow the one before, or whose balance is not the one before plus the amount. */
export async function findWrongEntries(db: Queryable, limit: number): Promise<string[]> {
  return texts(
    await db.query<Finding>(
      `select format('Entry %s of account %s (transfer %s) has the balance %s after %s; the entry before it is %s with %s.',
                     version, account_id, transfer_id, balance, amount, version_before, balance_before) as what
       from (select account_id, version, transfer_id, amount, balance,
                    lag(version, 1, 0::bigint) over entries as version_before,
                    lag(balance, 1, 0::bigint) over entries as balance_before
             from ledger.entries window entries as (partition by account_id order by version)) numbered
       where version <> version_before + 1 or balance::numeric <> balance_before::numeric + amount
       order by account_id, version limit $1`,
      [limit],
    ),
  )
}

export async function findWrongParties(db: Queryable, limit: number): Promise<string[]> {
  return texts(
    await db.query<Finding>(
      `select format('Transfer %s of %s is between account %s (%s) and account %s (%s).', t.id, t.currency,
                     t.from_id, coalesce(f.currency, 'unknown'), t.to_id, coalesce(o.currency, 'unknown')) as what
       from ledger.transfers t
       left join ledger.accounts f on f.id = t.from_id
       left join ledger.accounts o on o.id = t.to_id
       where f.currency is distinct from t.currency or o.currency is distinct from t.currency
       order by t.id limit $1`,
      [limit],
    ),
  )
}

/** Holds that are posted by no transfer, by more than they are of, or between other accounts. */
export async function findWrongHolds(db: Queryable, limit: number): Promise<string[]> {
  return texts(
    await db.query<Finding>(
      `select format('Hold %s of %s is %s; the transfer that posts it is %s of %s.', h.id, h.amount, h.status,
                     coalesce(t.id::text, 'none'), coalesce(t.amount::text, 'nothing')) as what
       from ledger.holds h
       full join (select * from ledger.transfers where hold_id is not null) t on t.hold_id = h.id
       where (h.id is null) or (h.status = 'posted') <> (t.id is not null)
          or (t.id is not null and (h.transfer_id, h.from_id, h.to_id) is distinct from (t.id, t.from_id, t.to_id))
          or t.amount > h.amount
       order by h.id limit $1`,
      [limit],
    ),
  )
}

export async function findWrongSums(db: Queryable, limit: number): Promise<string[]> {
  return texts(
    await db.query<Finding>(
      `select format('The balances of %s come to %s and not to zero.', currency, sum(balance)) as what
       from ledger.accounts group by currency having sum(balance) <> 0 order by currency limit $1`,
      [limit],
    ),
  )
}

export async function readAlike(tx: Tx) {
  await tx.query('set transaction isolation level repeatable read, read only')
}

function texts({ rows }: { rows: Finding[] }): string[] {
  return rows.map(row => row.what)
}
