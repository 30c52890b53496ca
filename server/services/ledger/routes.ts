import { Readable } from 'node:stream'
import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { callerOf } from '#platform/http/guard.ts'
import { idempotencyKeyOf } from '#platform/http/idempotency.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Calls } from './calls.ts'
import { errors } from './errors.ts'
import type { Ledger } from './ledger.ts'
import * as shapes from './shapes.ts'
import { writeStatement } from './statement.ts'

export const read = { access: 'user', scope: 'ledger:read' } as const
export const write = { access: 'user', scope: 'ledger:write' } as const
export const bank = { access: 'banker', scope: 'ledger:bank' } as const
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

export interface LedgerRoutesDeps {
  calls: Calls
  ledger: Pick<Ledger, 'listEntries'>
}

export function addRoutes(app: HttpApp, deps: LedgerRoutesDeps) {
  addAccounts(app, deps.calls)
  addStatements(app, deps)
  addTransfers(app, deps.calls)
  addHolds(app, deps.calls)
  addBanking(app, deps.calls)
}

function addAccounts(app: HttpApp, calls: Calls) {
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
    async () => ({ currencies: calls.listCurrencies() }),
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
      const account = await calls.openAccount({ ...writeOf(request), ...request.body })
      reply.header('location', `/v1/accounts/${account.id}`)
      return reply.status(201).send(account)
    },
  )

  app.get(
    '/v1/accounts/:id',
    { config: read, schema: { tags, summary: 'An account', params: byId, response: { 200: shapes.Account } } },
    async request => calls.getAccount(callerOf(request), request.params.id),
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
    async request => calls.listAccounts(callerOf(request), request.query),
  )

  app.post(
    '/v1/accounts/:id/close',
    {
      config: write,
      schema: { tags, summary: 'Close an empty account', params: byId, response: { 200: shapes.Account } },
    },
    async request => calls.closeAccount({ ...writeOf(request), id: request.params.id }),
  )
}

function addStatements(app: HttpApp, { calls, ledger }: LedgerRoutesDeps) {
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
      const { cursor, limit } = request.query
      const range = rangeOf(request.query)
      return calls.listEntries(callerOf(request), { id: request.params.id, ...range, cursor, limit })
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
    async request => calls.getBalanceAt(callerOf(request), { id: request.params.id, at: timeOf(request.query.at) }),
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
      const range = { id: request.params.id, ...rangeOf(request.query) }
      const statement = await calls.findStatement(callerOf(request), range)
      const lines = writeStatement(ledger, statement)
      reply.type('text/csv; charset=utf-8')
      reply.header('content-disposition', `attachment; filename="account-${statement.accountId}.csv"`)
      return reply.send(Readable.from(lines) as never)
    },
  )
}

function addTransfers(app: HttpApp, calls: Calls) {
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
    async (request, reply) =>
      reply.status(201).send(await calls.createTransfer({ ...writeOf(request), body: request.body })),
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
    async request => ({
      outcomes: await calls.createTransfers({ ...writeOf(request), lines: request.body.transfers }),
    }),
  )

  app.get(
    '/v1/transfers/:id',
    { config: read, schema: { tags, summary: 'A transfer', params: byId, response: { 200: shapes.TransferShape } } },
    async request => calls.getTransfer(callerOf(request), request.params.id),
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
    async request => calls.listTransfers(callerOf(request), { ...request.query, id: request.params.id }),
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
      const asked = { id: request.params.id, metadata: request.body?.metadata }
      return reply.status(201).send(await calls.reverseTransfer({ ...writeOf(request), ...asked }))
    },
  )
}

function addHolds(app: HttpApp, calls: Calls) {
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
    async request => calls.listHolds(callerOf(request), { ...request.query, id: request.params.id }),
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
      const asked = { id: request.params.id, amount: request.body?.amount }
      return reply.status(201).send(await calls.postTransfer({ ...writeOf(request), ...asked }))
    },
  )

  app.post(
    '/v1/transfers/:id/void',
    {
      config: write,
      schema: { tags, summary: 'Let go of what is pending', params: byId, response: { 200: shapes.TransferShape } },
    },
    async request => calls.voidTransfer({ ...writeOf(request), id: request.params.id }),
  )
}

function addBanking(app: HttpApp, calls: Calls) {
  const tags = ['banking']
  const fields = { amount, currency: given('ISO 4217, or a unit declared here.', 'USD'), metadata }

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
    async (request, reply) => reply.status(201).send(await calls.deposit({ ...writeOf(request), body: request.body })),
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
    async (request, reply) => reply.status(201).send(await calls.withdraw({ ...writeOf(request), body: request.body })),
  )
}

function writeOf(request: FastifyRequest) {
  return { caller: callerOf(request), key: idempotencyKeyOf(request) }
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
