import { Type } from 'typebox'
import type { Database } from '#platform/database/pool.ts'
import { decodeCursor, encodeCursor } from '#platform/http/cursor.ts'
import { callerOf } from '#platform/http/guard.ts'
import { time } from '#platform/http/schema.ts'
import type { HttpApp } from '#platform/http/server.ts'
import { isUuid } from '#platform/ids.ts'
import type { Live } from '#platform/live/live.ts'
import { getView } from './access.ts'
import type { Chats } from './chat.ts'
import type { Directs } from './directs.ts'
import { pageDefault } from './following.ts'
import { findMessages } from './message-store.ts'
import type { People } from './people.ts'
import { listBlocked } from './people-store.ts'
import * as read from './requests.ts'
import { listOpenRooms, listViews } from './room-store.ts'
import * as shapes from './shapes.ts'

export interface ChatRoutesDeps {
  db: Database
  live: Pick<Live, 'present'>
  people: People
  chats: Chats
  directs: Directs
}

export const reads = { access: 'user', scope: 'chat:read' } as const
export const writes = { access: 'user', scope: 'chat:write' } as const

const { given } = shapes
export const byChat = Type.Object({ id: Type.String({ maxLength: 64 }) })
export const limit = Type.Optional(given(`1 to ${read.pageMax}; ${pageDefault} where it is left out.`, pageDefault))
const cursor = Type.Optional(Type.String({ maxLength: 500, description: '`next_cursor` of the page before.' }))
export const page = { limit, cursor }

export function addRoutes(app: HttpApp, deps: ChatRoutesDeps) {
  addLists(app, deps)
  addMarks(app, deps)
  addBlocks(app, deps)
}

function addLists(app: HttpApp, { db, live, people, chats }: ChatRoutesDeps) {
  const tags = ['chats']

  app.get(
    '/v1/chats',
    {
      config: reads,
      schema: {
        tags,
        summary: 'Your chats, the newest activity first, with what is unread in each',
        querystring: Type.Object({ ...page, unread: Type.Boolean({ default: false, description: 'Only those.' }) }),
        response: {
          200: Type.Object({
            chats: Type.Array(
              Type.Intersect([
                shapes.ChatShape,
                Type.Object({ last_message: Type.Union([shapes.MessageShape, Type.Null()]) }),
              ]),
            ),
            next_cursor: shapes.nextCursor,
          }),
        },
      },
    },
    async request => {
      const { id: personId } = await people.of(callerOf(request))
      const pageLimit = read.readLimit(request.query.limit, pageDefault)
      const last = decodeCursor(request.query.cursor, isChatCursor)
      const before = last && { lastAt: new Date(last[0]), id: last[1] }
      const views = await listViews(db, { personId, before, unreadOnly: request.query.unread, limit: pageLimit })
      const newest = await findMessages(
        db,
        views.map(view => ({ chatId: view.id, seq: view.last_seq })),
      )
      const messages = new Map(newest.map(message => [message.chatId, shapes.showMessage(message)]))
      const end = views.length === pageLimit ? views.at(-1) : undefined
      return {
        chats: views.map(view => ({ ...shapes.showChat(view), last_message: messages.get(view.id) ?? null })),
        next_cursor: end ? encodeCursor([end.last_at.getTime(), end.id]) : null,
      }
    },
  )

  app.get(
    '/v1/chats/open',
    {
      config: reads,
      schema: {
        tags,
        summary: 'Rooms that anybody may join, by the beginnings of their names',
        querystring: Type.Object({ ...page, q: Type.String({ maxLength: 100, default: '' }) }),
        response: { 200: Type.Object({ chats: Type.Array(shapes.ChatShape), next_cursor: shapes.nextCursor }) },
      },
    },
    async request => {
      const { id: personId } = await people.of(callerOf(request))
      const pageLimit = read.readLimit(request.query.limit, pageDefault)
      const last = decodeCursor(request.query.cursor, isRoomCursor)
      const after = last && { name: last[0], id: last[1] }
      const prefix = read.storable(request.query.q, 'q')
      const rooms = await listOpenRooms(db, { personId, prefix, after, limit: pageLimit })
      const end = rooms.length === pageLimit ? rooms.at(-1) : undefined
      return {
        chats: rooms.map(shapes.showChat),
        next_cursor: end ? encodeCursor([end.sort_name, end.id]) : null,
      }
    },
  )

  app.get(
    '/v1/chats/:id',
    {
      config: reads,
      schema: {
        tags,
        summary: 'A chat of yours, or an open room',
        params: byChat,
        response: { 200: shapes.ChatShape },
      },
    },
    async request => chats.get(callerOf(request), read.readChatId(request.params.id)),
  )

  app.get(
    '/v1/chats/:id/present',
    {
      config: reads,
      schema: {
        tags,
        summary: 'Who follows the chat live just now',
        params: byChat,
        response: { 200: Type.Object({ usernames: Type.Array(Type.String()) }) },
      },
    },
    async request => {
      const chatId = read.readChatId(request.params.id)
      await getView(db, { person: await people.of(callerOf(request)), chatId })
      return { usernames: live.present(`chats/${chatId}`) }
    },
  )
}

function addMarks(app: HttpApp, { chats }: ChatRoutesDeps) {
  const tags = ['chats']

  for (const kind of ['read', 'delivered'] as const) {
    app.post(
      `/v1/chats/:id/${kind}`,
      {
        config: writes,
        schema: {
          tags,
          summary: kind === 'read' ? 'Say how far you have read' : 'Say what has reached you',
          description: 'Marks only rise: a lower number changes nothing.',
          params: byChat,
          body: given('The number of the newest such message, `seq`.', { seq: 12 }),
          response: { 200: shapes.MarksShape },
        },
      },
      async request => {
        const { id } = request.params as { id: string }
        const seq = read.readSeq(read.readFields(request.body, ['seq']).seq, 'seq')
        return chats.mark(callerOf(request), { chatId: read.readChatId(id), kind, seq })
      },
    )
  }

  app.post(
    '/v1/chats/:id/typing',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Let those who follow the chat just now see that you write',
        params: byChat,
        response: { 204: Type.Null() },
      },
    },
    async (request, reply) => {
      await chats.typing(callerOf(request), { chatId: read.readChatId(request.params.id) })
      return reply.status(204).send(null)
    },
  )

  app.put(
    '/v1/chats/:id/mute',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Mute a chat until a time, or no longer',
        description: 'For your clients to heed: messages come and count all the same.',
        params: byChat,
        body: given('A time, or null.', { until: '2027-01-01T00:00:00Z' }),
        response: { 204: Type.Null() },
      },
    },
    async (request, reply) => {
      const { until } = read.readFields(request.body, ['until'])
      await chats.mute(callerOf(request), {
        chatId: read.readChatId(request.params.id),
        until: until === null ? null : read.readTime(until, 'until'),
      })
      return reply.status(204).send(null)
    },
  )
}

function addBlocks(app: HttpApp, { db, people, directs }: ChatRoutesDeps) {
  const tags = ['blocks']
  const byName = Type.Object({ username: Type.String({ maxLength: 100 }) })

  app.get(
    '/v1/blocks',
    {
      config: reads,
      schema: {
        tags,
        summary: 'Whom you block',
        querystring: Type.Object(page),
        response: {
          200: Type.Object({
            blocks: Type.Array(Type.Object({ username: Type.String(), created_at: time })),
            next_cursor: shapes.nextCursor,
          }),
        },
      },
    },
    async request => {
      const { id: blockerId } = await people.of(callerOf(request))
      const pageLimit = read.readLimit(request.query.limit, pageDefault)
      const after = decodeCursor(request.query.cursor, isNameCursor)?.[0] ?? ''
      const rows = await listBlocked(db, { blockerId, after, limit: pageLimit })
      return {
        blocks: rows.map(row => ({ username: row.shown, created_at: row.created_at.toISOString() })),
        next_cursor: rows.length === pageLimit ? encodeCursor([rows.at(-1)!.name]) : null,
      }
    },
  )

  for (const [method, change] of [
    ['PUT', directs.block],
    ['DELETE', directs.unblock],
  ] as const) {
    app.route({
      method,
      url: '/v1/blocks/:username',
      config: writes,
      schema: {
        tags,
        summary: method === 'PUT' ? 'Block a user' : 'Block a user no longer',
        description: 'Whom you block can neither write to you alone nor bring you into rooms. Rooms you share stay.',
        params: byName,
        response: { 204: Type.Null() },
      },
      handler: async (request, reply) => {
        const { username } = request.params as { username: string }
        const caller = await people.of(callerOf(request))
        await change(caller, await people.user(read.readUsername(username, 'username')))
        return reply.status(204).send(null)
      },
    })
  }
}

function isChatCursor(values: readonly unknown[]): values is [number, string] {
  const [at, id] = values
  return values.length === 2 && read.isInstant(at) && typeof id === 'string' && isUuid(id)
}

function isRoomCursor(values: readonly unknown[]): values is [string, string] {
  return values.length === 2 && isText(values[0]) && typeof values[1] === 'string' && isUuid(values[1])
}

export function isNameCursor(values: readonly unknown[]): values is [string] {
  return values.length === 1 && isText(values[0])
}

/** What PostgreSQL takes for a text. */
function isText(value: unknown): value is string {
  return typeof value === 'string' && !value.includes('\0') && value.isWellFormed()
}
