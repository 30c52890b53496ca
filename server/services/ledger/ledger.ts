/**
 * Moves money. Orders that come at the same time share a transaction: it locks the holds and accounts they name, each
 * in the order of ids, decides them in the order they came (evaluate.ts), and writes one net update an account.
 */
import { makeBatcher, type Outcome } from '#platform/batch.ts'
import { byIdsParameters, type Database, isConnectionLoss, sqlState, type Tx } from '#platform/database/pool.ts'
import { assertScope, type Caller } from '#platform/http/guard.ts'
import { type IdempotencyKey, idempotently } from '#platform/http/idempotency.ts'
import type { Jobs } from '#platform/jobs/jobs.ts'
import type { Live, TopicSource } from '#platform/live/live.ts'
import { errors } from './errors.ts'
import { type Books, type Evaluation, evaluate } from './evaluate.ts'
import { makeIds } from './ids.ts'
import { expiryJob } from './jobs.ts'
import type { Currencies } from './money.ts'
import * as store from './store.ts'
import type { Done, Hold, Order, Transfer } from './types.ts'

export interface Ledger {
  readonly currencies: Currencies
  /** Carries out one order; it is durable when this resolves. Concurrent calls share a commit. */
  submit(order: Order): Promise<Done>
  /** Carries out many in one transaction: an outcome each, a chain's orders together. */
  submitMany(chains: Order[][]): Promise<Outcome<Done>[][]>
  /** @throws account_exists, too_many_accounts, unknown_currency */
  openAccount(given: {
    caller: Caller
    key?: IdempotencyKey | undefined
    wish: { currency: string; name: string; floor: bigint | null; metadata: string | null }
  }): Promise<store.AccountRow>
  /** The system's account through which a currency comes in and goes out. @throws unknown_currency */
  cashAccount(currency: string): Promise<number>
  /** @throws account_not_found, foreign_account */
  getAccount(caller: Caller, id: number): Promise<store.AccountRow>
  /** For answers that name accounts of others. */
  findAccounts(ids: readonly number[]): ReturnType<typeof store.findAccounts>
  listAccounts(given: Parameters<typeof store.listAccounts>[1]): Promise<store.AccountRow[]>
  /** @throws account_not_found, foreign_account, account_closed, account_not_empty */
  closeAccount(given: { caller: Caller; key?: IdempotencyKey | undefined; id: number }): Promise<store.AccountRow>
  /** With the sides of it that the caller may look into. @throws transfer_not_found */
  getTransfer(caller: Caller, id: number): Promise<{ done: Done; sides: Sides }>
  /** The sides of a transfer that the caller may look into: its own accounts. */
  sidesOf(caller: Caller, parties: { fromId: number; toId: number }): Promise<Sides>
  listTransfers(given: Parameters<typeof store.listTransfers>[1]): ReturnType<typeof store.listTransfers>
  listHolds(given: Parameters<typeof store.listHolds>[1]): Promise<Hold[]>
  listEntries(given: Parameters<typeof store.listEntries>[1]): Promise<store.EntryRow[]>
  /** The versions between which a range of time lies: entries numbered above `after`, up to `upTo`. @throws bad_range */
  rangeOf(given: {
    accountId: number
    from?: Date | undefined
    to?: Date | undefined
  }): Promise<{ after: number; upTo: number | undefined }>
  /** As it was when everything up to and at that instant had happened. */
  balanceAt(given: { accountId: number; at: Date }): Promise<{ version: number; balance: string }>
  /** Resolves when nothing is under way. */
  idle(): Promise<void>
  readonly source: TopicSource
}

export interface Sides {
  from: boolean
  to: boolean
}

export interface LedgerDeps {
  db: Database
  jobs: Pick<Jobs, 'add'>
  live: Pick<Live, 'wake'>
  currencies: Currencies
  /** Unix milliseconds. */
  clock: () => number
}

const ordersMax = 1000
const ordersWaitingMax = 20_000
const manyWaitingMax = 200
const attemptsMax = 3
/** Of one user. */
const accountsMax = 10_000
const cashName = 'cash'
/** The owner of system accounts. No user's id is empty. */
export const systemOwner = ''

export function makeLedger(deps: LedgerDeps): Ledger {
  const { db, currencies } = deps
  const ids = makeIds()
  const cashIds = new Map<string, number>()

  const orders = makeBatcher<Order, Done>({
    name: 'transfers',
    size: ordersMax,
    waitingMax: ordersWaitingMax,
    isCommon: isConnectionLoss,
    run: async items => {
      const outcomes = await carryOut(items.map(order => [order]))
      return outcomes.map(([outcome]) => outcome!)
    },
  })

  const batches = makeBatcher<Order[][], Outcome<Done>[][]>({
    name: 'batches of transfers',
    size: 1,
    parallel: 2,
    waitingMax: manyWaitingMax,
    run: async ([chains]) => [{ value: await carryOut(chains!) }],
  })

  /** Again where another process has just used one of the keys for other accounts: then the key is found. */
  async function carryOut(chains: Order[][]): Promise<Outcome<Done>[][]> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await db.tx(tx => carryOutIn(tx, chains), { parameters: byIdsParameters })
      } catch (error) {
        if (attempt === attemptsMax || !isKeyTaken(error)) throw error
      }
    }
  }

  async function carryOutIn(tx: Tx, chains: Order[][]): Promise<Outcome<Done>[][]> {
    const books = await openBooks(tx, chains.flat())
    const evaluation = evaluate(books, chains)
    await write(tx, evaluation, books.now)
    return evaluation.outcomes
  }

  /** Locks holds before accounts, and looks for keys and reversals last: only then nobody can be writing them. */
  async function openBooks(tx: Tx, all: Order[]): Promise<Books> {
    const holdIds = all.flatMap(order =>
      order.type === 'post' || order.type === 'void' || order.type === 'expire' ? [order.holdId] : [],
    )
    const originalIds = all.flatMap(order => (order.type === 'reversal' ? [order.transferId] : []))
    const holds = holdIds.length > 0 ? await store.lockHolds(tx, sorted(holdIds)) : new Map<number, Hold>()
    const originals = originalIds.length > 0 ? await store.findTransfers(tx, originalIds) : new Map<number, Transfer>()
    // All travel together and are carried out one after another.
    const [accounts, reversals, known] = await Promise.all([
      store.lockAccounts(tx, sorted(accountIdsOf(all, holds, originals))),
      originalIds.length > 0 ? store.findReversals(tx, originalIds) : new Map<number, number>(),
      findKnown(tx, all),
    ])
    let nowMs = deps.clock()
    for (const account of accounts.values()) nowMs = Math.max(nowMs, account.movedAt.getTime())
    return {
      accounts,
      holds,
      originals,
      reversals,
      known,
      firstId: await ids.take(tx, all.length),
      now: new Date(nowMs),
    }
  }

  async function write(tx: Tx, evaluation: Evaluation, at: Date) {
    const { touched, transfers, newHolds, settledHolds } = evaluation
    if (newHolds.length > 0) {
      store.insertHolds(tx, newHolds)
      await deps.jobs.add(tx, newHolds.map(expiryJob))
    }
    if (settledHolds.length > 0) store.settleHolds(tx, settledHolds)
    if (touched.length > 0) store.writeBatch(tx, { accounts: touched, transfers, at })
    tx.afterCommit(() => deps.live.wake(touched.map(account => `accounts/${account.id}`)))
  }

  function assertCurrency(currency: string) {
    if (!currencies.has(currency)) throw errors.unknownCurrency()
  }

  /** Changes an account once a key, and answers it as it was then. */
  async function once(key: IdempotencyKey | undefined, status: number, work: (tx: Tx) => Promise<store.AccountRow>) {
    const { body } = await idempotently(db, key, async tx => ({ status, body: await work(tx) }))
    // A stored answer comes back as JSON.
    const closedAt = body.closed_at && new Date(body.closed_at)
    return { ...body, created_at: new Date(body.created_at), closed_at: closedAt }
  }

  async function sidesOf(caller: Caller, { fromId, toId }: { fromId: number; toId: number }): Promise<Sides> {
    if (caller.role === 'admin') return { from: true, to: true }
    const accounts = await store.findAccounts(db, [fromId, toId])
    const owns = (id: number) => accounts.get(id)?.owner === caller.userId
    return { from: owns(fromId), to: owns(toId) }
  }

  async function getAccount(caller: Caller, id: number) {
    const account = (await store.findAccounts(db, [id])).get(id)
    if (!account) throw errors.accountNotFound(id)
    if (account.owner !== caller.userId && caller.role !== 'admin') throw errors.foreignAccount(id)
    return account
  }

  return {
    currencies,
    submit: order => orders.push(order),
    submitMany: chains => batches.push(chains),
    openAccount({ caller, key, wish }) {
      assertCurrency(wish.currency)
      const { userId: owner, name: ownerName } = caller
      return once(key, 201, async tx => {
        const at = new Date(deps.clock())
        const made = await store.insertAccount(tx, { ...wish, owner, ownerName, at, max: accountsMax })
        if (made) return made
        const { currency, name } = wish
        if (await store.findOpenAccount(tx, { owner, currency, name })) throw errors.accountExists()
        throw errors.tooManyAccounts(accountsMax)
      })
    },
    async cashAccount(currency) {
      assertCurrency(currency)
      const known = cashIds.get(currency)
      if (known !== undefined) return known
      const names = { owner: systemOwner, currency, name: cashName }
      const at = new Date(deps.clock())
      const max = Number.MAX_SAFE_INTEGER
      await store.insertAccount(db, { ...names, ownerName: 'system', floor: null, metadata: null, at, max })
      const { id } = (await store.findOpenAccount(db, names))!
      cashIds.set(currency, id)
      return id
    },
    getAccount,
    findAccounts: accountIds => store.findAccounts(db, accountIds),
    listAccounts: given => store.listAccounts(db, given),
    closeAccount: ({ caller, key, id }) =>
      once(key, 200, async tx => {
        const account = (await store.lockAccounts(tx, [id])).get(id)
        if (!account) throw errors.accountNotFound(id)
        if (account.owner !== caller.userId) throw errors.foreignAccount(id)
        if (account.isClosed) throw errors.accountClosed(id)
        if (account.balance !== 0n || account.pendingIn > 0n || account.pendingOut > 0n) throw errors.accountNotEmpty()
        return store.closeAccount(tx, { id, at: new Date(deps.clock()) })
      }),
    async getTransfer(caller, id) {
      const transfer = (await store.findTransfers(db, [id])).get(id)
      const hold = transfer ? undefined : (await store.findHolds(db, [id])).get(id)
      const found = transfer ?? hold
      if (!found) throw errors.transferNotFound()
      const sides = await sidesOf(caller, found)
      if (!sides.from && !sides.to) throw errors.transferNotFound()
      return { done: transfer ? { transfer } : { hold: hold! }, sides }
    },
    sidesOf,
    listTransfers: given => store.listTransfers(db, given),
    listHolds: given => store.listHolds(db, given),
    listEntries: given => store.listEntries(db, given),
    async rangeOf({ accountId, from, to }) {
      if (from && to && from > to) throw errors.badRange()
      return {
        after: from ? await store.versionBefore(db, { accountId, at: from }) : 0,
        upTo: to ? await store.versionBefore(db, { accountId, at: to }) : undefined,
      }
    },
    async balanceAt({ accountId, at }) {
      // Times have whole milliseconds, so what is before the next one is at or before this one.
      const version = await store.versionBefore(db, { accountId, at: new Date(at.getTime() + 1) })
      const [entry] = await store.listEntries(db, { accountId, after: version - 1, upTo: version, limit: 1 })
      return { version, balance: entry?.balance ?? '0' }
    },
    async idle() {
      await Promise.all([orders.idle(), batches.idle()])
    },
    source: {
      kind: 'accounts',
      async authorize(caller, id) {
        assertScope(caller, 'ledger:read')
        await getAccount(caller, topicId(id) ?? 0)
      },
      async read(id, after, limit) {
        const rows = await store.listEntries(db, { accountId: topicId(id) ?? 0, after, limit })
        return rows.map(row => ({ seq: row.version, type: 'entry', data: showEntry(row) }))
      },
      heads: topicIds =>
        store.listHeads(
          db,
          topicIds.flatMap(id => topicId(id) ?? []),
        ),
    },
  }
}

/** An entry as lists, live topics and exports show it. */
export function showEntry(row: store.EntryRow) {
  return {
    version: row.version,
    amount: row.amount,
    balance: row.balance,
    currency: row.currency,
    kind: row.kind,
    transfer_id: String(row.transfer_id),
    other_account_id: String(row.other_id),
    created_at: row.created_at.toISOString(),
  }
}

/** A topic's id may be any word. */
function topicId(text: string): number | undefined {
  return /^[1-9]\d{0,14}$/.test(text) ? Number(text) : undefined
}

function accountIdsOf(all: Order[], holds: Map<number, Hold>, originals: Map<number, Transfer>): Set<number> {
  const found = new Set<number>()
  for (const order of all) {
    const parties =
      order.type === 'transfer'
        ? order
        : order.type === 'reversal'
          ? originals.get(order.transferId)
          : holds.get(order.holdId)
    if (parties) found.add(parties.fromId).add(parties.toId)
  }
  return found
}

/** What earlier requests with the same keys came to. */
async function findKnown(tx: Tx, all: Order[]): Promise<Map<string, Done>> {
  const keys = [...new Set(all.flatMap(order => order.key?.id ?? []))]
  const known = new Map<string, Done>()
  if (keys.length === 0) return known
  const { transferIds, holdIds } = await store.findKeyed(tx, keys)
  if (transferIds.length > 0) {
    for (const transfer of (await store.findTransfers(tx, transferIds)).values())
      known.set(transfer.key!.id, { transfer })
  }
  if (holdIds.length > 0) {
    for (const hold of (await store.findHolds(tx, holdIds)).values())
      for (const key of [hold.key, hold.voidKey]) if (key) known.set(key.id, { hold })
  }
  return known
}

function isKeyTaken(error: unknown): boolean {
  const { constraint } = error as { constraint?: string }
  return sqlState(error) === '23505' && (constraint?.endsWith('_idempotency') ?? false)
}

function sorted(values: Iterable<number>): number[] {
  return [...new Set(values)].sort((a, b) => a - b)
}
