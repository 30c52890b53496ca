/** Pages of a chat's messages. Numbers have no gap, so a page that was taken stays right while others write. */
import type { Database } from '#platform/database/pool.ts'
import { getView } from './access.ts'
import { errors } from './errors.ts'
import * as store from './message-store.ts'
import type { Position } from './requests.ts'
import { type ShownMessage, type ShownPage, showMessage } from './shapes.ts'
import type { Message, Person } from './types.ts'

export interface History {
  /** @throws chat_not_found, not_a_member */
  page(given: { person: Person; chatId: string; position: Position; limit: number }): Promise<ShownPage>
  /** @throws chat_not_found, not_a_member, message_not_found */
  one(given: { person: Person; chatId: string; seq: number }): Promise<ShownMessage>
  /** As one caller sees it. */
  show(person: Person, message: Message): Promise<ShownMessage>
}

export function makeHistory({ db }: { db: Database }): History {
  async function show(person: Person, chatId: string, messages: readonly Message[]): Promise<ShownMessage[]> {
    const seqs = messages.filter(message => message.reactions).map(message => message.seq)
    const own = seqs.length > 0 ? await store.findOwnReactions(db, { chatId, personId: person.id, seqs }) : undefined
    return messages.map(message => showMessage(message, own?.get(message.seq) ?? 'none'))
  }

  return {
    async page({ person, chatId, position, limit }) {
      const view = await getView(db, { person, chatId })
      const found = await take(db, { chatId, position: await place(db, chatId, position), limit })
      const messages = await show(person, chatId, found)
      const lastSeq = Math.max(view.last_seq, messages.at(-1)?.seq ?? 0)
      return { messages, ...linksOf(messages, position), last_seq: lastSeq }

      function linksOf(page: readonly { seq: number }[], asked: Position) {
        const first = page[0]?.seq
        const last = page.at(-1)?.seq
        if (first === undefined || last === undefined) return emptyLinks(asked, lastSeq)
        return { before: first > 1 ? first : null, after: last < lastSeq ? last : null }
      }
    },
    async one({ person, chatId, seq }) {
      await getView(db, { person, chatId })
      const message = await store.findMessage(db, { chatId, seq })
      if (!message) throw errors.messageNotFound()
      return (await show(person, chatId, [message]))[0]!
    },
    async show(person, message) {
      return (await show(person, message.chatId, [message]))[0]!
    },
  }
}

/** Beyond either end of the chat there is nothing, but before it there may be. */
function emptyLinks(asked: Position, lastSeq: number) {
  const isBelow = 'before' in asked || 'until' in asked
  return { before: isBelow || lastSeq === 0 ? null : lastSeq + 1, after: null }
}

type Place = { after: number } | { before: number } | { around: number }

/** Times become numbers. */
async function place(db: Database, chatId: string, position: Position): Promise<Place> {
  if ('from' in position) return { after: await store.seqBefore(db, { chatId, at: position.from }) }
  if ('until' in position) return { before: (await store.seqBefore(db, { chatId, at: position.until })) + 1 }
  return position
}

async function take(
  db: Database,
  { chatId, position, limit }: { chatId: string; position: Place; limit: number },
): Promise<Message[]> {
  if ('after' in position) return store.listUp(db, { chatId, after: position.after, limit })
  if ('before' in position) return (await store.listDown(db, { chatId, before: position.before, limit })).reverse()
  const after = Math.max(0, position.around - 1 - Math.floor(limit / 2))
  return store.listUp(db, { chatId, after, limit })
}
