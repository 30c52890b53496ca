/**
 * A ledger in memory, for tests: what calls come to, one after the other. It shares no code with the ledger that it
 * stands beside, knows no batches and no locks, and takes a failed chain back by returning to a copy of everything.
 */

interface Transfer {
  from: string
  to: string
  amount: number
  currency: string
  /** Sets the money aside for so long instead of moving it. */
  seconds?: number | undefined
}

/** A line of a batch. */
export interface Line {
  wish: Extract<Wish, { type: 'transfer' | 'post' | 'void' | 'reverse' }>
  linked: boolean
  key?: string | undefined
}

/** What somebody may want of a ledger. Accounts, holds and transfers are named by their ids. */
export type Wish =
  | { type: 'open'; currency: string; name: string }
  | { type: 'close'; account: string }
  | { type: 'deposit'; to: string; amount: number; currency: string }
  | { type: 'withdrawal'; from: string; amount: number; currency: string }
  | ({ type: 'transfer' } & Transfer)
  | { type: 'batch'; lines: Line[] }
  | { type: 'post'; hold: string; amount?: number | undefined }
  | { type: 'void'; hold: string }
  /** What the job of a hold does, by nobody. */
  | { type: 'expire'; hold: string }
  | { type: 'reverse'; transfer: string }

export interface Call {
  by: string
  key?: string | undefined
  wish: Wish
}

/** How a wish goes over HTTP. There is none for `expire`. */
export function toHttp(wish: Exclude<Wish, { type: 'expire' }>): { url: string; body?: object } {
  switch (wish.type) {
    case 'open':
      return { url: '/v1/accounts', body: { currency: wish.currency, name: wish.name } }
    case 'close':
      return { url: `/v1/accounts/${wish.account}/close` }
    case 'deposit':
      return { url: '/v1/deposits', body: { to: wish.to, amount: `${wish.amount}`, currency: wish.currency } }
    case 'withdrawal':
      return { url: '/v1/withdrawals', body: { from: wish.from, amount: `${wish.amount}`, currency: wish.currency } }
    case 'transfer':
      return { url: '/v1/transfers', body: transferBody(wish) }
    case 'batch':
      return { url: '/v1/transfers/batch', body: { transfers: wish.lines.map(lineBody) } }
    case 'post':
      return {
        url: `/v1/transfers/${wish.hold}/post`,
        ...(wish.amount !== undefined && { body: { amount: `${wish.amount}` } }),
      }
    case 'void':
      return { url: `/v1/transfers/${wish.hold}/void` }
    case 'reverse':
      return { url: `/v1/transfers/${wish.transfer}/reverse` }
  }
}

function transferBody({ from, to, amount, currency, seconds }: Transfer) {
  const hold = seconds === undefined ? {} : { pending: true, timeout_seconds: seconds }
  return { from, to, amount: String(amount), currency, ...hold }
}

function lineBody({ wish, linked, key }: Line) {
  const own = { ...(key !== undefined && { idempotency_key: key }), ...(linked && { linked }) }
  if (wish.type === 'transfer') return { ...transferBody(wish), ...own }
  if (wish.type === 'reverse') return { reverse: wish.transfer, ...own }
  if (wish.type === 'void') return { void: wish.hold, ...own }
  return { post: wish.hold, ...(wish.amount !== undefined && { amount: String(wish.amount) }), ...own }
}

/** An account after a transfer. */
export interface Side {
  account: string
  balance: number
  version: number
}

/** What a call must be answered. */
export interface Expected {
  /** `posted`, `pending`, `voided`, `expired`, `open`, `closed`, `batch`, or the code of an error. */
  code: string
  /** Of what was made, by this call or by an earlier one with its key. */
  id?: string
  from?: Side
  to?: Side
  /** A batch's, a line each. */
  lines?: Expected[]
}

export interface ModelAccount {
  id: string
  owner: string
  currency: string
  name: string
  status: 'open' | 'closed'
  balance: number
  pendingIn: number
  pendingOut: number
  version: number
}

export interface ModelHold {
  id: string
  from: string
  to: string
  amount: number
  status: 'pending' | 'posted' | 'voided' | 'expired'
  expiresAt: number
}

export interface ModelTransfer {
  id: string
  kind: string
  amount: number
  from: Side
  to: Side
  holdId: string | null
  reversesId: string | null
}

class Refusal extends Error {
  readonly code: string
  constructor(code: string) {
    super(code)
    this.code = code
  }
}

const cashOf = (currency: string) => `cash ${currency}`
const msPerSecond = 1000

export type Model = ReturnType<typeof makeModel>

/** @param bank who may do what admins do */
export function makeModel(bank: string) {
  let state = {
    accounts: new Map<string, ModelAccount>(),
    holds: new Map<string, ModelHold>(),
    transfers: new Map<string, ModelTransfer>(),
    reversed: new Set<string>(),
    keys: new Map<string, { fingerprint: string; expected: Expected }>(),
  }
  let now = 0

  /**
   * @param made.ids what the ledger called that which it made, a line each; the model has no ids of its own
   * @param made.at the ledger's time, in Unix milliseconds
   */
  function carryOut(call: Call, made: { ids: readonly (string | undefined)[]; at: number }): Expected {
    now = made.at
    if (call.wish.type === 'batch') return { code: 'batch', lines: batch(call, call.wish.lines, made.ids) }
    return answer(() => single(call, made.ids[0] ?? 'nothing'))
  }

  function answer(work: () => Expected): Expected {
    try {
      return work()
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      return { code: error.code }
    }
  }

  function single({ by, key, wish }: Call, id: string): Expected {
    if ((wish.type === 'deposit' || wish.type === 'withdrawal') && by !== bank) throw new Refusal('forbidden')
    if (wish.type === 'transfer' || wish.type === 'deposit' || wish.type === 'withdrawal') assertReadable(wish)
    // Accounts are opened and closed under keys that are stored apart.
    const store = wish.type === 'open' || wish.type === 'close' ? 'accounts' : 'transfers'
    return once([store, by, key], JSON.stringify(wish), () => fulfil(by, wish, id))
  }

  function fulfil(by: string, wish: Wish, id: string): Expected {
    switch (wish.type) {
      case 'open':
        return open(by, wish, id)
      case 'close':
        return close(by, wish.account)
      case 'deposit':
        return transfer(by, { ...wish, from: cash(wish.currency) }, { id, kind: 'deposit' })
      case 'withdrawal':
        return transfer(by, { ...wish, to: cash(wish.currency) }, { id, kind: 'withdrawal' })
      case 'transfer':
        return transfer(by, wish, { id, kind: 'transfer' })
      case 'reverse':
        return reverse(by, wish.transfer, id)
      case 'batch':
        throw new Error('A batch is not fulfilled as one.')
      default:
        return settle(by, wish, id)
    }
  }

  /** A refused call leaves its key free. */
  function once(name: (string | undefined)[], fingerprint: string, work: () => Expected): Expected {
    if (name.at(-1) === undefined) return work()
    const first = state.keys.get(name.join('\n'))
    if (first && first.fingerprint !== fingerprint) throw new Refusal('idempotency_key_reused')
    const expected = first?.expected ?? work()
    state.keys.set(name.join('\n'), { fingerprint, expected })
    return expected
  }

  function batch({ by, key }: Call, lines: readonly Line[], ids: readonly (string | undefined)[]): Expected[] {
    const outcomes: Expected[] = []
    while (outcomes.length < lines.length) {
      const start = outcomes.length
      const end = lines.findIndex((line, index) => index >= start && !line.linked) + 1 || lines.length
      outcomes.push(...chain(start, end))
    }
    return outcomes

    function chain(start: number, end: number): Expected[] {
      const places = Array.from({ length: end - start }, (_, index) => start + index)
      const unreadable = places.find(place => answer(() => read(place)).code !== 'readable')
      if (unreadable !== undefined)
        return failed(
          places,
          unreadable,
          answer(() => read(unreadable)),
        )
      const before = structuredClone(state)
      const made: Expected[] = []
      for (const place of places) {
        const line = lines[place]!
        const own = key === undefined ? undefined : `${key}\n${place}`
        const outcome = answer(() =>
          once(['transfers', by, line.key ?? own], JSON.stringify(lineBody(line)), () =>
            fulfil(by, line.wish, ids[place] ?? 'nothing'),
          ),
        )
        if (!isMade(outcome)) {
          state = before
          return failed(places, place, outcome)
        }
        made.push(outcome)
      }
      return made
    }

    function read(place: number): Expected {
      const { wish } = lines[place]!
      if (wish.type === 'transfer') assertReadable(wish)
      if (lines[place]!.linked && place === lines.length - 1) throw new Refusal('chain_open')
      return { code: 'readable' }
    }

    function failed(places: number[], at: number, why: Expected): Expected[] {
      return places.map(place => (place === at ? why : { code: 'chain_failed' }))
    }
  }

  function open(by: string, { currency, name }: { currency: string; name: string }, id: string): Expected {
    const names = (one: ModelAccount) => one.owner === by && one.currency === currency && one.name === name
    if ([...state.accounts.values()].some(one => names(one) && one.status === 'open'))
      throw new Refusal('account_exists')
    const empty = { balance: 0, pendingIn: 0, pendingOut: 0, version: 0 }
    state.accounts.set(id, { id, owner: by, currency, name, status: 'open', ...empty })
    return { code: 'open', id }
  }

  function close(by: string, id: string): Expected {
    const account = find(id)
    if (account.owner !== by) throw new Refusal('foreign_account')
    if (account.status === 'closed') throw new Refusal('account_closed')
    if (account.balance + account.pendingIn + account.pendingOut > 0) throw new Refusal('account_not_empty')
    account.status = 'closed'
    return { code: 'closed', id }
  }

  function find(id: string): ModelAccount {
    const account = state.accounts.get(id)
    if (!account) throw new Refusal('account_not_found')
    return account
  }

  function cash(currency: string): string {
    const id = cashOf(currency)
    if (!state.accounts.has(id)) open('', { currency, name: 'cash' }, id)
    return id
  }

  function transfer(by: string, wish: Transfer, { id, kind }: { id: string; kind: string }): Expected {
    const [from, to] = [find(wish.from), find(wish.to)]
    if (kind === 'transfer' && from.owner !== by) throw new Refusal('foreign_account')
    assertOpen(from, to)
    if (from.currency !== wish.currency || to.currency !== wish.currency) throw new Refusal('currency_mismatch')
    assertAvailable(from, wish.amount)
    const { amount, seconds } = wish
    if (seconds === undefined) return move({ id, kind, from, to, amount })
    from.pendingOut += amount
    to.pendingIn += amount
    const expiresAt = now + seconds * msPerSecond
    state.holds.set(id, { id, from: from.id, to: to.id, amount, status: 'pending', expiresAt })
    return { code: 'pending', id }
  }

  function settle(by: string, wish: Extract<Wish, { hold: string }>, id: string): Expected {
    const hold = state.holds.get(wish.hold)
    if (!hold) throw new Refusal('hold_not_found')
    const [from, to] = [find(hold.from), find(hold.to)]
    if (wish.type !== 'expire') {
      if (![from.owner, to.owner, bank].includes(by)) throw new Refusal('hold_not_found')
      if (wish.type === 'void' && ![to.owner, bank].includes(by)) throw new Refusal('hold_not_yours')
    }
    const isOver = hold.status === 'expired' || (hold.status === 'pending' && now >= hold.expiresAt)
    if (hold.status === 'posted' || hold.status === 'voided') throw new Refusal(`hold_already_${hold.status}`)
    if (hold.status === 'expired' || (isOver && wish.type !== 'expire')) throw new Refusal('hold_expired')
    if (!isOver && wish.type === 'expire') throw new Refusal('hold_not_due')
    const amount = wish.type === 'post' ? (wish.amount ?? hold.amount) : 0
    if (amount > hold.amount) throw new Refusal('hold_amount_exceeded')
    from.pendingOut -= hold.amount
    to.pendingIn -= hold.amount
    hold.status = wish.type === 'post' ? 'posted' : wish.type === 'void' ? 'voided' : 'expired'
    if (wish.type !== 'post') return { code: hold.status, id: hold.id }
    return move({ id, kind: 'post', from, to, amount, holdId: hold.id })
  }

  function reverse(by: string, originalId: string, id: string): Expected {
    const original = state.transfers.get(originalId)
    if (!original) throw new Refusal('transfer_not_found')
    const [from, to] = [find(original.to.account), find(original.from.account)]
    if (![from.owner, bank].includes(by))
      throw new Refusal(to.owner === by ? 'reversal_not_yours' : 'transfer_not_found')
    if (original.kind === 'reversal') throw new Refusal('not_reversible')
    if (state.reversed.has(originalId)) throw new Refusal('already_reversed')
    assertOpen(from, to)
    const { amount } = original
    assertAvailable(from, amount)
    state.reversed.add(originalId)
    return move({ id, kind: 'reversal', from, to, amount, reversesId: originalId })
  }

  function move(given: {
    id: string
    kind: string
    from: ModelAccount
    to: ModelAccount
    amount: number
    holdId?: string
    reversesId?: string
  }): Expected {
    const { id, kind, amount, holdId = null, reversesId = null } = given
    const sides = { from: enter(given.from, -amount), to: enter(given.to, amount) }
    state.transfers.set(id, { id, kind, amount, ...sides, holdId, reversesId })
    return { code: 'posted', id, ...sides }
  }

  return {
    carryOut,
    /** Those of users, in the order they were opened. */
    accounts: () => [...state.accounts.values()].filter(account => account.owner !== ''),
    /** As of now; it changes with the next call. */
    account: (id: string) => state.accounts.get(id)!,
    holds: () => [...state.holds.values()],
    hold: (id: string) => state.holds.get(id),
    transfers: () => [...state.transfers.values()],
    transfer: (id: string) => state.transfers.get(id),
  }
}

/** What can be spent. */
export function availableOf(account: ModelAccount): number {
  return account.owner === '' ? Number.POSITIVE_INFINITY : account.balance - account.pendingOut
}

export function isMade(outcome: Expected): boolean {
  return outcome.id !== undefined
}

function assertReadable({ from, to, amount }: { from?: string; to?: string; amount: number }) {
  if (amount === 0) throw new Refusal('amount_zero')
  if (from !== undefined && from === to) throw new Refusal('same_account')
}

function assertOpen(...accounts: ModelAccount[]) {
  if (accounts.some(account => account.status === 'closed')) throw new Refusal('account_closed')
}

function assertAvailable(account: ModelAccount, amount: number) {
  if (availableOf(account) < amount) throw new Refusal('insufficient_funds')
}

/** Books an entry. */
function enter(account: ModelAccount, amount: number): Side {
  account.balance += amount
  account.version++
  return { account: account.id, balance: account.balance, version: account.version }
}
