import type { Redis } from 'ioredis'
import type { Database } from '#platform/database/pool.ts'
import type { Caller } from '#platform/http/guard.ts'
import type { OpenRoutes } from '#platform/http/open-routes.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Live } from '#platform/live/live.ts'
import type { Log } from '#platform/log.ts'
import type { Metrics } from '#platform/metrics.ts'
import type { Rpc } from '#platform/rpc/rpc.ts'
import { deleteOldChanges } from './change-store.ts'
import { type Chats, makeChats } from './chat.ts'
import { addCompatRoutes } from './compat.ts'
import { makeDirects } from './directs.ts'
import { makeEdits } from './edits.ts'
import { addCalls, makeSources } from './following.ts'
import { type History, makeHistory } from './history.ts'
import { makeChatLimits } from './limits.ts'
import { makeMarks } from './marks.ts'
import { addMessageRoutes } from './message-routes.ts'
import { makePairs, type Pairs } from './pairs.ts'
import { makePeople, type Users } from './people.ts'
import { addRoomRoutes } from './room-routes.ts'
import { deleteOldInvitations } from './room-store.ts'
import { makeRooms } from './rooms.ts'
import { addRoutes } from './routes.ts'
import { addChatRpc } from './rpc.ts'
import { indexMessages, makeIndexer, makeSearch } from './search.ts'
import { makeSending } from './sending.ts'
import type { ChatSettings } from './settings.ts'

export { type ChatSettings, chatSettings } from './settings.ts'
export const chatScopes = ['chat:read', 'chat:write'] as const

export interface ChatServiceDeps {
  db: Database
  live: Pick<Live, 'addSource' | 'addCall' | 'wake' | 'signal' | 'present' | 'follow'>
  log: Log
  metrics: Metrics
  settings: ChatSettings
  /** For names of users who have never been in a chat. */
  identity: Users
  /** Shares the counts of rate limits between processes. */
  redis: Redis | undefined
  /** Which of the old contract's routes take requests without a token. */
  openRoutes: OpenRoutes
  /** Whether this process makes messages searchable. */
  work: boolean
  /** Unix milliseconds. */
  clock?: () => number
}

export interface ChatService extends Pick<Chats, 'send' | 'assertMember'>, Pick<History, 'page'> {
  person(caller: Caller): ReturnType<Chats['person']>
  /** The direct chats as the old contract names them. */
  readonly pairs: Pairs
  /** Adds proto/capstan/chat/v1. */
  rpc(rpc: Pick<Rpc, 'addService'>): void
  routes(app: HttpApp): Promise<void>
  compatRoutes(app: HttpApp): Promise<void>
  /** Makes findable what was committed, a bounded number at once. Done by itself all the time after `start`. */
  indexMessages(): Promise<number>
  start(): void
  /** Finishes what is under way. Call it when no more requests come. */
  stop(): Promise<void>
  /** Deletes what is over, a bounded amount at once. Call it every few minutes. */
  maintain(): Promise<void>
}

const dayMs = 86_400_000
const forgottenMax = 50_000

export function makeChatService(deps: ChatServiceDeps): ChatService {
  const { db, live, log, metrics, settings, redis, clock = Date.now } = deps
  const people = makePeople({ db, users: deps.identity })
  const directs = makeDirects({ db, clock })
  const sending = makeSending({ db, live, metrics, clock })
  const marks = makeMarks({ db, live })
  const limits = makeChatLimits({ settings, redis })
  const chats = makeChats({ db, live, people, directs, sending, marks, limits })
  const pairs = makePairs({ chats, people, directs })
  const history = makeHistory({ db })
  const rooms = makeRooms({ db, live, membersMax: settings.CHAT_MEMBERS_MAX, clock })
  const edits = makeEdits({ db, live, clock })
  const search = makeSearch({ db })
  const indexer = makeIndexer({ db, log })
  for (const source of makeSources({ db, people })) live.addSource(source)
  addCalls(live, { chats, history })
  return {
    send: chats.send,
    assertMember: chats.assertMember,
    page: history.page,
    person: chats.person,
    pairs,
    rpc: rpc => addChatRpc(rpc, { chats, pairs, live }),
    async routes(app) {
      addRoutes(app, { db, live, people, chats, directs })
      addMessageRoutes(app, { people, chats, history, edits, search })
      addRoomRoutes(app, { db, people, rooms, chats })
    },
    async compatRoutes(app) {
      addCompatRoutes(app, { pairs, openRoutes: deps.openRoutes })
    },
    indexMessages: () => indexMessages(db),
    start() {
      if (deps.work) indexer.start()
    },
    async stop() {
      await indexer.stop()
      await Promise.all([sending.idle(), marks.idle()])
    },
    async maintain() {
      const before = new Date(clock() - settings.CHAT_CHANGES_DAYS * dayMs)
      await deleteOldChanges(db, { before, limit: forgottenMax })
      await deleteOldInvitations(db, { before: new Date(clock()), limit: forgottenMax })
    },
  }
}
