/**
 * Chats over `GET /v1/live`: two topics a chat and the calls of a client. `chats/<id>` has the messages by their
 * numbers, each as it is when it is read; `chat-changes/<id>` has what became of them afterwards, by numbers of its own.
 */
import type { Database } from '#platform/database/pool.ts'
import { assertScope, type Caller } from '#platform/http/guard.ts'
import { isUuid } from '#platform/ids.ts'
import type { Live, LiveEvent, TopicSource } from '#platform/live/live.ts'
import { getView } from './access.ts'
import * as changes from './change-store.ts'
import type { Chats } from './chat.ts'
import { errors } from './errors.ts'
import type { History } from './history.ts'
import { findMessages, listUp } from './message-store.ts'
import type { People } from './people.ts'
import {
  draftFields,
  positionFields,
  readChatId,
  readDraft,
  readFields,
  readLimit,
  readPosition,
  readSeq,
} from './requests.ts'
import { showMessage } from './shapes.ts'
import type { Message } from './types.ts'

interface FollowingDeps {
  db: Database
  people: People
}

export function makeSources(deps: FollowingDeps): TopicSource[] {
  return [makeMessages(deps), makeChanges(deps)]
}

function makeMessages({ db, people }: FollowingDeps): TopicSource {
  return {
    kind: 'chats',
    presence: true,
    authorize: (caller, id) => authorize({ db, people }, caller, id),
    presenceOf: async caller => (await people.of(caller)).name,
    async read(id, after, limit) {
      if (!isUuid(id)) return []
      return (await listUp(db, { chatId: id, after, limit })).map(toEvent)
    },
    heads: ids => changes.listHeads(db, { chatIds: ids.filter(isUuid), of: 'messages' }),
  }
}

function makeChanges({ db, people }: FollowingDeps): TopicSource {
  return {
    kind: 'chat-changes',
    authorize: (caller, id) => authorize({ db, people }, caller, id),
    async read(id, after, limit) {
      if (!isUuid(id)) return []
      const rows = await changes.listChanges(db, { chatId: id, after, limit })
      const seqs = [...new Set(rows.flatMap(row => row.message_seq ?? []))]
      const found =
        seqs.length > 0
          ? await findMessages(
              db,
              seqs.map(seq => ({ chatId: id, seq })),
            )
          : []
      const messages = new Map(found.map(message => [message.seq, message]))
      return rows.map(row => toChangeEvent(row, messages))
    },
    heads: ids => changes.listHeads(db, { chatIds: ids.filter(isUuid), of: 'changes' }),
  }
}

async function authorize({ db, people }: FollowingDeps, caller: Caller, id: string): Promise<void> {
  assertScope(caller, 'chat:read')
  const chatId = readChatId(id)
  // Wake-ups name a topic in one way only.
  if (chatId !== id) throw errors.chatNotFound()
  await getView(db, { person: await people.of(caller), chatId })
}

function toEvent(message: Message): LiveEvent {
  const ends = message.details?.event?.ends
  const event = { seq: message.seq, type: 'message', data: showMessage(message) }
  return ends === undefined ? event : { ...event, ends: [ends] }
}

/** An edit, a deletion or a reaction comes with the message as it is now. */
function toChangeEvent(row: changes.ChangeRow, messages: Map<number, Message>): LiveEvent {
  const message = row.message_seq === null ? undefined : messages.get(row.message_seq)
  const data = { ...(row.data as object | null), ...(message ? { message: showMessage(message) } : {}) }
  return { seq: row.seq, type: row.type, data, ...(row.ends === null ? {} : { ends: [row.ends] }) }
}

/** What clients may ask for over their connection, without waiting in between. */
export function addCalls(live: Pick<Live, 'addCall'>, { chats, history }: { chats: Chats; history: History }) {
  live.addCall({
    name: 'chats.send',
    scope: 'chat:write',
    async run(caller, params) {
      const fields = readFields(params, ['chat_id', ...draftFields])
      const draft = readDraft(fields)
      const message = await chats.send(caller, { chatId: readChatId(fields.chat_id), draft })
      return { seq: message.seq, created_at: message.createdAt.toISOString() }
    },
  })
  for (const kind of ['read', 'delivered'] as const) {
    live.addCall({
      name: `chats.${kind}`,
      scope: 'chat:write',
      async run(caller, params) {
        const fields = readFields(params, ['chat_id', 'seq'])
        return chats.mark(caller, { chatId: readChatId(fields.chat_id), kind, seq: readSeq(fields.seq, 'seq') })
      },
    })
  }
  live.addCall({
    name: 'chats.typing',
    scope: 'chat:write',
    async run(caller, params) {
      await chats.typing(caller, { chatId: readChatId(readFields(params, ['chat_id']).chat_id) })
      return {}
    },
  })
  live.addCall({
    name: 'chats.pull',
    scope: 'chat:read',
    async run(caller, params) {
      const fields = readFields(params, ['chat_id', 'limit', ...positionFields])
      return history.page({
        person: await chats.person(caller),
        chatId: readChatId(fields.chat_id),
        position: readPosition(fields),
        limit: readLimit(fields.limit, pageDefault),
      })
    },
  })
}

export const pageDefault = 50
