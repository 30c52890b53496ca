/** What goes over the wire. Ids and money are texts of digits: JSON numbers are not exact past 2^53. */
import { type Static, Type } from 'typebox'
import { isAppError } from '#platform/errors.ts'
import { nullable, time } from '#platform/http/schema.ts'
import type { Sides } from './ledger.ts'
import type { Currencies } from './money.ts'
import type { AccountRow } from './store.ts'
import type { Done, Hold, Transfer } from './types.ts'

const id = Type.String({ pattern: '^\\d+$', examples: ['42'] })
const money = Type.String({ pattern: '^-?\\d+$', examples: ['1050'], description: 'Minor units.' })
const Metadata = Type.Union([Type.Record(Type.String(), Type.Unknown()), Type.Null()])

export const Account = Type.Object({
  id,
  owner: Type.String(),
  currency: Type.String(),
  exponent: Type.Integer({ description: 'Digits after the point: 2 means that 1050 is 10.50.' }),
  name: Type.String(),
  status: Type.Enum(['open', 'closed']),
  balance: money,
  pending_in: money,
  pending_out: money,
  available: nullable(money),
  floor: nullable(money),
  version: Type.Integer({ description: 'The number of its newest entry.' }),
  metadata: Metadata,
  created_at: time,
  closed_at: nullable(time),
})

const statuses = ['posted', 'pending', 'voided', 'expired'] as const

export const TransferShape = Type.Object({
  id,
  status: Type.Enum(statuses),
  kind: Type.Enum(['transfer', 'deposit', 'withdrawal', 'post', 'reversal', 'hold']),
  from: id,
  to: id,
  amount: money,
  currency: Type.String(),
  from_balance: nullable(Type.String({ description: 'After the transfer; null unless the account is yours.' })),
  from_version: nullable(Type.Integer()),
  to_balance: nullable(money),
  to_version: nullable(Type.Integer()),
  hold_id: nullable(Type.String({ description: 'The pending transfer that this one posts.' })),
  reverses_id: nullable(Type.String({ description: 'The transfer that this one takes back.' })),
  posted_by_id: nullable(Type.String({ description: 'The transfer that posted this pending one.' })),
  expires_at: nullable(time),
  settled_at: nullable(time),
  made_by: Type.String(),
  metadata: Metadata,
  created_at: time,
})

export const Entry = Type.Object({
  version: Type.Integer(),
  amount: money,
  balance: money,
  currency: Type.String(),
  kind: Type.String(),
  transfer_id: id,
  other_account_id: id,
  created_at: time,
})

export const LineOutcome = Type.Object({
  id: Type.Optional(id),
  status: Type.Optional(Type.Enum(statuses)),
  error: Type.Optional(
    Type.Object({
      code: Type.String(),
      status: Type.Integer(),
      detail: Type.String(),
      details: Type.Optional(Type.Record(Type.String(), Type.Unknown())),
    }),
  ),
})

export function showAccount(row: AccountRow, currencies: Currencies): Static<typeof Account> {
  const floor = row.floor === null ? null : BigInt(row.floor)
  return {
    id: String(row.id),
    owner: row.owner_name,
    currency: row.currency,
    exponent: currencies.get(row.currency) ?? 0,
    name: row.name,
    status: row.closed_at ? 'closed' : 'open',
    balance: row.balance,
    pending_in: row.pending_in,
    pending_out: row.pending_out,
    available: floor === null ? null : String(BigInt(row.balance) - BigInt(row.pending_out) - floor),
    floor: row.floor,
    version: row.version,
    metadata: row.metadata as Static<typeof Metadata>,
    created_at: row.created_at.toISOString(),
    closed_at: row.closed_at?.toISOString() ?? null,
  }
}

export function showDone(done: Done, sides: Sides): Static<typeof TransferShape> {
  return 'transfer' in done ? showTransfer(done.transfer, sides) : showHold(done.hold)
}

/** @param sides whose balances are shown */
export function showTransfer(transfer: Transfer, sides: Sides): Static<typeof TransferShape> {
  return {
    id: String(transfer.id),
    status: 'posted',
    kind: transfer.kind,
    from: String(transfer.fromId),
    to: String(transfer.toId),
    amount: String(transfer.amount),
    currency: transfer.currency,
    from_balance: sides.from ? String(transfer.fromBalance) : null,
    from_version: sides.from ? transfer.fromVersion : null,
    to_balance: sides.to ? String(transfer.toBalance) : null,
    to_version: sides.to ? transfer.toVersion : null,
    hold_id: textOf(transfer.holdId),
    reverses_id: textOf(transfer.reversesId),
    posted_by_id: null,
    expires_at: null,
    settled_at: null,
    made_by: transfer.madeBy,
    metadata: transfer.metadata === null ? null : JSON.parse(transfer.metadata),
    created_at: transfer.createdAt.toISOString(),
  }
}

export function showHold(hold: Hold): Static<typeof TransferShape> {
  return {
    id: String(hold.id),
    status: hold.status === 'open' ? 'pending' : hold.status,
    kind: 'hold',
    from: String(hold.fromId),
    to: String(hold.toId),
    amount: String(hold.amount),
    currency: hold.currency,
    from_balance: null,
    from_version: null,
    to_balance: null,
    to_version: null,
    hold_id: null,
    reverses_id: null,
    posted_by_id: textOf(hold.transferId),
    expires_at: hold.expiresAt.toISOString(),
    settled_at: hold.settledAt?.toISOString() ?? null,
    made_by: hold.madeBy,
    metadata: hold.metadata === null ? null : JSON.parse(hold.metadata),
    created_at: hold.createdAt.toISOString(),
  }
}

/** A hold as it was made, whatever became of it since: a repeated request gets the first answer. */
export function asMade(done: Done): Done {
  if ('transfer' in done) return done
  return { hold: { ...done.hold, status: 'open', transferId: null, settledAt: null } }
}

/** @throws what is not meant for callers */
export function showOutcome(outcome: { value: Done } | { error: unknown }): Static<typeof LineOutcome> {
  if ('value' in outcome) {
    const { value } = outcome
    return 'transfer' in value
      ? { id: String(value.transfer.id), status: 'posted' }
      : { id: String(value.hold.id), status: value.hold.status === 'voided' ? 'voided' : 'pending' }
  }
  const { error } = outcome
  if (!isAppError(error)) throw error
  const { code, status, message, details } = error
  return { error: { code, status, detail: message, ...(details ? { details } : {}) } }
}

function textOf(number: number | null): string | null {
  return number === null ? null : String(number)
}
