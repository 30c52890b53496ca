/** Between the messages of proto/capstan/ledger/v1 and what the ledger's calls take and show. */
import { create, type JsonObject, type JsonValue, type MessageInitShape } from '@bufbuild/protobuf'
import { type Timestamp, timestampDate, timestampFromDate } from '@bufbuild/protobuf/wkt'
import type { Static } from 'typebox'
import { errors as platformErrors } from '#platform/errors.ts'
import { textsOf } from '#platform/rpc/status.ts'
import {
  type AccountSchema,
  AccountStatus,
  type EntrySchema,
  type Line,
  type LineOutcomeSchema,
  type NewTransfer,
  NewTransferSchema,
  TransferKind,
  type TransferSchema,
  TransferStatus,
} from '../../proto/capstan/ledger/v1/ledger_pb.js'
import { errors } from './errors.ts'
import type { showEntry } from './ledger.ts'
import { amountMax } from './money.ts'
import type * as shapes from './shapes.ts'

const limitMax = 1000
const limitDefault = 50

/** @throws validation_failed */
export function toPage({ limit, cursor }: { limit: number; cursor: string }) {
  if (limit < 0 || limit > limitMax) {
    const message = `\`limit\` is from 1 to ${limitMax}, or 0 for ${limitDefault}.`
    throw platformErrors.validation(message, [{ field: 'limit', message }])
  }
  return { limit: limit || limitDefault, cursor: cursor || undefined }
}

export function toRange({ from, to }: { from?: Timestamp | undefined; to?: Timestamp | undefined }) {
  return { from: from && toDate(from), to: to && toDate(to) }
}

/** @throws bad_range for a time that no Date holds */
export function toDate(time: Timestamp): Date {
  const date = timestampDate(time)
  if (Number.isNaN(date.getTime())) throw errors.badRange()
  return date
}

/**
 * A line as it is over HTTP, where unset fields are left out. Always in the same order, so that the same line has the
 * same fingerprint.
 */
export function toLine({ what, idempotencyKey, linked }: Line): Record<string, unknown> {
  const line = toWhat(what)
  if (idempotencyKey) line.idempotency_key = idempotencyKey
  if (linked) line.linked = true
  return line
}

function toWhat(what: Line['what']): Record<string, unknown> {
  switch (what.case) {
    case 'post': {
      const { id, amount } = what.value
      return { post: String(id), ...(amount !== undefined && { amount: String(amount) }) }
    }
    case 'void':
      return { void: String(what.value.id) }
    case 'reverse': {
      const { id, metadata } = what.value
      return { reverse: String(id), ...(metadata && { metadata: inOrder(metadata) }) }
    }
    default:
      // A line that is nothing is refused for what a transfer lacks.
      return toTransfer(what.value ?? create(NewTransferSchema))
  }
}

function toTransfer(transfer: NewTransfer): Record<string, unknown> {
  const { from, to, amount, currency, metadata, timeoutSeconds } = transfer
  const line: Record<string, unknown> = { from: String(from), to: String(to), amount: String(amount), currency }
  if (metadata) line.metadata = inOrder(metadata)
  if (transfer.pending) line.pending = true
  if (timeoutSeconds !== undefined) line.timeout_seconds = timeoutSeconds
  return line
}

/** Some clients send the fields of a map in another order each time. */
export function inOrder<T extends JsonValue | undefined>(value: T): T {
  if (Array.isArray(value)) return value.map(inOrder) as T
  if (typeof value !== 'object' || value === null) return value
  const fields = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))
  return Object.fromEntries(fields.map(([name, field]) => [name, inOrder(field)])) as T
}

export function fromAccount(shown: Static<typeof shapes.Account>): MessageInitShape<typeof AccountSchema> {
  return {
    id: BigInt(shown.id),
    owner: shown.owner,
    currency: shown.currency,
    exponent: shown.exponent,
    name: shown.name,
    status: shown.status === 'open' ? AccountStatus.OPEN : AccountStatus.CLOSED,
    balance: BigInt(shown.balance),
    pendingIn: BigInt(shown.pending_in),
    pendingOut: BigInt(shown.pending_out),
    available: shown.available === null ? undefined : least(BigInt(shown.available), amountMax),
    floor: bigintOf(shown.floor),
    version: BigInt(shown.version),
    metadata: metadataOf(shown.metadata),
    createdAt: timeOf(shown.created_at),
    closedAt: timeOf(shown.closed_at),
  }
}

export function fromTransfer(shown: Static<typeof shapes.TransferShape>): MessageInitShape<typeof TransferSchema> {
  return {
    id: BigInt(shown.id),
    status: statusOf(shown.status),
    kind: kindOf(shown.kind),
    from: BigInt(shown.from),
    to: BigInt(shown.to),
    amount: BigInt(shown.amount),
    currency: shown.currency,
    fromBalance: bigintOf(shown.from_balance),
    fromVersion: bigintOf(shown.from_version),
    toBalance: bigintOf(shown.to_balance),
    toVersion: bigintOf(shown.to_version),
    holdId: bigintOf(shown.hold_id),
    reversesId: bigintOf(shown.reverses_id),
    postedById: bigintOf(shown.posted_by_id),
    expiresAt: timeOf(shown.expires_at),
    settledAt: timeOf(shown.settled_at),
    madeBy: shown.made_by,
    metadata: metadataOf(shown.metadata),
    createdAt: timeOf(shown.created_at),
  }
}

export function fromEntry(shown: ReturnType<typeof showEntry>): MessageInitShape<typeof EntrySchema> {
  return {
    version: BigInt(shown.version),
    amount: BigInt(shown.amount),
    balance: BigInt(shown.balance),
    currency: shown.currency,
    kind: kindOf(shown.kind),
    transferId: BigInt(shown.transfer_id),
    otherAccountId: BigInt(shown.other_account_id),
    createdAt: timeOf(shown.created_at),
  }
}

export function fromOutcome(shown: Static<typeof shapes.LineOutcome>): MessageInitShape<typeof LineOutcomeSchema> {
  const { id, status, error } = shown
  if (!error) return { id: BigInt(id!), status: statusOf(status!) }
  return { error: { code: error.code, message: error.detail, details: textsOf(error.details) } }
}

function statusOf(status: string): TransferStatus {
  return TransferStatus[status.toUpperCase() as keyof typeof TransferStatus]
}

function kindOf(kind: string): TransferKind {
  return TransferKind[kind.toUpperCase() as keyof typeof TransferKind]
}

function bigintOf(value: string | number | null): bigint | undefined {
  return value === null ? undefined : BigInt(value)
}

function timeOf(text: string | null): Timestamp | undefined {
  return text === null ? undefined : timestampFromDate(new Date(text))
}

function metadataOf(metadata: Record<string, unknown> | null): JsonObject | undefined {
  return metadata === null ? undefined : (metadata as JsonObject)
}

function least(a: bigint, b: bigint): bigint {
  return a < b ? a : b
}
