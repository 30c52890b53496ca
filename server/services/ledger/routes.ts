import { Readable } from 'node:stream'
import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { decodeCursor, encodeCursor } from '#platform/http/cursor.ts'
import { callerOf } from '#platform/http/guard.ts'
import { idempotencyKeyOf } from '#platform/http/idempotency.ts'
import type { HttpApp } from '#platform/http/server.ts'
import { errors } from './errors.ts'
import { toStoredKey } from './keys.ts'
import { type Ledger, type Sides, showEntry, systemOwner } from './ledger.ts'
import { parseAmount, parseFloor, parseId } from './money.ts'
import {
  type RequestRules,
  readBatch,
  readCurrency,
  readMetadata,
  readText,
  toActor,
  toTransferOrder,
} from './requests.ts'
import * as shapes from './shapes.ts'
import { writeStatement } from './statement.ts'
import type { Order } from './types.ts'

const read = { access: 'user', scope: 'ledger:read' } as const
const write = { access: 'user', scope: 'ledger:write' } as const
const bank = { access: 'admin', scope: 'ledger:bank' } as const
/** 8,000 lines with keys and some metadata. */
const batchBytesMax = 8 * 1024 * 1024

const byId = Type.Object({ id: Type.String({ maxLength: 40 }) })
const nextCursor = Type.Union([Type.String(), Type.Null()])
const page = {
  cursor: Type.Optional(Type.String({ maxLength: 200 })),
  limit: Type.Integer({ minimum: 1, maximum: 1000, default: 50 }),
}
const range = {
  from: Type.Optional(Type.String({ format: 'date-time', description: 'From then on.' })),
  to: Type.Optional(Type.String({ format: 'date-time', description: 'Before then.' })),
}

// Fields without a type: what is wrong with them is said by a code of its own, not by the schema.
const given = (description: string, ...examples: unknown[]) => Type.Unsafe<unknown>({ description, examples })
const amount = given('Minor units as a text of digits.', '1050')
const metadata = given('An object of at most 4096 bytes.', { order: 7 })
const bodyOf = <T extends Record<string, ReturnType<typeof given>>>(fields: T) =>
  Type.Unsafe<{ [K in keyof T]?: unknown }>({ type: 'object', properties: fields })
const TransferBody = bodyOf({
  from: given('An account of yours.', '17'),
  to: given('Any account of the same currency.', '42'),
  amount,
  currency: given('ISO 4217, or a unit declared here.', 'USD'),
  metadata,
  pending: given('Set the money aside instead of moving it.', false, true),
  timeout_seconds: given('How long it is set aside.', 3600),
})

export interface LedgerRoutesDeps extends RequestRules {
  ledger: Ledger
}

export function addRoutes(app: HttpApp, deps: LedgerRoutesDeps) {
  addAccounts(app, deps)
  addStatements(app, deps)
  addTransfers(app, deps)
  addHolds(app, deps)
  addBanking(app, deps)
}

function addAccounts(app: HttpApp, { ledger, ...rules }: LedgerRoutesDeps) {
  const tags = ['accounts']

  app.get(
    '/v1/currencies',
    {
      config: { access: 'public' },
      schema: {
        tags,
        summary: 'The currencies and units that accounts can have',
        response: {
          200: Type.Object({
            currencies: Type.Array(Type.Object({ code: Type.String(), exponent: Type.Integer() })),
          }),
        },
      },
    },
    async () => ({ currencies: [...ledger.currencies].map(([code, exponent]) => ({ code, exponent })) }),
  )

  app.post(
    '/v1/accounts',
    {
      config: write,
      schema: {
        tags,
        summary: 'Open an account',
        body: Type.Object(
          {
            currency: given('ISO 4217, or a unit declared here.', 'USD'),
            name: Type.String({ maxLength: 100, default: '', description: 'Tells your accounts of a currency apart.' }),
            floor: Type.Optional(
              given('How low the balance may go: "0", or for admins below, such as "-5000".', '0', '-5000'),
            ),
            metadata: Type.Optional(metadata),
          },
          { additionalProperties: false },
        ),
        response: { 201: shapes.Account },
      },
    },
    async (request, reply) => {
      const caller = callerOf(request)
      const { body } = request
      const floor = parseFloor(body.floor ?? '0')
      if (floor < 0n && caller.role !== 'admin') throw errors.overdraftNotYours()
      const wish = {
        currency: readCurrency(rules, body.currency),
        name: readText(body.name, 'name'),
        floor,
        metadata: readMetadata(body.metadata),
      }
      const account = await ledger.openAccount({ caller, key: idempotencyKeyOf(request), wish })
      reply.header('location', `/v1/accounts/${account.id}`)
      return reply.status(201).send(shapes.showAccount(account, ledger.currencies))
    },
  )

  app.get(
    '/v1/accounts/:id',
    { config: read, schema: { tags, summary: 'An account', params: byId, response: { 200: shapes.Account } } },
    async request => shapes.showAccount(await accountOf(ledger, request), ledger.currencies),
  )

  app.get(
    '/v1/accounts',
    {
      config: read,
      schema: {
        tags,
        summary: 'Your accounts, oldest first',
        querystring: Type.Object({
          ...page,
          system: Type.Boolean({ default: false, description: 'For admins: the system’s accounts instead.' }),
        }),
        response: { 200: Type.Object({ accounts: Type.Array(shapes.Account), next_cursor: nextCursor }) },
      },
    },
    async request => {
      const caller = callerOf(request)
      const { cursor, limit, system } = request.query
      const owner = system && caller.role === 'admin' ? systemOwner : caller.userId
      const rows = await ledger.listAccounts({ owner, after: numberOf(cursor) ?? 0, limit })
      return {
        accounts: rows.map(row => shapes.showAccount(row, ledger.currencies)),
        next_cursor: rows.length === limit ? encodeCursor([rows.at(-1)!.id]) : null,
      }
    },
  )

  app.post(
    '/v1/accounts/:id/close',
    {
      config: write,
      schema: { tags, summary: 'Close an empty account', params: byId, response: { 200: shapes.Account } },
    },
    async request => {
      const id = parseId(request.params.id, 'id')
      const closed = await ledger.closeAccount({ caller: callerOf(request), key: idempotencyKeyOf(request), id })
      return shapes.showAccount(closed, ledger.currencies)
    },
  )
}

function addStatements(app: HttpApp, { ledger }: LedgerRoutesDeps) {
  const tags = ['statements']

  app.get(
    '/v1/accounts/:id/entries',
    {
      config: read,
      schema: {
        tags,
        summary: 'What came and went, oldest first',
        params: byId,
        querystring: Type.Object({ ...page, ...range }),
        response: { 200: Type.Object({ entries: Type.Array(shapes.Entry), next_cursor: nextCursor }) },
      },
    },
    async request => {
      const account = await accountOf(ledger, request)
      const { cursor, limit } = request.query
      const { after, upTo } = await ledger.rangeOf({ accountId: account.id, ...rangeOf(request.query) })
      const start = Math.max(after, numberOf(cursor) ?? 0)
      const rows = await ledger.listEntries({ accountId: account.id, after: start, upTo, limit })
      return {
        entries: rows.map(showEntry),
        next_cursor: rows.length === limit ? encodeCursor([rows.at(-1)!.version]) : null,
      }
    },
  )

  app.get(
    '/v1/accounts/:id/balance',
    {
      config: read,
      schema: {
        tags,
        summary: 'The balance at a time',
        params: byId,
        querystring: Type.Object({ at: Type.String({ format: 'date-time' }) }),
        response: {
          200: Type.Object({
            balance: Type.String(),
            version: Type.Integer(),
            at: Type.String({ format: 'date-time' }),
          }),
        },
      },
    },
    async request => {
      const account = await accountOf(ledger, request)
      const at = timeOf(request.query.at)
      return { ...(await ledger.balanceAt({ accountId: account.id, at })), at: at.toISOString() }
    },
  )

  app.get(
    '/v1/accounts/:id/statement.csv',
    {
      config: { ...read, isStream: true },
      schema: {
        tags,
        summary: 'The entries as CSV, streamed',
        params: byId,
        querystring: Type.Object(range),
        response: { 200: { content: { 'text/csv': { schema: Type.String() } } } },
      },
    },
    async (request, reply) => {
      const account = await accountOf(ledger, request)
      const between = await ledger.rangeOf({ accountId: account.id, ...rangeOf(request.query) })
      const upTo = Math.min(between.upTo ?? account.version, account.version)
      const lines = writeStatement(ledger, { accountId: account.id, after: between.after, upTo })
      reply.type('text/csv; charset=utf-8')
      reply.header('content-disposition', `attachment; filename="account-${account.id}.csv"`)
      return reply.send(Readable.from(lines) as never)
    },
  )
}

function addTransfers(app: HttpApp, { ledger, ...rules }: LedgerRoutesDeps) {
  const tags = ['transfers']

  app.post(
    '/v1/transfers',
    {
      config: write,
      schema: {
        tags,
        summary: 'Move money, or set it aside with `pending`',
        description: 'Answers when it is durable. An Idempotency-Key is kept for ever.',
        body: TransferBody,
        response: { 201: shapes.TransferShape },
      },
    },
    async (request, reply) => {
      const caller = callerOf(request)
      const order = toTransferOrder(rules, { body: request.body, caller, key: idempotencyKeyOf(request) })
      const done = await ledger.submit(order)
      return reply.status(201).send(shapes.showDone(shapes.asMade(done), { from: true, to: false }))
    },
  )

  app.post(
    '/v1/transfers/batch',
    {
      config: write,
      bodyLimit: batchBytesMax,
      schema: {
        tags,
        summary: 'Up to 8,000 transfers, one outcome each, in order',
        description:
          'Posts, voids and reversals of earlier transfers may be among them. All in one commit. A refused line leaves the others be; lines with `linked` succeed or fail with the next one. ' +
          'With an Idempotency-Key for the whole, or an `idempotency_key` a line, a repeated batch makes no transfer ' +
          'twice; lines that were refused are tried again.',
        body: Type.Object(
          {
            transfers: Type.Array(
              Type.Unknown({
                description:
                  'As in POST /v1/transfers, or `{"post":"9","amount":"5"}`, `{"void":"9"}`, `{"reverse":"9"}`; each may ' +
                  'have `linked` and an `idempotency_key`.',
              }),
            ),
          },
          { additionalProperties: false },
        ),
        response: { 200: Type.Object({ outcomes: Type.Array(shapes.LineOutcome) }) },
      },
    },
    async request => {
      const { transfers: lines } = request.body
      const batch = readBatch(rules, { lines, caller: callerOf(request), key: idempotencyKeyOf(request) })
      const done = batch.chains.length > 0 ? await ledger.submitMany(batch.chains) : []
      return { outcomes: batch.outcomes(done).map(shapes.showOutcome) }
    },
  )

  app.get(
    '/v1/transfers/:id',
    { config: read, schema: { tags, summary: 'A transfer', params: byId, response: { 200: shapes.TransferShape } } },
    async request => {
      const { done, sides } = await ledger.getTransfer(callerOf(request), parseId(request.params.id, 'id'))
      return shapes.showDone(done, sides)
    },
  )

  app.get(
    '/v1/accounts/:id/transfers',
    {
      config: read,
      schema: {
        tags,
        summary: 'Transfers from and to an account, newest first',
        params: byId,
        querystring: Type.Object(page),
        response: { 200: Type.Object({ transfers: Type.Array(shapes.TransferShape), next_cursor: nextCursor }) },
      },
    },
    async request => {
      const { id } = await accountOf(ledger, request)
      const { cursor, limit } = request.query
      const version = numberOf(cursor)
      const before = version === undefined ? undefined : { version }
      const rows = await ledger.listTransfers({ accountId: id, before, limit })
      return {
        transfers: rows.map(({ transfer }) =>
          shapes.showTransfer(transfer, { from: transfer.fromId === id, to: transfer.toId === id }),
        ),
        next_cursor: rows.length === limit ? encodeCursor([rows.at(-1)!.version]) : null,
      }
    },
  )

  app.post(
    '/v1/transfers/:id/reverse',
    {
      config: write,
      schema: {
        tags,
        summary: 'Give back what a transfer brought, once',
        params: byId,
        body: Type.Union([
          Type.Object({ metadata: Type.Optional(metadata) }, { additionalProperties: false }),
          Type.Null(),
        ]),
        response: { 201: shapes.TransferShape },
      },
    },
    async (request, reply) => {
      const transferId = parseId(request.params.id, 'id')
      const order = { type: 'reversal', transferId, metadata: readMetadata(request.body?.metadata) } as const
      return reply.status(201).send(await submitAbout(ledger, request, order))
    },
  )
}

function addHolds(app: HttpApp, { ledger }: LedgerRoutesDeps) {
  const tags = ['holds']

  app.get(
    '/v1/accounts/:id/holds',
    {
      config: read,
      schema: {
        tags,
        summary: 'Pending transfers from and to an account, newest first, with those that are settled',
        params: byId,
        querystring: Type.Object(page),
        response: { 200: Type.Object({ holds: Type.Array(shapes.TransferShape), next_cursor: nextCursor }) },
      },
    },
    async request => {
      const { id } = await accountOf(ledger, request)
      const { cursor, limit } = request.query
      const holds = await ledger.listHolds({
        accountId: id,
        before: numberOf(cursor) ?? Number.MAX_SAFE_INTEGER,
        limit,
      })
      return {
        holds: holds.map(shapes.showHold),
        next_cursor: holds.length === limit ? encodeCursor([holds.at(-1)!.id]) : null,
      }
    },
  )

  app.post(
    '/v1/transfers/:id/post',
    {
      config: write,
      schema: {
        tags,
        summary: 'Move what is pending, whole or in part; the rest is let go of',
        params: byId,
        body: Type.Union([
          Type.Object({ amount: Type.Optional(amount) }, { additionalProperties: false }),
          Type.Null(),
        ]),
        response: { 201: shapes.TransferShape },
      },
    },
    async (request, reply) => {
      const holdId = parseId(request.params.id, 'id')
      const asked = request.body?.amount
      const order = { type: 'post', holdId, amount: asked === undefined ? null : parseAmount(asked) } as const
      return reply.status(201).send(await submitAbout(ledger, request, order))
    },
  )

  app.post(
    '/v1/transfers/:id/void',
    {
      config: write,
      schema: { tags, summary: 'Let go of what is pending', params: byId, response: { 200: shapes.TransferShape } },
    },
    async request => submitAbout(ledger, request, { type: 'void', holdId: parseId(request.params.id, 'id') }),
  )
}

function addBanking(app: HttpApp, { ledger, ...rules }: LedgerRoutesDeps) {
  const tags = ['banking']
  const fields = { amount, currency: given('ISO 4217, or a unit declared here.', 'USD'), metadata }
  const both: Sides = { from: true, to: true }

  app.post(
    '/v1/deposits',
    {
      config: bank,
      schema: {
        tags,
        summary: 'Bring money in',
        body: bodyOf({ to: given('The account that gets it.', '42'), ...fields }),
        response: { 201: shapes.TransferShape },
      },
    },
    async (request, reply) => {
      const from = await ledger.cashAccount(readCurrency(rules, request.body.currency))
      const order = readBanking(request, { ...request.body, from: String(from) }, 'deposit')
      return reply.status(201).send(shapes.showDone(shapes.asMade(await ledger.submit(order)), both))
    },
  )

  app.post(
    '/v1/withdrawals',
    {
      config: bank,
      schema: {
        tags,
        summary: 'Take money out',
        body: bodyOf({ from: given('The account that gives it.', '42'), ...fields }),
        response: { 201: shapes.TransferShape },
      },
    },
    async (request, reply) => {
      const to = await ledger.cashAccount(readCurrency(rules, request.body.currency))
      const order = readBanking(request, { ...request.body, to: String(to) }, 'withdrawal')
      return reply.status(201).send(shapes.showDone(shapes.asMade(await ledger.submit(order)), both))
    },
  )

  function readBanking(request: FastifyRequest, body: object, kind: 'deposit' | 'withdrawal'): Order {
    const order = toTransferOrder(rules, { body, caller: callerOf(request), key: idempotencyKeyOf(request) })
    return { ...order, kind }
  }
}

type About =
  | { type: 'post'; holdId: number; amount: bigint | null }
  | { type: 'void'; holdId: number }
  | { type: 'reversal'; transferId: number; metadata: string | null }

/** Carries out what concerns an earlier transfer. */
async function submitAbout(ledger: Ledger, request: FastifyRequest, about: About) {
  const caller = callerOf(request)
  const done = await ledger.submit({ ...about, actor: toActor(caller), key: toStoredKey(idempotencyKeyOf(request)) })
  return shapes.showDone(done, await ledger.sidesOf(caller, 'transfer' in done ? done.transfer : done.hold))
}

function accountOf(ledger: Ledger, request: FastifyRequest) {
  return ledger.getAccount(callerOf(request), parseId((request.params as { id: string }).id, 'id'))
}

/** @throws bad_cursor */
function numberOf(cursor: string | undefined): number | undefined {
  const isNumber = (values: readonly unknown[]): values is [number] =>
    values.length === 1 && Number.isSafeInteger(values[0])
  return decodeCursor(cursor, isNumber)?.[0]
}

function rangeOf({ from, to }: { from?: string; to?: string }) {
  return { from: from === undefined ? undefined : timeOf(from), to: to === undefined ? undefined : timeOf(to) }
}

/** @throws bad_range for a leap second, which no Date holds */
function timeOf(text: string): Date {
  const time = new Date(text)
  if (Number.isNaN(time.getTime())) throw errors.badRange()
  return time
}
