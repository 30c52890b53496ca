/** Somebody who can be in a chat. Neither number nor name ever changes. */
export interface Person {
  id: number
  /** As its owner writes it. */
  name: string
}

export const roles = ['owner', 'moderator', 'member'] as const
export type Role = (typeof roles)[number]

/** A chat as a batch finds it, locked. */
export interface Chat {
  id: string
  kind: 'direct' | 'room'
  name: string | null
  isOpen: boolean
  /** The two of a direct chat, the lower id first. */
  pair: Pair | undefined
  lowBlocked: boolean
  highBlocked: boolean
  lastSeq: number
  changeSeq: number
  members: number
  lastAt: Date
}

export interface Pair {
  low: number
  high: number
}

/** What somebody wants to say, with every check behind it that needs no database. */
export interface Draft {
  text: string
  /** By which a retry is known. */
  clientId: string | null
  replyTo: number | null
  /** As they were written. */
  mentions: readonly string[]
  /** Ids of images. */
  attachments: readonly string[]
}

/** A message on its way into a chat. */
export interface Send {
  chatId: string
  sender: Person
  draft: Draft
  mentioned: readonly Person[]
  /** How the old contract's sender wrote its name, where that differs from the person's. */
  spelling?: string | undefined
}

/** What most messages have none of. */
export interface Details {
  mentions?: readonly string[]
  attachments?: readonly string[]
  /** How the old contract's sender wrote its name. */
  spelling?: string
  /** What a system message tells. */
  event?: SystemEvent
}

export interface SystemEvent {
  type: 'created' | 'joined' | 'added' | 'left' | 'removed' | 'renamed' | 'opened' | 'closed'
  /** Whom it is about, where that is not the sender. */
  username?: string
  name?: string
  /** The user id of one whose deliveries end here. */
  ends?: string
}

export interface Message {
  chatId: string
  seq: number
  /** The name of who sent it, or did what a system message tells. */
  sender: string
  kind: 'text' | 'system'
  text: string
  clientId: string | null
  replyTo: number | null
  details: Details | null
  /** How many by emoji. */
  reactions: Record<string, number> | null
  createdAt: Date
  editedAt: Date | null
  edits: number
  deletedAt: Date | null
}

/** How far a member has come. */
export interface Marks {
  read: number
  delivered: number
}
