/** What must be true of the ledger's tables at any moment: recomputed here, in other words than `verify` has. */
import assert from 'node:assert/strict'

interface AccountRow {
  id: string
  currency: string
  balance: string
  pending_in: string
  pending_out: string
  floor: string | null
  version: string
}

interface TransferRow {
  id: string
  from_id: string
  to_id: string
  amount: string
  currency: string
  kind: string
  from_version: string
  from_balance: string
  to_version: string
  to_balance: string
  hold_id: string | null
  reverses_id: string | null
  key: string | null
}

interface HoldRow {
  id: string
  from_id: string
  to_id: string
  amount: string
  status: string
  key: string | null
}

interface Leg {
  transferId: string
  version: number
  amount: bigint
  balance: bigint
}

type Query = <R extends object>(text: string) => Promise<R[]>

/** @param query asks for rows of texts, as of one moment or while nobody writes */
export async function assertBooks(query: Query) {
  const accounts = await query<AccountRow>(
    `select id::text, currency, balance::text, pending_in::text, pending_out::text, floor::text, version::text
     from ledger.accounts`,
  )
  const transfers = await query<TransferRow>(
    `select id::text, from_id::text, to_id::text, amount::text, currency, kind, from_version::text, from_balance::text,
            to_version::text, to_balance::text, hold_id::text, reverses_id::text, idempotency::text as key
     from ledger.transfers`,
  )
  const holds = await query<HoldRow>(
    `select id::text, from_id::text, to_id::text, amount::text, status, idempotency::text as key from ledger.holds`,
  )
  const legs = legsOf(transfers)
  for (const account of accounts) assertAccount(account, legs.get(account.id) ?? [], holds)
  for (const [currency, some] of Map.groupBy(accounts, account => account.currency))
    assert.equal(total(some.map(account => BigInt(account.balance))), 0n, `the balances of ${currency} come to zero`)
  assertHolds(holds, transfers)
  assertReversals(transfers)
  const keys = [...transfers, ...holds].flatMap(row => row.key ?? [])
  assert.equal(new Set(keys).size, keys.length, 'a key has made one thing')
}

/** Each transfer has two. */
function legsOf(transfers: TransferRow[]): Map<string, Leg[]> {
  const legs = new Map<string, Leg[]>()
  const add = (account: string, leg: Leg) => legs.set(account, [...(legs.get(account) ?? []), leg])
  for (const row of transfers) {
    const amount = BigInt(row.amount)
    const { id: transferId } = row
    add(row.from_id, {
      transferId,
      version: Number(row.from_version),
      amount: -amount,
      balance: BigInt(row.from_balance),
    })
    add(row.to_id, { transferId, version: Number(row.to_version), amount, balance: BigInt(row.to_balance) })
  }
  return legs
}

function assertAccount(account: AccountRow, legs: Leg[], holds: HoldRow[]) {
  let balance = 0n
  const inOrder = legs.toSorted((a, b) => a.version - b.version)
  for (const [index, leg] of inOrder.entries()) {
    assert.equal(leg.version, index + 1, `entries of account ${account.id} are numbered without a gap`)
    balance += leg.amount
    assert.equal(leg.balance, balance, `account ${account.id} after transfer ${leg.transferId}`)
  }
  const open = holds.filter(hold => hold.status === 'open')
  const pending = (side: 'from_id' | 'to_id') =>
    total(open.filter(hold => hold[side] === account.id).map(hold => BigInt(hold.amount)))
  assert.deepEqual(
    [account.version, account.balance, account.pending_in, account.pending_out],
    [legs.length, balance, pending('to_id'), pending('from_id')].map(String),
    `account ${account.id} is what its entries and open holds come to`,
  )
  if (account.floor !== null)
    assert.ok(balance - pending('from_id') >= BigInt(account.floor), `${account.id} overdrawn`)
}

function assertHolds(holds: HoldRow[], transfers: TransferRow[]) {
  const posts = Map.groupBy(
    transfers.filter(row => row.hold_id !== null),
    row => row.hold_id,
  )
  for (const hold of holds) {
    const made = posts.get(hold.id) ?? []
    assert.equal(made.length, hold.status === 'posted' ? 1 : 0, `hold ${hold.id} is ${hold.status}`)
    for (const { amount } of made) assert.ok(BigInt(amount) <= BigInt(hold.amount), `hold ${hold.id} posted beyond it`)
    posts.delete(hold.id)
  }
  assert.equal(posts.size, 0, 'what is posted was a hold')
}

function assertReversals(transfers: TransferRow[]) {
  const byId = new Map(transfers.map(row => [row.id, row]))
  const reversals = transfers.filter(row => row.reverses_id !== null)
  assert.equal(new Set(reversals.map(row => row.reverses_id)).size, reversals.length, 'each is reversed once')
  for (const reversal of reversals) {
    const original = byId.get(reversal.reverses_id!)
    assert.deepEqual([reversal.amount, reversal.from_id], [original?.amount, original?.to_id])
  }
}

function total(amounts: bigint[]): bigint {
  return amounts.reduce((sum, amount) => sum + amount, 0n)
}
