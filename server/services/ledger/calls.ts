/** The ledger's calls, as both doors make them and show their answers: routes.ts from HTTP, rpc.ts from gRPC. */
import type { Static } from 'typebox'
import { decodeCursor, encodeCursor } from '#platform/http/cursor.ts'
import type { Caller } from '#platform/http/guard.ts'
import type { IdempotencyKey } from '#platform/http/idempotency.ts'
import { errors } from './errors.ts'
import { toStoredKey } from './keys.ts'
import { type Ledger, type Sides, showEntry, systemOwner } from './ledger.ts'
import { parseAmount, parseFloor, parseId } from './money.ts'
import {
  type RequestRules,
  readBatch,
  readCurrency,
  readLine,
  readMetadata,
  readText,
  toActor,
  toTransferOrder,
} from './requests.ts'
import * as shapes from './shapes.ts'
import type { Statement } from './statement.ts'
import type { Done } from './types.ts'

/** Fields that arrive as they were sent are `unknown`: what is wrong with them is said by a code of its own. */
export interface Write {
  caller: Caller
  key: IdempotencyKey | undefined
}

export interface Page {
  cursor?: string | undefined
  limit: number
}

export interface TimeRange {
  from?: Date | undefined
  to?: Date | undefined
}

type TransferShown = Static<typeof shapes.TransferShape>

export type Calls = ReturnType<typeof makeCalls>

export function makeCalls(deps: RequestRules & { ledger: Ledger }) {
  return { ...accountCalls(deps), ...statementCalls(deps), ...transferCalls(deps), ...bankCalls(deps) }
}

function accountCalls({ ledger, ...rules }: RequestRules & { ledger: Ledger }) {
  const show = (row: Parameters<typeof shapes.showAccount>[0]) => shapes.showAccount(row, ledger.currencies)
  return {
    listCurrencies: () => [...ledger.currencies].map(([code, exponent]) => ({ code, exponent })),
    async openAccount(
      given: Write & { currency: unknown; name: string; floor?: unknown; metadata?: unknown },
    ): Promise<Static<typeof shapes.Account>> {
      const { caller, key } = given
      const floor = parseFloor(given.floor ?? '0')
      if (floor < 0n && caller.role !== 'admin') throw errors.overdraftNotYours()
      const wish = {
        currency: readCurrency(rules, given.currency),
        name: readText(given.name, 'name'),
        floor,
        metadata: readMetadata(given.metadata),
      }
      return show(await ledger.openAccount({ caller, key, wish }))
    },
    async getAccount(caller: Caller, id: unknown) {
      return show(await ledger.getAccount(caller, parseId(id, 'id')))
    },
    /** @param given.system for admins: the system's accounts instead */
    async listAccounts(caller: Caller, { system, cursor, limit }: Page & { system: boolean }) {
      const owner = system && caller.role === 'admin' ? systemOwner : caller.userId
      const rows = await ledger.listAccounts({ owner, after: numberOf(cursor) ?? 0, limit })
      return { accounts: rows.map(show), next_cursor: cursorAfter(rows, limit, row => row.id) }
    },
    async closeAccount({ caller, key, id }: Write & { id: unknown }) {
      return show(await ledger.closeAccount({ caller, key, id: parseId(id, 'id') }))
    },
  }
}

function statementCalls({ ledger }: { ledger: Ledger }) {
  const accountOf = (caller: Caller, id: unknown) => ledger.getAccount(caller, parseId(id, 'id'))
  return {
    async listEntries(caller: Caller, given: { id: unknown } & Page & TimeRange) {
      const { from, to, cursor, limit } = given
      const account = await accountOf(caller, given.id)
      const { after, upTo } = await ledger.rangeOf({ accountId: account.id, from, to })
      const start = Math.max(after, numberOf(cursor) ?? 0)
      const rows = await ledger.listEntries({ accountId: account.id, after: start, upTo, limit })
      return { entries: rows.map(showEntry), next_cursor: cursorAfter(rows, limit, row => row.version) }
    },
    async getBalanceAt(caller: Caller, { id, at }: { id: unknown; at: Date }) {
      const account = await accountOf(caller, id)
      return { ...(await ledger.balanceAt({ accountId: account.id, at })), at: at.toISOString() }
    },
    async findStatement(caller: Caller, { id, from, to }: { id: unknown } & TimeRange): Promise<Statement> {
      const account = await accountOf(caller, id)
      const between = await ledger.rangeOf({ accountId: account.id, from, to })
      const upTo = Math.min(between.upTo ?? account.version, account.version)
      return { accountId: account.id, after: between.after, upTo }
    },
    async listTransfers(caller: Caller, { id: asked, cursor, limit }: { id: unknown } & Page) {
      const { id } = await accountOf(caller, asked)
      const version = numberOf(cursor)
      const before = version === undefined ? undefined : { version }
      const rows = await ledger.listTransfers({ accountId: id, before, limit })
      return {
        transfers: rows.map(({ transfer }) =>
          shapes.showTransfer(transfer, { from: transfer.fromId === id, to: transfer.toId === id }),
        ),
        next_cursor: cursorAfter(rows, limit, row => row.version),
      }
    },
    async listHolds(caller: Caller, { id: asked, cursor, limit }: { id: unknown } & Page) {
      const { id } = await accountOf(caller, asked)
      const before = numberOf(cursor) ?? Number.MAX_SAFE_INTEGER
      const holds = await ledger.listHolds({ accountId: id, before, limit })
      return { holds: holds.map(shapes.showHold), next_cursor: cursorAfter(holds, limit, hold => hold.id) }
    },
  }
}

type About =
  | { type: 'post'; holdId: number; amount: bigint | null }
  | { type: 'void'; holdId: number }
  | { type: 'reversal'; transferId: number; metadata: string | null }

function transferCalls({ ledger, ...rules }: RequestRules & { ledger: Ledger }) {
  /** Carries out what concerns an earlier transfer. */
  async function submitAbout({ caller, key }: Write, about: About): Promise<TransferShown> {
    const done = await ledger.submit({ ...about, actor: toActor(caller), key: toStoredKey(key) })
    return shapes.showDone(done, await ledger.sidesOf(caller, 'transfer' in done ? done.transfer : done.hold))
  }

  return {
    async createTransfer(given: Write & { body: unknown }): Promise<TransferShown> {
      const done = await ledger.submit(toTransferOrder(rules, given))
      return shapes.showDone(shapes.asMade(done), { from: true, to: false })
    },
    /** A line that stands alone, as in a stream: its key is one with that of the same line of a batch. */
    async submitLine({ caller, line }: { caller: Caller; line: unknown }): Promise<Done> {
      const order = readLine(rules, { lines: [line], index: 0, isLast: true, caller, key: undefined })
      const done = await ledger.submit(order)
      return order.type === 'transfer' ? shapes.asMade(done) : done
    },
    async createTransfers(given: Write & { lines: readonly unknown[] }) {
      const batch = readBatch(rules, given)
      const done = batch.chains.length > 0 ? await ledger.submitMany(batch.chains) : []
      return batch.outcomes(done).map(shapes.showOutcome)
    },
    async getTransfer(caller: Caller, id: unknown): Promise<TransferShown> {
      const { done, sides } = await ledger.getTransfer(caller, parseId(id, 'id'))
      return shapes.showDone(done, sides)
    },
    reverseTransfer(given: Write & { id: unknown; metadata: unknown }) {
      const transferId = parseId(given.id, 'id')
      return submitAbout(given, { type: 'reversal', transferId, metadata: readMetadata(given.metadata) })
    },
    /** @param given.amount part of what is pending; the whole where it is undefined */
    postTransfer(given: Write & { id: unknown; amount: unknown }) {
      const { amount } = given
      const holdId = parseId(given.id, 'id')
      return submitAbout(given, { type: 'post', holdId, amount: amount === undefined ? null : parseAmount(amount) })
    },
    voidTransfer(given: Write & { id: unknown }) {
      return submitAbout(given, { type: 'void', holdId: parseId(given.id, 'id') })
    },
  }
}

type Banking = Write & { body: { currency?: unknown } }

/** The other side of what comes in and goes out is the system's. */
function bankCalls({ ledger, ...rules }: RequestRules & { ledger: Ledger }) {
  const both: Sides = { from: true, to: true }

  /** @throws unknown_field where the caller names the system's side */
  async function submitBanking(given: Banking, kind: 'deposit' | 'withdrawal') {
    const side = kind === 'deposit' ? 'from' : 'to'
    if (Object.hasOwn(given.body, side)) throw errors.unknownField(side)
    const cashId = await ledger.cashAccount(readCurrency(rules, given.body.currency))
    const body = { ...given.body, [side]: String(cashId) }
    const done = await ledger.submit({ ...toTransferOrder(rules, { ...given, body }), kind })
    return shapes.showDone(shapes.asMade(done), both)
  }

  return {
    deposit: (given: Banking): Promise<TransferShown> => submitBanking(given, 'deposit'),
    withdraw: (given: Banking): Promise<TransferShown> => submitBanking(given, 'withdrawal'),
  }
}

/** @throws bad_cursor */
function numberOf(cursor: string | undefined): number | undefined {
  const isNumber = (values: readonly unknown[]): values is [number] =>
    values.length === 1 && Number.isSafeInteger(values[0])
  return decodeCursor(cursor, isNumber)?.[0]
}

function cursorAfter<T>(rows: readonly T[], limit: number, numberOf: (row: T) => number): string | null {
  return rows.length === limit ? encodeCursor([numberOf(rows.at(-1)!)]) : null
}
