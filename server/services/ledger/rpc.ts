/** The ledger over gRPC: proto/capstan/ledger/v1. Each call is the one of routes.ts, in other messages. */
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect'
import { errors as platformErrors } from '#platform/errors.ts'
import type { Caller } from '#platform/http/guard.ts'
import { callerOf } from '#platform/rpc/call.ts'
import { idempotencyKeyOf, keyTextOf } from '#platform/rpc/idempotency.ts'
import type { MethodRule, Rpc } from '#platform/rpc/rpc.ts'
import {
  Ledger as LedgerService,
  type Line,
  type LineOutcomeSchema,
  LineSchema,
  type NewTransfer,
  NewTransferSchema,
  type StreamTransfersResponseSchema,
} from '../../proto/capstan/ledger/v1/ledger_pb.js'
import type { Calls } from './calls.ts'
import { errors } from './errors.ts'
import type { Ledger } from './ledger.ts'
import {
  fromAccount,
  fromEntry,
  fromOutcome,
  fromTransfer,
  inOrder,
  toDate,
  toLine,
  toPage,
  toRange,
} from './messages.ts'
import { makePlaces, type Places, runPipeline } from './pipeline.ts'
import { bank, read, write } from './routes.ts'
import { showDone, showOutcome } from './shapes.ts'
import { readStatement } from './statement.ts'
import type { Done } from './types.ts'

export interface LedgerRpcDeps {
  calls: Calls
  ledger: Pick<Ledger, 'listEntries'>
}

type Implementation = ServiceImpl<typeof LedgerService>
type Part<Names extends keyof Implementation> = Pick<Implementation, Names>
type Outcome = MessageInitShape<typeof LineOutcomeSchema>

/** Several of the ledger's own batches, so that one is always ready. */
const linesInStreamMax = 4000
/** Less than the ledger takes before it refuses, so that streams wait instead, and single requests have room. */
const linesInStreamsMax = 12_000
const linesInMessageMax = 1000
/** In the summary of a stream. */
const outcomesMax = 10_000

const rules: Record<keyof Implementation, MethodRule> = {
  listCurrencies: { access: 'public' },
  openAccount: write,
  getAccount: read,
  listAccounts: read,
  closeAccount: write,
  listEntries: read,
  exportStatement: read,
  getBalanceAt: read,
  createTransfer: write,
  createTransfers: write,
  streamTransfers: write,
  pipeTransfers: write,
  getTransfer: read,
  listTransfers: read,
  reverseTransfer: write,
  listHolds: read,
  postTransfer: write,
  voidTransfer: write,
  deposit: bank,
  withdraw: bank,
}

export function addLedgerRpc(rpc: Pick<Rpc, 'addService'>, { calls, ledger }: LedgerRpcDeps) {
  const places = makePlaces(linesInStreamsMax)
  rpc.addService(LedgerService, {
    rules,
    implementation: {
      ...accountMethods(calls),
      ...statementMethods(calls, ledger),
      ...transferMethods(calls),
      ...streamMethods(calls, places),
      ...settlingMethods(calls),
      ...bankMethods(calls),
    },
  })
}

function accountMethods(
  calls: Calls,
): Part<'listCurrencies' | 'openAccount' | 'getAccount' | 'listAccounts' | 'closeAccount'> {
  return {
    listCurrencies: () => ({ currencies: calls.listCurrencies() }),
    async openAccount(request, context) {
      const { currency, name, floor, idempotencyKey } = request
      const wish = { currency, name, floor: String(floor), metadata: inOrder(request.metadata) }
      const key = idempotencyKeyOf(context, { inMessage: idempotencyKey, content: wish })
      return fromAccount(await calls.openAccount({ caller: callerOf(context), key, ...wish }))
    },
    getAccount: async ({ id }, context) => fromAccount(await calls.getAccount(callerOf(context), String(id))),
    async listAccounts(request, context) {
      const page = { ...toPage(request), system: request.system }
      const { accounts, next_cursor } = await calls.listAccounts(callerOf(context), page)
      return { accounts: accounts.map(fromAccount), nextCursor: next_cursor ?? '' }
    },
    closeAccount: async (request, context) => fromAccount(await calls.closeAccount(aboutOf(request, context))),
  }
}

function statementMethods(
  calls: Calls,
  ledger: LedgerRpcDeps['ledger'],
): Part<'listEntries' | 'exportStatement' | 'getBalanceAt' | 'listTransfers' | 'listHolds'> {
  return {
    async listEntries(request, context) {
      const asked = { id: String(request.accountId), ...toPage(request), ...toRange(request) }
      const { entries, next_cursor } = await calls.listEntries(callerOf(context), asked)
      return { entries: entries.map(fromEntry), nextCursor: next_cursor ?? '' }
    },
    async *exportStatement(request, context) {
      const asked = { id: String(request.accountId), ...toRange(request) }
      const statement = await calls.findStatement(callerOf(context), asked)
      for await (const entries of readStatement(ledger, statement)) yield { entries: entries.map(fromEntry) }
    },
    async getBalanceAt({ accountId, at }, context) {
      if (!at) throw platformErrors.validation('`at` is missing.', [{ field: 'at', message: 'is missing' }])
      const found = await calls.getBalanceAt(callerOf(context), { id: String(accountId), at: toDate(at) })
      return { balance: BigInt(found.balance), version: BigInt(found.version), at }
    },
    async listTransfers(request, context) {
      const asked = { id: String(request.accountId), ...toPage(request) }
      const { transfers, next_cursor } = await calls.listTransfers(callerOf(context), asked)
      return { transfers: transfers.map(fromTransfer), nextCursor: next_cursor ?? '' }
    },
    async listHolds(request, context) {
      const asked = { id: String(request.accountId), ...toPage(request) }
      const { holds, next_cursor } = await calls.listHolds(callerOf(context), asked)
      return { holds: holds.map(fromTransfer), nextCursor: next_cursor ?? '' }
    },
  }
}

function transferMethods(calls: Calls): Part<'createTransfer' | 'createTransfers' | 'getTransfer'> {
  return {
    async createTransfer({ transfer, idempotencyKey: inMessage }, context) {
      const what = { case: 'transfer', value: transfer ?? create(NewTransferSchema) } as const
      const idempotencyKey = keyTextOf(context, inMessage)
      const line = toLine(create(LineSchema, { what, idempotencyKey }))
      const done = await calls.submitLine({ caller: callerOf(context), line })
      return fromTransfer(showDone(done, { from: true, to: false }))
    },
    async createTransfers(request, context) {
      const lines = request.lines.map(toLine)
      const key = idempotencyKeyOf(context, { inMessage: request.idempotencyKey, content: lines })
      const outcomes = await calls.createTransfers({ caller: callerOf(context), key, lines })
      return { outcomes: outcomes.map(fromOutcome) }
    },
    getTransfer: async ({ id }, context) => fromTransfer(await calls.getTransfer(callerOf(context), String(id))),
  }
}

function streamMethods(calls: Calls, places: Places): Part<'streamTransfers' | 'pipeTransfers'> {
  async function* outcomesOf(requests: AsyncIterable<{ lines: Line[] }>, caller: Caller) {
    const submit = (line: Line): Promise<Done> => calls.submitLine({ caller, line: toLine(line) })
    const messages = linesOf(requests)
    for await (const outcomes of runPipeline({ messages, submit, places, linesMax: linesInStreamMax }))
      yield outcomes.map(outcome => fromOutcome(showOutcome(outcome)))
  }

  return {
    async streamTransfers(requests, context) {
      const summary = makeSummary()
      for await (const outcomes of outcomesOf(requests, callerOf(context))) outcomes.forEach(summary.add)
      return summary.show()
    },
    async *pipeTransfers(requests, context) {
      for await (const outcomes of outcomesOf(requests, callerOf(context))) yield { outcomes }
    },
  }
}

/** @throws batch_too_long */
async function* linesOf(requests: AsyncIterable<{ lines: Line[] }>) {
  for await (const { lines } of requests) {
    if (lines.length > linesInMessageMax) throw errors.batchTooLong(linesInMessageMax)
    yield lines
  }
}

function makeSummary() {
  const outcomes: Outcome[] = []
  const refusedByCode = new Map<string, bigint>()
  let received = 0n
  let refused = 0n
  return {
    add(outcome: Outcome) {
      received++
      if (outcomes.length < outcomesMax) outcomes.push(outcome)
      const code = outcome.error?.code
      if (code === undefined) return
      refused++
      refusedByCode.set(code, (refusedByCode.get(code) ?? 0n) + 1n)
    },
    show: (): MessageInitShape<typeof StreamTransfersResponseSchema> => ({
      received,
      done: received - refused,
      refused,
      refusedByCode: Object.fromEntries(refusedByCode),
      outcomes,
    }),
  }
}

function settlingMethods(calls: Calls): Part<'reverseTransfer' | 'postTransfer' | 'voidTransfer'> {
  return {
    async reverseTransfer(request, context) {
      const metadata = inOrder(request.metadata)
      return fromTransfer(await calls.reverseTransfer({ ...aboutOf(request, context, metadata), metadata }))
    },
    async postTransfer(request, context) {
      const amount = request.amount === undefined ? undefined : String(request.amount)
      return fromTransfer(await calls.postTransfer({ ...aboutOf(request, context, amount), amount }))
    },
    voidTransfer: async (request, context) => fromTransfer(await calls.voidTransfer(aboutOf(request, context))),
  }
}

function bankMethods(calls: Calls): Part<'deposit' | 'withdraw'> {
  return {
    async deposit(request, context) {
      const body = { to: String(request.to), ...moneyOf(request) }
      const key = idempotencyKeyOf(context, { inMessage: request.idempotencyKey, content: body })
      return fromTransfer(await calls.deposit({ caller: callerOf(context), key, body }))
    },
    async withdraw(request, context) {
      const body = { from: String(request.from), ...moneyOf(request) }
      const key = idempotencyKeyOf(context, { inMessage: request.idempotencyKey, content: body })
      return fromTransfer(await calls.withdraw({ caller: callerOf(context), key, body }))
    },
  }
}

function moneyOf({ amount, currency, metadata }: Pick<NewTransfer, 'amount' | 'currency' | 'metadata'>) {
  return { amount: String(amount), currency, metadata: inOrder(metadata) }
}

/** What every call about something that exists has: its id, who asks, and a key. */
function aboutOf(request: { id: bigint; idempotencyKey: string }, context: HandlerContext, more?: unknown) {
  const id = String(request.id)
  const key = idempotencyKeyOf(context, { inMessage: request.idempotencyKey, content: { id, more } })
  return { caller: callerOf(context), key, id }
}
