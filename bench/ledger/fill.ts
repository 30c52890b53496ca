/** A ledger that has stored millions of transfers, as it would lie there after years. */
import type { Database } from '../../server/platform/database/pool.ts'

/** As many as a full batch writes, so that the hash chain's links are as long as they would be. */
const linkTransfers = 8000

/**
 * Every account pays the next one, round after round. The books are right, so that they can be verified: in each round
 * an account first pays (its balance is -1) and then is paid (0).
 */
export async function fillTransfers(db: Database, given: { count: number; accounts: number }) {
  const { count, accounts } = given
  const indexes = await dropIndexes(db)
  await db.query(
    `insert into ledger.transfers (id, from_id, to_id, amount, from_version, from_balance, to_version, to_balance,
       created_at, idempotency, fingerprint, currency, kind, made_by)
     select n + 1, n % $2 + 1, (n + 1) % $2 + 1, 1, 2 * (n / $2) + 1, -1, 2 * (n / $2) + 2, 0,
       now() - interval '1 day', gen_random_uuid(), gen_random_uuid(), 'USD', 'transfer', 'bench'
     from generate_series(0, $1::bigint - 1) n`,
    [count, accounts],
  )
  for (const index of indexes) await db.query(index)
  await db.query(`update ledger.accounts set version = $1`, [(2 * count) / accounts])
  await db.query(
    `insert into ledger.unchained (first_id, last_id, transfers)
     select n, least(n + $2 - 1, $1), least($2, $1 - n + 1) from generate_series(1, $1::bigint, $2::bigint) n`,
    [count, linkTransfers],
  )
  await db.query(`select setval('ledger.transfer_ids', $1)`, [count + linkTransfers])
  await db.query('vacuum analyze ledger.transfers')
  await db.query('vacuum analyze ledger.accounts')
}

/** A table is filled several times as fast without them. Answers how they are made again. */
async function dropIndexes(db: Database): Promise<string[]> {
  const { rows } = await db.query<{ name: string; definition: string }>(
    `select indexrelid::regclass::text as name, pg_get_indexdef(indexrelid) as definition
     from pg_index where indrelid = 'ledger.transfers'::regclass and not indisprimary`,
  )
  for (const { name } of rows) await db.query(`drop index ${name}`)
  return rows.map(row => row.definition)
}
