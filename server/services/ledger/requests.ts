/** From what a caller sent to orders: every check that needs no database, each with its own code. */
import type { Outcome } from '#platform/batch.ts'
import { isAppError } from '#platform/errors.ts'
import type { Caller } from '#platform/http/guard.ts'
import type { IdempotencyKey } from '#platform/http/idempotency.ts'
import { errors } from './errors.ts'
import { lineKey, toStoredKey } from './keys.ts'
import { type Currencies, parseAmount, parseId } from './money.ts'
import type { LedgerSettings } from './settings.ts'
import { asMade } from './shapes.ts'
import type { Actor, Done, Order, TransferOrder } from './types.ts'

export interface RequestRules {
  currencies: Currencies
  settings: LedgerSettings
}

const transferFields = ['from', 'to', 'amount', 'currency', 'metadata', 'pending', 'timeout_seconds']
const bodyFields = new Set(transferFields)
const anyLineFields = ['linked', 'idempotency_key']
/** What a line of a batch may have, by the field that says what it does; without one it is a transfer. */
const lineFields = {
  transfer: new Set([...transferFields, ...anyLineFields]),
  post: new Set(['post', 'amount', ...anyLineFields]),
  void: new Set(['void', ...anyLineFields]),
  reverse: new Set(['reverse', 'metadata', ...anyLineFields]),
} as const

/** @throws what parseAmount does, bad_id, same_account, unknown_currency, unknown_field, bad_flag, bad_timeout, bad_metadata */
export function toTransferOrder(
  rules: RequestRules,
  given: { body: unknown; caller: Caller; key: IdempotencyKey | undefined },
): TransferOrder {
  return { ...readTransfer(rules, given.body, bodyFields), actor: toActor(given.caller), key: toStoredKey(given.key) }
}

function readTransfer(rules: RequestRules, body: unknown, known: ReadonlySet<string>) {
  const fields = readFields(body, known)
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

/** @throws not_a_transfer, unknown_field */
function readFields(body: unknown, known: ReadonlySet<string>): Record<string, unknown> {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) throw errors.notATransfer()
  for (const field of Object.keys(body)) if (!known.has(field)) throw errors.unknownField(field)
  return body as Record<string, unknown>
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
    const orders = read.map(one => (one as { value: Order }).value)
    const at = chains.push(orders) - 1
    return (done: Outcome<Done>[][]) => namePlaces(showFirst(done[at]!, orders), indexes)
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

/** @throws what toTransferOrder does, bad_line_key, chain_open */
export function readLine(
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
  const order = readWhat(rules, line)
  const fields = line as Record<string, unknown>
  if (readFlag(fields, 'linked') && given.isLast) throw errors.chainOpen()
  const ownKey = fields.idempotency_key
  if (ownKey !== undefined && (typeof ownKey !== 'string' || !/^[\x20-\x7e]{1,255}$/.test(ownKey)))
    throw errors.badLineKey()
  const key = lineKey({ owner: caller.userId, ownKey, batchKey: given.key?.key, index, line })
  return { ...order, actor: toActor(caller), key }
}

/** A transfer, or what becomes of an earlier one: `{"post":"9","amount":"5"}`, `{"void":"9"}`, `{"reverse":"9"}`. */
function readWhat(rules: RequestRules, line: unknown) {
  const has = (field: string) => typeof line === 'object' && line !== null && Object.hasOwn(line, field)
  if (has('post')) {
    const { post, amount } = readFields(line, lineFields.post)
    return {
      type: 'post' as const,
      holdId: parseId(post, 'post'),
      amount: amount === undefined ? null : parseAmount(amount),
    }
  }
  if (has('void')) {
    return { type: 'void' as const, holdId: parseId(readFields(line, lineFields.void).void, 'void') }
  }
  if (has('reverse')) {
    const { reverse, metadata } = readFields(line, lineFields.reverse)
    return { type: 'reversal' as const, transferId: parseId(reverse, 'reverse'), metadata: readMetadata(metadata) }
  }
  return readTransfer(rules, line, lineFields.transfer)
}

function refuseChain(wrong: { error: unknown }, at: number, indexes: number[]): Outcome<Done>[] {
  return indexes.map((_, place) => (place === at ? wrong : { error: errors.chainFailed(indexes[at]!) }))
}

/** Whoever repeats a line that set money aside gets its first answer, whatever became of the hold since. */
function showFirst(outcomes: Outcome<Done>[], orders: Order[]): Outcome<Done>[] {
  return outcomes.map((outcome, at) =>
    'value' in outcome && orders[at]!.type === 'transfer' ? { value: asMade(outcome.value) } : outcome,
  )
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
