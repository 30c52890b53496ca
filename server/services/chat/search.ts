/**
 * Search. What can be found is written after the commit, by the indexer: an index over words in the path of the commit
 * would make every message wait for it. A chat is searched in stretches, the newest first, so that a look takes bounded
 * work however large the chat is.
 */
import { type Database, sqlState } from '#platform/database/pool.ts'
import { decodeCursor, encodeCursor } from '#platform/http/cursor.ts'
import { isUuid } from '#platform/ids.ts'
import type { Log } from '#platform/log.ts'
import { getView } from './access.ts'
import { errors } from './errors.ts'
import { findMessages } from './message-store.ts'
import { isInstant } from './requests.ts'
import { listNewestChats } from './room-store.ts'
import * as store from './search-store.ts'
import { type ShownMessage, showMessage } from './shapes.ts'
import type { Person } from './types.ts'

export interface Found {
  messages: ShownMessage[]
  next_cursor: string | null
}

interface Asked {
  person: Person
  query: string
  cursor: string | undefined
  limit: number
}

export interface Search {
  /** The newest first. A page may hold few or none while there is a next one. @throws not_a_member, bad_cursor, search_too_broad */
  inChat(asked: Asked & { chatId: string }): Promise<Found>
  /** The newest first, in the newest of one's chats. @throws bad_cursor, search_too_broad */
  across(asked: Asked): Promise<Found>
}

const stretchesPerLook = 16
const chatsMax = 200
const stretchesAcrossMax = 256
const timeMs = 5000

export function makeSearch({ db }: { db: Database }): Search {
  /** Bounded in time as well: how much a word finds is known to nobody before. */
  async function bounded<T>(look: Parameters<typeof db.tx<T>>[0]): Promise<T> {
    try {
      return await db.tx(async tx => {
        await store.limitTime(tx, timeMs)
        return look(tx)
      })
    } catch (error) {
      const queryCanceled = '57014'
      if (sqlState(error) === queryCanceled) throw errors.searchTooBroad()
      throw error
    }
  }

  async function show(hits: readonly store.Hit[]): Promise<ShownMessage[]> {
    const wanted = hits.map(hit => ({ chatId: hit.chat_id, seq: hit.seq }))
    const found = wanted.length > 0 ? await findMessages(db, wanted) : []
    const messages = new Map(found.map(message => [`${message.chatId} ${message.seq}`, message]))
    return hits.flatMap(hit => {
      const message = messages.get(`${hit.chat_id} ${hit.seq}`)
      // Deleted, and not yet gone from the index.
      return message && !message.deletedAt ? [showMessage(message)] : []
    })
  }

  return {
    async inChat({ person, chatId, query, cursor, limit }) {
      const view = await getView(db, { person, chatId })
      const start = decodeCursor(cursor, isSeq)?.[0] ?? view.last_seq + 1
      const { hits, next } = await bounded(async tx => {
        const found: store.Hit[] = []
        let before = Math.min(start, view.last_seq + 1)
        for (let look = 0; look < stretchesPerLook && before > 1 && found.length < limit; look++) {
          const stretch = { chatId, at: store.stretchOf(before - 1) }
          const more = await store.findHitsIn(tx, { stretch, query, before, limit: limit - found.length })
          found.push(...more)
          before = found.length === limit ? found.at(-1)!.seq : store.firstOf(stretch)
        }
        return { hits: found, next: before }
      })
      return { messages: await show(hits), next_cursor: next > 1 ? encodeCursor([next]) : null }
    },

    async across({ person, query, cursor, limit }) {
      const last = decodeCursor(cursor, isHit)
      const before = last && { created_at: new Date(last[0]), chat_id: last[1], seq: last[2] }
      const stretches = newestStretches(await listNewestChats(db, { personId: person.id, limit: chatsMax }))
      if (stretches.length === 0) return { messages: [], next_cursor: null }
      const hits = await bounded(tx => store.findHitsAcross(tx, { stretches, query, before, limit }))
      const end = hits.length === limit ? hits.at(-1) : undefined
      const next = end ? encodeCursor([end.created_at.getTime(), end.chat_id, end.seq]) : null
      return { messages: await show(hits), next_cursor: next }
    },
  }
}

/** Of each chat its newest stretch, then of each the one before it, and so on. */
function newestStretches(chats: readonly { id: string; last_seq: number }[]): store.Stretch[] {
  const stretches: store.Stretch[] = []
  let left = chats.map(chat => ({ chatId: chat.id, at: store.stretchOf(chat.last_seq) }))
  while (left.length > 0) {
    for (const stretch of left) if (stretches.push(stretch) === stretchesAcrossMax) return stretches
    left = left.flatMap(({ chatId, at }) => (at > 0 ? [{ chatId, at: at - 1 }] : []))
  }
  return stretches
}

function isSeq(values: readonly unknown[]): values is [number] {
  return values.length === 1 && Number.isSafeInteger(values[0]) && (values[0] as number) > 0
}

function isHit(values: readonly unknown[]): values is [number, string, number] {
  const [at, chatId, seq] = values
  return (
    values.length === 3 && isInstant(at) && typeof chatId === 'string' && isUuid(chatId) && Number.isSafeInteger(seq)
  )
}

// The indexer

export interface Indexer {
  start(): void
  /** Resolves when nothing is under way. */
  stop(): Promise<void>
}

const indexed = { notesMax: 500, messagesMax: 2000 }
const restMs = 250

/** Makes findable what was committed, a bounded number at once. Answers how many messages. */
export async function indexMessages(db: Database): Promise<number> {
  return db.tx(async tx => ((await store.lockIndexing(tx)) ? store.indexOldest(tx, indexed) : 0))
}

/** Works until nothing waits, and rests as long as it worked, so that it leaves half of its processor to others. */
export function makeIndexer(deps: { db: Database; log: Log }): Indexer {
  let timer: NodeJS.Timeout | undefined
  let running: Promise<void> = Promise.resolve()
  let stopped = true

  async function run() {
    const begun = performance.now()
    let more = false
    try {
      more = (await indexMessages(deps.db)) > 0
    } catch (error) {
      if (!stopped) deps.log.warn({ err: error }, 'could not make messages searchable')
    }
    if (!stopped) schedule(more ? performance.now() - begun : restMs)
  }

  function schedule(afterMs: number) {
    timer = setTimeout(() => {
      running = run()
    }, afterMs)
    timer.unref()
  }

  return {
    start() {
      stopped = false
      schedule(restMs)
    },
    async stop() {
      stopped = true
      clearTimeout(timer)
      await running
    },
  }
}
