/** What becomes of messages after they were sent. Their numbers stay; each change has a number of its own. */
import type { Database, Tx } from '#platform/database/pool.ts'
import type { Live } from '#platform/live/live.ts'
import { assertRole, enter, type Scene } from './access.ts'
import { type Change, insertChange } from './change-store.ts'
import { errors } from './errors.ts'
import * as store from './message-store.ts'
import { noteUnindexed } from './search-store.ts'
import type { Message, Person } from './types.ts'

export interface About {
  person: Person
  chatId: string
  seq: number
}

export interface Edits {
  /** @throws not_a_member, message_not_found, message_fixed, not_the_sender */
  edit(about: About, text: string): Promise<Message>
  /** By its sender, a moderator or the owner. Again does nothing. @throws not_a_member, message_not_found, message_fixed, role_too_low */
  remove(about: About): Promise<Message>
  /** Puts an emoji to a message or takes it away. Again does nothing. @throws not_a_member, message_not_found, message_fixed, too_many_reactions */
  react(about: About, emoji: string, isOn: boolean): Promise<Message>
}

type Found = NonNullable<Awaited<ReturnType<typeof store.findMessage>>>

const reactionKindsMax = 20

export function makeEdits(deps: { db: Database; live: Pick<Live, 'wake'>; clock: () => number }): Edits {
  const { db, live, clock } = deps

  /** Does `work` under the lock of the chat, and answers the message as it is then. */
  function change(about: About, work: (tx: Tx, scene: Scene, message: Found) => Promise<void>): Promise<Message> {
    return db.tx(async tx => {
      const scene = await enter(tx, { ...about, nowMs: clock() })
      const message = await store.findMessage(tx, about)
      if (!message) throw errors.messageNotFound()
      await work(tx, scene, message)
      return (await store.findMessage(tx, about))!
    })
  }

  async function note(tx: Tx, { chatId, seq }: About, fields: Pick<Change, 'type' | 'data' | 'at'>) {
    await insertChange(tx, { chatId, messageSeq: seq, ...fields })
    tx.afterCommit(() => live.wake([`chat-changes/${chatId}`]))
  }

  return {
    edit: (about, text) =>
      change(about, async (tx, { at }, message) => {
        if (message.kind === 'system' || message.deletedAt) throw errors.messageFixed()
        if (message.senderId !== about.person.id) throw errors.notTheSender()
        if (message.text === text) return
        await store.updateText(tx, { ...about, text, at })
        await noteUnindexed(tx, about)
        await note(tx, about, { type: 'edited', at })
      }),

    remove: about =>
      change(about, async (tx, { me, at }, message) => {
        if (message.kind === 'system') throw errors.messageFixed()
        if (message.senderId !== about.person.id) assertRole(me.role, 'moderator')
        if (message.deletedAt) return
        await store.eraseMessage(tx, { ...about, at })
        await noteUnindexed(tx, about)
        await note(tx, about, { type: 'deleted', at })
      }),

    react: (about, emoji, isOn) =>
      change(about, async (tx, { at }, message) => {
        if (message.deletedAt) throw errors.messageFixed()
        const counts = new Map(Object.entries(message.reactions ?? {}))
        if (isOn && !counts.has(emoji) && counts.size >= reactionKindsMax)
          throw errors.tooManyReactions(reactionKindsMax)
        const reaction = { ...about, personId: about.person.id, emoji }
        const isNew = await (isOn ? store.insertReaction : store.deleteReaction)(tx, reaction)
        if (!isNew) return
        const count = (counts.get(emoji) ?? 0) + (isOn ? 1 : -1)
        if (count > 0) counts.set(emoji, count)
        else counts.delete(emoji)
        const reactions = counts.size > 0 ? Object.fromEntries(counts) : null
        await store.updateReactions(tx, { ...about, reactions })
        await note(tx, about, { type: 'reaction', data: { emoji, username: about.person.name, on: isOn, count }, at })
      }),
  }
}
