/** From what a caller sent to orders: every check that needs no database, each with its own code. */
import type { Outcome } from '#platform/batch.ts'
import { isAppError } from '#platform/errors.ts'
import type { Caller } from '#platform/http/guard.ts'
import type { IdempotencyKey } from '#platform/http/idempotency.ts'
import { errors } from './errors.ts'
import { lineKey, toStoredKey } from './keys.ts'
import { type Currencies, parseAmount, parseId } from './money.ts'
import type { LedgerSettings } from './settings.ts'
import type { Actor, Done, Order, TransferOrder } from './types.ts'

export interface RequestRules {
  currencies: Currencies
  settings: LedgerSettings
}

const transferFields = ['from', 'to', 'amount', 'currency', 'metadata', 'pending', 'timeout_seconds']
const lineFields = new Set([...transferFields, 'linked', 'idempotency_key'])
const bodyFields = new Set(transferFields)

/** @throws what parseAmount does, bad_id, same_account, unknown_currency, unknown_field, bad_flag, bad_timeout, bad_metadata */
export function toTransferOrder(
  rules: RequestRules,
  given: { body: unknown; caller: Caller; key: IdempotencyKey | undefined },
): TransferOrder {
  return { ...readTransfer(rules, given.body, bodyFields), actor: toActor(given.caller), key: toStoredKey(given.key) }
}

function readTransfer(rules: RequestRules, body: unknown, known: ReadonlySet<string>) {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) throw errors.notATransfer()
  const fields = body as Record<string, unknown>
  for (const field of Object.keys(fields)) if (!known.has(field)) throw errors.unknownField(field)
  const amount = parseAmount(fields.amount)
  const fromId = parseId(fields.from, 'from')
  const toId = parseId(fields.to, 'to')
  if (fromId === toId) throw errors.sameAccount()
  return {
    type: 'transfer' as const,
    kind: 'transfer' as const,
    fromId,
    toId,
    amount,
    currency: readCurrency(rules, fields.currency),
    holdMs: readHold(rules, fields),
    metadata: readMetadata(fields.metadata),
  }
}

/** @throws unknown_currency */
export function readCurrency({ currencies }: RequestRules, currency: unknown): string {
  if (typeof currency !== 'string' || !currencies.has(currency)) throw errors.unknownCurrency()
  return currency
}

function readHold({ settings }: RequestRules, fields: Record<string, unknown>): number | null {
  const isPending = readFlag(fields, 'pending')
  const seconds = fields.timeout_seconds
  if (seconds === undefined && !isPending) return null
  const secondsMax = settings.LEDGER_HOLD_SECONDS_MAX
  const asked = seconds ?? Math.min(settings.LEDGER_HOLD_SECONDS, secondsMax)
  if (!isPending || typeof asked !== 'number' || !Number.isInteger(asked) || asked < 1 || asked > secondsMax)
    throw errors.badTimeout(secondsMax)
  return asked * 1000
}

function readFlag(fields: Record<string, unknown>, field: string): boolean {
  const value = fields[field]
  if (value !== undefined && typeof value !== 'boolean') throw errors.badFlag(field)
  return value === true
}

const metadataBytesMax = 4096
/** What jsonb does not hold: an escape, not an escaped backslash before a `u`. */
const unstorable = /(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/

/** @throws bad_metadata */
export function readMetadata(metadata: unknown): string | null {
  if (metadata === undefined || metadata === null) return null
  if (typeof metadata !== 'object' || Array.isArray(metadata)) throw errors.badMetadata()
  const json = JSON.stringify(metadata)
  if (Buffer.byteLength(json) > metadataBytesMax || unstorable.test(json)) throw errors.badMetadata()
  return json
}

/** @throws bad_text */
export function readText(text: string, field: string): string {
  if (text.includes('\0') || !text.isWellFormed()) throw errors.badText(field)
  return text
}

export function toActor(caller: Caller): Actor {
  return { userId: caller.userId, isAdmin: caller.role === 'admin' }
}

/** A batch's lines as chains of orders, and what became of each line. */
export interface BatchRequest {
  chains: Order[][]
  /** An outcome a line, in order, given the outcomes of the chains. */
  outcomes(done: Outcome<Done>[][]): Outcome<Done>[]
}

/**
 * A line that is wrong is refused by itself, or with its chain.
 * @throws batch_empty, batch_too_long
 */
export function readBatch(
  rules: RequestRules,
  given: { lines: readonly unknown[]; caller: Caller; key: IdempotencyKey | undefined },
): BatchRequest {
  const { lines } = given
  if (lines.length === 0) throw errors.batchEmpty()
  if (lines.length > rules.settings.LEDGER_BATCH_MAX) throw errors.batchTooLong(rules.settings.LEDGER_BATCH_MAX)
  const links = chainLines(lines)
  const chains: Order[][] = []
  const answers = links.map(indexes => {
    const read = indexes.map(index =>
      attempt(() => readLine(rules, { ...given, index, isLast: index === lines.length - 1 })),
    )
    const wrong = read.findIndex(one => 'error' in one)
    if (wrong >= 0) return () => refuseChain(read[wrong] as { error: unknown }, wrong, indexes)
    const at = chains.push(read.map(one => (one as { value: Order }).value)) - 1
    return (done: Outcome<Done>[][]) => namePlaces(done[at]!, indexes)
  })
  return { chains, outcomes: done => answers.flatMap(answer => answer(done)) }
}

/** The places of the lines, those linked to one another together. */
function chainLines(lines: readonly unknown[]): number[][] {
  const chains: number[][] = []
  let goesOn = false
  for (const [index, line] of lines.entries()) {
    if (goesOn) chains.at(-1)!.push(index)
    else chains.push([index])
    goesOn = (line as { linked?: unknown } | null)?.linked === true
  }
  return chains
}

function readLine(
  rules: RequestRules,
  given: {
    lines: readonly unknown[]
    index: number
    isLast: boolean
    caller: Caller
    key: IdempotencyKey | undefined
  },
): Order {
  const { index, caller } = given
  const line = given.lines[index]
  const order = readTransfer(rules, line, lineFields)
  const fields = line as Record<string, unknown>
  if (readFlag(fields, 'linked') && given.isLast) throw errors.chainOpen()
  const ownKey = fields.idempotency_key
  if (ownKey !== undefined && (typeof ownKey !== 'string' || !/^[\x20-\x7e]{1,255}$/.test(ownKey)))
    throw errors.badLineKey()
  const key = lineKey({ owner: caller.userId, ownKey, batchKey: given.key?.key, index, line })
  return { ...order, actor: toActor(caller), key }
}

function refuseChain(wrong: { error: unknown }, at: number, indexes: number[]): Outcome<Done>[] {
  return indexes.map((_, place) => (place === at ? wrong : { error: errors.chainFailed(indexes[at]!) }))
}

/** A chain's failure names the place in the chain; callers know places in the batch. */
function namePlaces(outcomes: Outcome<Done>[], indexes: number[]): Outcome<Done>[] {
  return outcomes.map(outcome => {
    const code = 'error' in outcome && isAppError(outcome.error) ? outcome.error : undefined
    return code?.code === 'chain_failed'
      ? { error: errors.chainFailed(indexes[code.details!.line as number]!) }
      : outcome
  })
}

function attempt<T>(read: () => T): Outcome<T> {
  try {
    return { value: read() }
  } catch (error) {
    if (!isAppError(error)) throw error
    return { error }
  }
}
