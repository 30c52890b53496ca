/** The old bank's routes: CONTRACTS say what they take and answer; users are identity's, the accounts and transfers the same. */
import { Type } from 'typebox'
import { AppError, isAppError } from '#platform/errors.ts'
import { callerOf } from '#platform/http/guard.ts'
import { idempotencyKeyOf } from '#platform/http/idempotency.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { IdentityService } from '#services/identity/index.ts'
import { errors } from './errors.ts'
import { toStoredKey } from './keys.ts'
import type { Ledger } from './ledger.ts'
import { parseNumericAmount } from './money.ts'
import { type RequestRules, readCurrency, toActor } from './requests.ts'
import type { AccountRow } from './store.ts'
import type { Transfer } from './types.ts'

export interface CompatDeps extends RequestRules {
  ledger: Ledger
  identity: Pick<IdentityService, 'registerOnly' | 'login' | 'renew'>
}

const tags = ['old contract: bank']
const read = { access: 'user', scope: 'ledger:read', errorShape: 'legacy' } as const
const write = { access: 'user', scope: 'ledger:write', errorShape: 'legacy' } as const
const open = { access: 'public', errorShape: 'legacy' } as const

export function addCompatRoutes(app: HttpApp, deps: CompatDeps) {
  addUsers(app, deps)
  addAccounts(app, deps)
  addTransfers(app, deps)
}

function addUsers(app: HttpApp, { identity }: CompatDeps) {
  app.post(
    '/users',
    {
      config: open,
      schema: {
        tags,
        summary: 'Make a user',
        body: Type.Object({
          username: Type.String({ pattern: '^[A-Za-z0-9]+$' }),
          password: Type.String({ minLength: 6, maxLength: 1024 }),
          full_name: Type.String({ maxLength: 1000 }),
          email: Type.String({ format: 'email' }),
        }),
      },
    },
    async request => {
      const { username, password, email, full_name: fullName } = request.body
      const user = await withStatus(identity.registerOnly({ username, password, email, fullName }), { 409: 403 })
      return showUser(user)
    },
  )

  app.post(
    '/users/login',
    {
      config: open,
      schema: {
        tags,
        summary: 'Log in',
        body: Type.Object({ username: Type.String({ maxLength: 320 }), password: Type.String({ maxLength: 1024 }) }),
      },
    },
    async request => {
      const { username, password } = request.body
      const origin = { address: request.ip, userAgent: request.headers['user-agent'] ?? '' }
      const grant = await identity.login({ name: username, password, origin })
      return {
        session_id: grant.sessionId,
        access_token: grant.accessToken,
        access_token_expires_at: grant.accessTokenExpiresAt.toISOString(),
        refresh_token: grant.refreshToken,
        refresh_token_expires_at: grant.refreshTokenExpiresAt.toISOString(),
        user: showUser(grant.user),
      }
    },
  )

  app.post(
    '/tokens/renew_access',
    {
      config: open,
      schema: {
        tags,
        summary: 'Get a new access token',
        body: Type.Object({ refresh_token: Type.String({ maxLength: 4096 }) }),
      },
    },
    async request => {
      // The old answer has no place for a new refresh token.
      const grant = await identity.renew({ refreshToken: request.body.refresh_token, rotate: false })
      return {
        access_token: grant.accessToken,
        access_token_expires_at: grant.accessTokenExpiresAt.toISOString(),
      }
    },
  )
}

type User = Awaited<ReturnType<CompatDeps['identity']['registerOnly']>>

function showUser(user: User) {
  return {
    username: user.name,
    full_name: user.full_name ?? '',
    email: user.email,
    password_changed_at: user.password_changed_at.toISOString(),
    created_at: user.created_at.toISOString(),
  }
}

function addAccounts(app: HttpApp, { ledger, ...rules }: CompatDeps) {
  app.post(
    '/accounts',
    {
      config: write,
      schema: { tags, summary: 'Open an account', body: Type.Object({ currency: Type.String() }) },
    },
    async request => {
      const currency = readCurrency(rules, request.body.currency)
      const wish = { currency, name: '', floor: 0n, metadata: null }
      const key = idempotencyKeyOf(request)
      return showAccount(await withStatus(ledger.openAccount({ caller: callerOf(request), key, wish }), { 409: 403 }))
    },
  )

  app.get(
    '/accounts/:id',
    {
      config: read,
      schema: { tags, summary: 'An account', params: Type.Object({ id: Type.Integer({ minimum: 1 }) }) },
    },
    async request => {
      const account = ledger.getAccount(callerOf(request), safeId(request.params.id))
      return showAccount(await withStatus(account, { 403: 401 }))
    },
  )

  app.get(
    '/accounts',
    {
      config: read,
      schema: {
        tags,
        summary: 'Your accounts, a page of them',
        querystring: Type.Object({
          page_id: Type.Integer({ minimum: 1, maximum: 1_000_000 }),
          page_size: Type.Integer({ minimum: 5, maximum: 10 }),
        }),
      },
    },
    async request => {
      const { page_id: page, page_size: limit } = request.query
      const owner = callerOf(request).userId
      const rows = await ledger.listAccounts({ owner, after: 0, limit, offset: (page - 1) * limit })
      return rows.map(row => showAccount(row))
    },
  )
}

function addTransfers(app: HttpApp, { ledger, ...rules }: CompatDeps) {
  app.post(
    '/transfers',
    {
      config: write,
      schema: {
        tags,
        summary: 'Move money',
        body: Type.Object({
          from_account_id: Type.Integer({ minimum: 1 }),
          to_account_id: Type.Integer({ minimum: 1 }),
          amount: Type.Unsafe<unknown>({ description: 'A JSON number of minor units, above zero.', examples: [1050] }),
          currency: Type.String(),
        }),
      },
    },
    async request => {
      const caller = callerOf(request)
      const { body } = request
      const amount = parseNumericAmount(body.amount)
      const [fromId, toId] = [safeId(body.from_account_id), safeId(body.to_account_id)]
      if (fromId === toId) throw errors.sameAccount()
      const done = await withStatus(
        ledger.submit({
          type: 'transfer',
          kind: 'transfer',
          fromId,
          toId,
          amount,
          currency: readCurrency(rules, body.currency),
          actor: toActor(caller),
          holdMs: null,
          metadata: null,
          key: toStoredKey(idempotencyKeyOf(request)),
        }),
        { 403: 401 },
      )
      const { transfer } = done as { transfer: Transfer }
      return showTransfer(transfer, await ledger.findAccounts([fromId, toId]))
    },
  )
}

/** @throws account_not_found */
function safeId(id: number): number {
  if (!Number.isSafeInteger(id)) throw errors.accountNotFound()
  return id
}

function showTransfer(transfer: Transfer, accounts: Map<number, AccountRow>) {
  const { id, fromId, toId, amount, createdAt } = transfer
  const at = createdAt.toISOString()
  const entry = (entryId: number, accountId: number, change: bigint) => ({
    id: entryId,
    account_id: accountId,
    amount: exact(change),
    created_at: at,
  })
  return {
    transfer: { id, from_account_id: fromId, to_account_id: toId, amount: exact(amount), created_at: at },
    from_account: showAccount(accounts.get(fromId)!, transfer.fromBalance),
    to_account: showAccount(accounts.get(toId)!, transfer.toBalance),
    // A transfer's two entries are one row: their numbers follow from its.
    from_entry: entry(id * 2 - 1, fromId, -amount),
    to_entry: entry(id * 2, toId, amount),
  }
}

/** @param balance as of a moment ago, unless it is given */
function showAccount(row: AccountRow, balance = BigInt(row.balance)) {
  return {
    id: row.id,
    owner: row.owner_name,
    balance: exact(balance),
    currency: row.currency,
    created_at: row.created_at.toISOString(),
  }
}

/** A JSON integer with all its digits. */
function exact(amount: bigint): unknown {
  return (JSON as unknown as { rawJSON(text: string): unknown }).rawJSON(String(amount))
}

/** The contract's status where the native routes have another. */
async function withStatus<T>(work: Promise<T>, statuses: Record<number, number>): Promise<T> {
  try {
    return await work
  } catch (error) {
    const status = isAppError(error) ? statuses[error.status] : undefined
    if (!isAppError(error) || status === undefined) throw error
    throw new AppError({ code: error.code, status, message: error.message, cause: error })
  }
}
