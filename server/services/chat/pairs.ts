/**
 * Direct chats as the old messenger names them, `<member1>:<member2>`, for its routes and for gRPC. Who logs in speaks
 * for itself alone; who does not, where that is open, is whoever it says.
 */
import type { Caller } from '#platform/http/guard.ts'
import type { Chats } from './chat.ts'
import type { Directs } from './directs.ts'
import { errors } from './errors.ts'
import type { People } from './people.ts'
import { lower } from './people-store.ts'
import * as read from './requests.ts'
import type { Message, Person } from './types.ts'

export interface Pairs {
  /**
   * @param given.isOpen whether people who are not users can be written to
   * @throws not_two_members, sender_not_in_chat, foreign_sender, user_not_found, what readText and Chats.sendDirect throw
   */
  send(given: {
    caller: Caller | undefined
    isOpen: boolean
    chat: unknown
    sender: unknown
    text: unknown
  }): Promise<Message>
  /**
   * Those numbered above `cursor`; with `reverse` those from `cursor` down, 0 being the newest.
   * @throws not_two_members, not_a_member, bad_message_number, bad_limit, bad_flag
   */
  pull(given: { caller: Caller | undefined } & Record<'chat' | 'cursor' | 'limit' | 'reverse', unknown>): Promise<{
    messages: Message[]
    hasMore: boolean
    /** What the next pull passes; 0 where there is none. */
    nextCursor: number
  }>
  /** The id under which the chat can be followed; undefined before its first message. @throws not_two_members, not_a_member */
  find(given: { caller: Caller | undefined; chat: unknown }): Promise<string | undefined>
}

const limitDefault = 10

/** The sender's name as it was written. */
export function spellingOf(message: Message): string {
  return message.details?.spelling ?? message.sender
}

export function makePairs(deps: { chats: Chats; people: People; directs: Directs }): Pairs {
  const { chats, people, directs } = deps

  /** The two, where both have been seen here. @throws not_two_members, not_a_member */
  async function look(caller: Caller | undefined, chat: unknown): Promise<[Person, Person] | undefined> {
    const names = readMembers(chat)
    if (caller && !names.some(name => isSame(name, caller.name))) throw errors.notAMember()
    const [one, other] = await Promise.all(names.map(people.known))
    return one && other && [one, other]
  }

  return {
    async send({ caller, isOpen, chat, sender: spelling, text }) {
      const names = readMembers(chat)
      if (typeof spelling !== 'string' || !names.some(name => isSame(name, spelling))) throw errors.senderNotInChat()
      const draft = read.readDraft({ text })
      if (caller && !isSame(caller.name, spelling)) throw errors.foreignSender()
      const otherName = names.find(name => !isSame(name, spelling))!
      const [sender, other] = await Promise.all([
        caller ? people.of(caller) : people.anybody(spelling),
        isOpen ? people.anybody(otherName) : people.user(otherName),
      ])
      return chats.sendDirect({
        sender,
        other,
        draft,
        spelling: spelling === sender.name ? undefined : spelling,
      })
    },

    async pull({ caller, chat, ...given }) {
      const pair = await look(caller, chat)
      const cursor = read.readSeq(given.cursor ?? 0, 'cursor')
      const limit = read.readLimit(given.limit, limitDefault)
      const isReverse = readReverse(given.reverse)
      const from = isReverse ? { before: cursor === 0 ? Number.MAX_SAFE_INTEGER : cursor + 1 } : { after: cursor }
      // One more than asked for tells whether there are more.
      const found = pair ? await chats.pullDirect({ pair, from, limit: limit + 1 }) : []
      const messages = found.slice(0, limit)
      const hasMore = found.length > limit
      const last = messages.at(-1)?.seq ?? 0
      return { messages, hasMore, nextCursor: !hasMore ? 0 : isReverse ? last - 1 : last }
    },

    async find({ caller, chat }) {
      const pair = await look(caller, chat)
      return pair && directs.find(...pair)
    },
  }
}

/** The two names, as they were written. @throws not_two_members */
function readMembers(chat: unknown): [string, string] {
  const names = typeof chat === 'string' ? chat.split(':') : []
  const [one, other] = names
  if (names.length !== 2 || !read.isName(one) || !read.isName(other) || isSame(one, other)) throw errors.notTwoMembers()
  return [one, other]
}

function isSame(one: string, other: string): boolean {
  return lower(one) === lower(other)
}

function readReverse(value: unknown): boolean {
  if (value === undefined) return false
  return read.readFlag(value === 'true' ? true : value === 'false' ? false : value, 'reverse')
}
