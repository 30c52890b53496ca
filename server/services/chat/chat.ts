/** What the doors of the service (routes, live calls, the old contract) do with chats. Decisions of rooms: rooms.ts. */
import type { Database } from '#platform/database/pool.ts'
import type { Caller } from '#platform/http/guard.ts'
import type { Live } from '#platform/live/live.ts'
import { getView } from './access.ts'
import type { Directs } from './directs.ts'
import { errors } from './errors.ts'
import type { ChatLimits } from './limits.ts'
import type { Marks } from './marks.ts'
import { listDown, listUp } from './message-store.ts'
import type { People } from './people.ts'
import { isBlocked } from './people-store.ts'
import * as rooms from './room-store.ts'
import type { Sending } from './sending.ts'
import { type ShownMarks, showChat } from './shapes.ts'
import { makeTurns } from './turns.ts'
import type { Draft, Message, Person, Send } from './types.ts'

export interface ChatDeps {
  db: Database
  live: Pick<Live, 'signal'>
  people: People
  directs: Directs
  sending: Sending
  marks: Marks
  limits: ChatLimits
}

export type Chats = ReturnType<typeof makeChats>

export function makeChats(deps: ChatDeps) {
  const { db, live, people, directs, sending, marks, limits } = deps
  const turns = makeTurns()

  async function mentionedIn(draft: Draft): Promise<Person[]> {
    const found: Person[] = []
    for (const name of draft.mentions) {
      const person = await people.known(name)
      if (!person) throw errors.mentionNotMember(name)
      found.push(person)
    }
    return found
  }

  async function prepare(
    by: Person | Promise<Person>,
    { chatId, draft }: Pick<Send, 'chatId' | 'draft'>,
  ): Promise<Send> {
    const sender = await by
    await limits.take({ personId: sender.id, chatId })
    return { chatId, sender, draft, mentioned: draft.mentions.length === 0 ? noPeople : await mentionedIn(draft) }
  }

  return {
    person: (caller: Caller) => people.of(caller),

    /** A caller's messages are numbered in the order of the calls. @throws what Sending throws, rate_limited */
    async send(caller: Caller, { chatId, draft }: { chatId: string; draft: Draft }): Promise<Message> {
      return sending.send(await turns.take(caller.userId, prepare(people.of(caller), { chatId, draft })))
    },

    /** Into the direct chat of two, made where there was none; for the old contract. @throws rate_limited, blocked */
    async sendDirect(given: { sender: Person; other: Person; draft: Draft; spelling?: string | undefined }) {
      const { sender, other, draft, spelling } = given
      const chatId = await directs.ensure(sender, other)
      const send = await prepare(sender, { chatId, draft })
      return sending.send(spelling === undefined ? send : { ...send, spelling })
    },

    /** A page of the pair's messages, as the old contract has it; `before` counts down. None where they have no chat. */
    async pullDirect(given: {
      pair: readonly [Person, Person]
      from: { after: number } | { before: number }
      limit: number
    }): Promise<Message[]> {
      const chatId = await directs.find(...given.pair)
      if (chatId === undefined) return []
      const { from, limit } = given
      return 'after' in from ? listUp(db, { chatId, ...from, limit }) : listDown(db, { chatId, ...from, limit })
    },

    /** Raises a mark of the caller. @throws not_a_member, message_not_found */
    async mark(
      caller: Caller,
      given: { chatId: string; kind: 'read' | 'delivered'; seq: number },
    ): Promise<ShownMarks> {
      return marks.raise({ ...given, person: await people.of(caller), userId: caller.userId })
    },

    /** Shown to who follows the chat just now. @throws chat_not_found, not_a_member */
    async typing(caller: Caller, { chatId }: { chatId: string }): Promise<void> {
      const person = await people.of(caller)
      await getView(db, { person, chatId })
      live.signal(`chats/${chatId}`, { type: 'typing', data: { username: person.name } }, { except: caller.userId })
    },

    /** The direct chat with a user; made where there was none. @throws self_chat, user_not_found, blocked */
    async openDirect(caller: Caller, username: string) {
      const person = await people.of(caller)
      const other = await people.user(username)
      if (other.id === person.id) throw errors.selfChat()
      const existing = await directs.find(person, other)
      if (existing === undefined && (await isBlocked(db, { blockerId: other.id, blockedId: person.id })))
        throw errors.blocked()
      const chatId = existing ?? (await directs.ensure(person, other))
      return { chat: showChat(await getView(db, { person, chatId })), isNew: existing === undefined }
    },

    /** For who follows inside the process. @throws chat_not_found, not_a_member */
    async assertMember(caller: Caller, chatId: string): Promise<void> {
      await getView(db, { person: await people.of(caller), chatId })
    },

    /** For members, and of open rooms for everybody. @throws chat_not_found, not_a_member */
    async get(caller: Caller, chatId: string) {
      const { id: personId } = await people.of(caller)
      const view = await rooms.findView(db, { personId, chatId })
      if (!view) throw errors.chatNotFound()
      if (view.role === null && !view.is_open) throw errors.notAMember()
      return showChat(view)
    },

    /** @throws not_a_member */
    async mute(caller: Caller, given: { chatId: string; until: Date | null }): Promise<void> {
      const { id: personId } = await people.of(caller)
      if (!(await rooms.updateMute(db, { ...given, personId }))) throw errors.notAMember()
    },
  }
}

const noPeople: readonly Person[] = []
