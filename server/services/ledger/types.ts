/** The words of the ledger. Ids and versions are safe integers, money is bigint, times are Dates of whole milliseconds. */

export type TransferKind = 'transfer' | 'deposit' | 'withdrawal' | 'post' | 'reversal'
export type HoldStatus = 'open' | 'posted' | 'voided' | 'expired'

/** What a batch may change of an account, and what it must know to. */
export interface Account {
  id: number
  owner: string
  currency: string
  balance: bigint
  /** Set aside for it by open holds. */
  pendingIn: bigint
  /** Set aside from it by open holds. */
  pendingOut: bigint
  /** `balance - pendingOut` stays at or above it; null for a system account, which has none. */
  floor: bigint | null
  /** The number of its newest entry. */
  version: number
  isClosed: boolean
  movedAt: Date
}

/** An idempotency key as it is stored: halves of SHA-256 digests in hexadecimal. */
export interface StoredKey {
  /** Of owner and key. */
  id: string
  /** Of the request. */
  fingerprint: string
}

/** Money that moved. Never changes. */
export interface Transfer {
  id: number
  fromId: number
  toId: number
  amount: bigint
  currency: string
  kind: TransferKind
  /** The number of the entry that it is in each account, and the balance after it. */
  fromVersion: number
  fromBalance: bigint
  toVersion: number
  toBalance: bigint
  holdId: number | null
  reversesId: number | null
  /** The user who asked for it. */
  madeBy: string
  /** JSON. */
  metadata: string | null
  createdAt: Date
  key: StoredKey | null
}

/** Money set aside. */
export interface Hold {
  id: number
  fromId: number
  toId: number
  amount: bigint
  currency: string
  status: HoldStatus
  /** What posted it. */
  transferId: number | null
  madeBy: string
  metadata: string | null
  createdAt: Date
  expiresAt: Date
  settledAt: Date | null
  key: StoredKey | null
  voidKey: StoredKey | null
}

/** Who asks. */
export interface Actor {
  userId: string
  isAdmin: boolean
}

/** A transfer that is asked for; every field was checked for its shape. */
export interface TransferOrder {
  type: 'transfer'
  kind: 'transfer' | 'deposit' | 'withdrawal'
  fromId: number
  toId: number
  amount: bigint
  currency: string
  actor: Actor
  /** Sets the money aside for so long instead of moving it. */
  holdMs: number | null
  metadata: string | null
  key: StoredKey | null
}

/** Posts a hold, whole where no amount is given. */
export interface PostOrder {
  type: 'post'
  holdId: number
  amount: bigint | null
  actor: Actor
  key: StoredKey | null
}

export interface VoidOrder {
  type: 'void'
  holdId: number
  actor: Actor
  key: StoredKey | null
}

export interface ExpireOrder {
  type: 'expire'
  holdId: number
  key: null
}

export interface ReversalOrder {
  type: 'reversal'
  transferId: number
  actor: Actor
  metadata: string | null
  key: StoredKey | null
}

export type Order = TransferOrder | PostOrder | VoidOrder | ExpireOrder | ReversalOrder

/** What an order came to. */
export type Done = { transfer: Transfer } | { hold: Hold }
