/**
 * Decides a batch of orders, in the order they came, over accounts and holds that are locked: no clock, no SQL.
 * Every order is checked whole before it changes anything, so one that is refused has done nothing; what the earlier
 * orders of its chain did is taken back.
 */
import type { Outcome } from '#platform/batch.ts'
import { errors as platformErrors } from '#platform/errors.ts'
import { errors } from './errors.ts'
import { amountMax, balanceMin } from './money.ts'
import type {
  Account,
  Actor,
  Done,
  ExpireOrder,
  Hold,
  Order,
  PostOrder,
  ReversalOrder,
  Transfer,
  TransferOrder,
  VoidOrder,
} from './types.ts'

/** What the batch locked and found. It is changed by the evaluation. */
export interface Books {
  accounts: Map<number, Account>
  holds: Map<number, Hold>
  /** Transfers that are to be reversed. */
  originals: Map<number, Transfer>
  /** By the reversed transfer's id, the reversal's. */
  reversals: Map<number, number>
  /** By the key's id, what its first request came to. */
  known: Map<string, Done>
  /** The first of as many free ids as there are orders. */
  firstId: number
  /** Not before anything that happened to the accounts. */
  now: Date
}

export interface Evaluation {
  /** A chain's outcomes, an order each. */
  outcomes: Outcome<Done>[][]
  /** To be written. Their ids rise. */
  transfers: Transfer[]
  newHolds: Hold[]
  settledHolds: Hold[]
  touched: Account[]
}

/** @param chains each succeeds or fails as a whole; most have one order */
export function evaluate(books: Books, chains: readonly (readonly Order[])[]): Evaluation {
  const state = makeState(books)
  const outcomes = chains.map(chain => (chain.length === 1 ? [attempt(state, chain[0]!)] : evaluateChain(state, chain)))
  return {
    outcomes,
    transfers: state.transfers,
    newHolds: state.newHolds,
    settledHolds: [...state.settledHolds],
    touched: [...state.touched],
  }
}

function evaluateChain(state: State, chain: readonly Order[]): Outcome<Done>[] {
  const undo = state.remember()
  const outcomes: Outcome<Done>[] = []
  for (const [index, order] of chain.entries()) {
    const outcome = attempt(state, order)
    if ('error' in outcome) {
      undo()
      return chain.map((_, other) => (other === index ? outcome : { error: errors.chainFailed(index) }))
    }
    outcomes.push(outcome)
  }
  state.forget()
  return outcomes
}

function attempt(state: State, order: Order): Outcome<Done> {
  try {
    return { value: replay(state, order) ?? carryOut(state, order) }
  } catch (error) {
    return { error }
  }
}

/** What the first request with this key came to. @throws idempotency_key_reused */
function replay(state: State, { key }: Order): Done | undefined {
  const done = key ? state.books.known.get(key.id) : undefined
  if (!done) return undefined
  const first = 'transfer' in done ? done.transfer.key : [done.hold.key, done.hold.voidKey].find(k => k?.id === key!.id)
  if (first?.fingerprint !== key!.fingerprint) throw platformErrors.idempotencyMismatch()
  return done
}

function carryOut(state: State, order: Order): Done {
  if (order.type === 'transfer') return order.holdMs === null ? transfer(state, order) : hold(state, order)
  if (order.type === 'post') return post(state, order)
  if (order.type === 'void') return letGo(state, order, 'voided')
  if (order.type === 'expire') return letGo(state, order, 'expired')
  return reverse(state, order)
}

function transfer(state: State, order: TransferOrder): Done {
  const { from, to } = partiesOf(state, order)
  assertFits({ from, to, amount: order.amount })
  const { kind, amount, metadata, key } = order
  return state.move({ from, to, kind, amount, actor: order.actor, metadata, key })
}

/** @throws account_not_found, foreign_account, account_closed, currency_mismatch */
function partiesOf({ books }: State, order: TransferOrder) {
  const from = books.accounts.get(order.fromId)
  if (!from) throw errors.accountNotFound(order.fromId)
  const to = books.accounts.get(order.toId)
  if (!to) throw errors.accountNotFound(order.toId)
  if (order.kind === 'transfer' && from.owner !== order.actor.userId) throw errors.foreignAccount(from.id)
  if (from.isClosed) throw errors.accountClosed(from.id)
  if (to.isClosed) throw errors.accountClosed(to.id)
  if (from.currency !== order.currency || to.currency !== order.currency) throw errors.currencyMismatch()
  return { from, to }
}

/** @throws insufficient_funds, balance_overflow */
function assertFits({ from, to, amount }: { from: Account; to: Account; amount: bigint }) {
  const left = from.balance - from.pendingOut - amount
  if (from.floor !== null && left < from.floor) throw errors.insufficientFunds(from.id)
  if (left < balanceMin) throw errors.balanceOverflow(from.id)
  // What is pending counts too, so that a hold that was made can always be posted.
  if (to.balance + to.pendingIn + amount > amountMax) throw errors.balanceOverflow(to.id)
}

function hold(state: State, order: TransferOrder): Done {
  const { from, to } = partiesOf(state, order)
  assertFits({ from, to, amount: order.amount })
  if (from.pendingOut + order.amount > amountMax) throw errors.balanceOverflow(from.id)
  if (to.pendingIn + order.amount > amountMax) throw errors.balanceOverflow(to.id)
  state.touch(from).pendingOut += order.amount
  state.touch(to).pendingIn += order.amount
  return state.setAside(order)
}

function post(state: State, order: PostOrder): Done {
  const held = openHold(state, order)
  const { actor, key } = order
  const amount = order.amount ?? held.amount
  if (amount > held.amount) throw errors.holdAmountExceeded(held.amount)
  const { from, to } = state.release(held)
  const { metadata } = held
  const done = state.move({ from, to, kind: 'post', amount, actor, metadata, key, holdId: held.id })
  state.settle(held, { status: 'posted', transferId: done.transfer.id })
  return done
}

function letGo(state: State, order: VoidOrder | ExpireOrder, status: 'voided' | 'expired'): Done {
  const held = order.type === 'void' ? openHold(state, order) : dueHold(state, order)
  state.release(held)
  state.settle(held, { status, voidKey: order.key })
  return { hold: held }
}

/** @throws hold_not_found, hold_not_yours, hold_already_posted, hold_already_voided, hold_expired */
function openHold({ books }: State, order: PostOrder | VoidOrder): Hold {
  const held = books.holds.get(order.holdId)
  if (!held) throw errors.holdNotFound()
  const pays = books.accounts.get(held.fromId)!.owner === order.actor.userId
  const gets = books.accounts.get(held.toId)!.owner === order.actor.userId
  if (!pays && !gets && !order.actor.isAdmin) throw errors.holdNotFound()
  if (order.type === 'void' && !gets && !order.actor.isAdmin) throw errors.holdNotYours()
  assertOpen(held)
  if (books.now >= held.expiresAt) throw errors.holdExpired()
  return held
}

/** @throws hold_not_found, hold_already_posted, hold_already_voided, hold_expired, hold_not_due */
function dueHold({ books }: State, order: ExpireOrder): Hold {
  const held = books.holds.get(order.holdId)
  if (!held) throw errors.holdNotFound()
  assertOpen(held)
  if (books.now < held.expiresAt) throw errors.holdNotDue()
  return held
}

function assertOpen(held: Hold) {
  if (held.status === 'posted') throw errors.holdAlreadyPosted()
  if (held.status === 'voided') throw errors.holdAlreadyVoided()
  if (held.status === 'expired') throw errors.holdExpired()
}

function reverse(state: State, order: ReversalOrder): Done {
  const { books } = state
  const original = books.originals.get(order.transferId)
  if (!original) throw errors.transferNotFound()
  // The money goes back: who got it is who pays now.
  const from = books.accounts.get(original.toId)!
  const to = books.accounts.get(original.fromId)!
  assertMayReverse({ actor: order.actor, payer: from, payee: to })
  if (original.kind === 'reversal') throw errors.notReversible()
  const earlier = books.reversals.get(original.id)
  if (earlier !== undefined) throw errors.alreadyReversed(earlier)
  for (const account of [from, to]) if (account.isClosed) throw errors.accountClosed(account.id)
  const { amount } = original
  assertFits({ from, to, amount })
  const { actor, metadata, key } = order
  return state.move({ from, to, kind: 'reversal', amount, actor, metadata, key, reversesId: original.id })
}

/** @throws transfer_not_found, reversal_not_yours */
function assertMayReverse({ actor, payer, payee }: { actor: Actor; payer: Account; payee: Account }) {
  if (actor.isAdmin || payer.owner === actor.userId) return
  throw payee.owner === actor.userId ? errors.reversalNotYours() : errors.transferNotFound()
}

interface Movement {
  from: Account
  to: Account
  kind: Transfer['kind']
  amount: bigint
  actor: Actor
  metadata: string | null
  key: Transfer['key']
  holdId?: number
  reversesId?: number
}

type State = ReturnType<typeof makeState>

/** The books and what was done to them so far. Inside a chain it notes how to take that back. */
function makeState(books: Books) {
  const transfers: Transfer[] = []
  const newHolds: Hold[] = []
  const settledHolds = new Set<Hold>()
  const touched = new Set<Account>()
  let nextId = books.firstId
  let undos: (() => void)[] | undefined

  /** Call it before changing the account. */
  function touch(account: Account): Account {
    touched.add(account)
    if (undos) {
      const before = { ...account }
      undos.push(() => Object.assign(account, before))
    }
    return account
  }

  /** An undone account stays among the touched: it is written as it was. */
  function remember() {
    undos = []
    const counts = [transfers.length, newHolds.length] as const
    const firstId = nextId
    return () => {
      for (const undo of undos!.reverse()) undo()
      transfers.length = counts[0]
      newHolds.length = counts[1]
      nextId = firstId
      undos = undefined
    }
  }

  function know(key: Transfer['key'], done: Done) {
    if (!key) return
    books.known.set(key.id, done)
    undos?.push(() => books.known.delete(key.id))
  }

  function move(movement: Movement): { transfer: Transfer } {
    const { amount, holdId = null, reversesId = null } = movement
    const from = touch(movement.from)
    const to = touch(movement.to)
    from.balance -= amount
    from.version++
    to.balance += amount
    to.version++
    const made: Transfer = {
      id: nextId++,
      fromId: from.id,
      toId: to.id,
      amount,
      currency: from.currency,
      kind: movement.kind,
      fromVersion: from.version,
      fromBalance: from.balance,
      toVersion: to.version,
      toBalance: to.balance,
      holdId,
      reversesId,
      madeBy: movement.actor.userId,
      metadata: movement.metadata,
      createdAt: books.now,
      key: movement.key,
    }
    transfers.push(made)
    if (reversesId !== null) {
      books.reversals.set(reversesId, made.id)
      undos?.push(() => books.reversals.delete(reversesId))
    }
    know(made.key, { transfer: made })
    return { transfer: made }
  }

  function setAside(order: TransferOrder): Done {
    const { fromId, toId, amount, currency, metadata, key } = order
    const made: Hold = {
      id: nextId++,
      fromId,
      toId,
      amount,
      currency,
      status: 'open',
      transferId: null,
      madeBy: order.actor.userId,
      metadata,
      createdAt: books.now,
      expiresAt: new Date(books.now.getTime() + order.holdMs!),
      settledAt: null,
      key,
      voidKey: null,
    }
    newHolds.push(made)
    know(key, { hold: made })
    return { hold: made }
  }

  function release(held: Hold) {
    const from = touch(books.accounts.get(held.fromId)!)
    const to = touch(books.accounts.get(held.toId)!)
    from.pendingOut -= held.amount
    to.pendingIn -= held.amount
    return { from, to }
  }

  function settle(held: Hold, change: Partial<Pick<Hold, 'status' | 'transferId' | 'voidKey'>>) {
    if (undos) {
      const before = { ...held }
      undos.push(() => {
        Object.assign(held, before)
        settledHolds.delete(held)
      })
    }
    Object.assign(held, change, { settledAt: books.now })
    settledHolds.add(held)
    if (held.voidKey) know(held.voidKey, { hold: held })
  }

  return {
    books,
    transfers,
    newHolds,
    settledHolds,
    touched,
    touch,
    remember,
    /** The chain has succeeded. */
    forget() {
      undos = undefined
    },
    move,
    setAside,
    release,
    settle,
  }
}
