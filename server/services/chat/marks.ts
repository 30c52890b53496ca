/** How far members have come: what they have read, and what has reached them. Marks only rise. */
import { makeBatcher, type Outcome } from '#platform/batch.ts'
import { byIdsParameters, type Database, isConnectionLoss } from '#platform/database/pool.ts'
import type { Live } from '#platform/live/live.ts'
import { errors } from './errors.ts'
import * as store from './mark-store.ts'
import type { ShownMarks } from './shapes.ts'
import type { Person } from './types.ts'

export interface Mark {
  chatId: string
  person: Person
  userId: string
  kind: 'read' | 'delivered'
  seq: number
}

export interface Marks {
  /** What is read has been delivered, too. @throws not_a_member, message_not_found */
  raise(mark: Mark): Promise<ShownMarks>
  /** Resolves when nothing is under way. */
  idle(): Promise<void>
}

const batchMax = 1000
const waitingMax = 50_000

export function makeMarks({ db, live }: { db: Database; live: Pick<Live, 'signal'> }): Marks {
  const batcher = makeBatcher<Mark, ShownMarks>({
    name: 'marks',
    size: batchMax,
    waitingMax,
    isCommon: isConnectionLoss,
    async run(marks) {
      const raised = highestOf(marks)
      const rows = await db.tx(tx => store.raiseMarks(tx, raised), { parameters: byIdsParameters })
      const found = new Map(rows.map(row => [keyOf(row.chat_id, row.person_id), row]))
      tellMoved(found, marks)
      return marks.map(mark => outcomeOf(mark, found.get(keyOf(mark.chatId, mark.person.id))))
    },
  })

  /** Those who follow the chat just now, once a member. */
  function tellMoved(found: Map<string, store.MarkRow>, marks: readonly Mark[]) {
    const told = new Set<store.MarkRow>()
    for (const { chatId, person, userId } of marks) {
      const row = found.get(keyOf(chatId, person.id))
      if (!row || told.has(row)) continue
      told.add(row)
      if (row.read_seq === row.old_read_seq && row.delivered_seq === row.old_delivered_seq) continue
      const data = { username: person.name, read_seq: row.read_seq, delivered_seq: row.delivered_seq }
      live.signal(`chats/${chatId}`, { type: 'marks', data }, { except: userId })
    }
  }

  return { raise: mark => batcher.push(mark), idle: () => batcher.idle() }
}

function keyOf(chatId: string, personId: number): string {
  return `${chatId} ${personId}`
}

/** One a member, so that the statement touches no row twice. */
function highestOf(marks: readonly Mark[]): store.NewMark[] {
  const highest = new Map<string, store.NewMark>()
  for (const { chatId, person, kind, seq } of marks) {
    const key = keyOf(chatId, person.id)
    const { read, delivered } = highest.get(key) ?? { read: 0, delivered: 0 }
    highest.set(key, {
      chatId,
      personId: person.id,
      read: kind === 'read' ? Math.max(read, seq) : read,
      delivered: Math.max(delivered, seq),
    })
  }
  return [...highest.values()]
}

function outcomeOf(mark: Mark, row: store.MarkRow | undefined): Outcome<ShownMarks> {
  if (!row) return { error: errors.notAMember() }
  if (mark.seq > row.last_seq) return { error: errors.messageNotFound() }
  return {
    value: { read_seq: row.read_seq, delivered_seq: row.delivered_seq, unread: row.last_seq - row.read_seq },
  }
}
