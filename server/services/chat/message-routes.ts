import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { callerOf } from '#platform/http/guard.ts'
import { idempotencyKeyOf } from '#platform/http/idempotency.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Chats } from './chat.ts'
import type { Edits } from './edits.ts'
import { pageDefault } from './following.ts'
import type { History } from './history.ts'
import type { People } from './people.ts'
import * as read from './requests.ts'
import { byChat, limit, page, reads, writes } from './routes.ts'
import type { Search } from './search.ts'
import * as shapes from './shapes.ts'

export interface MessageRoutesDeps {
  people: People
  chats: Chats
  history: History
  edits: Edits
  search: Search
}

const { given } = shapes
const byMessage = Type.Object({ id: Type.String({ maxLength: 64 }), seq: Type.String({ maxLength: 20 }) })

export function addMessageRoutes(app: HttpApp, deps: MessageRoutesDeps) {
  addSending(app, deps)
  addHistory(app, deps)
  addEdits(app, deps)
  addSearch(app, deps)
}

function addSending(app: HttpApp, { people, chats, history }: MessageRoutesDeps) {
  app.post(
    '/v1/chats/:id/messages',
    {
      config: writes,
      schema: {
        tags: ['messages'],
        summary: 'Send a message',
        description: 'An `Idempotency-Key` is taken for the `client_id` where none is given; both hold for ever.',
        params: byChat,
        body: given('`text`, and if you like `client_id`, `reply_to`, `mentions`, `attachments`.', {
          text: 'hello',
          client_id: '0199-1',
        }),
        response: { 201: shapes.MessageShape },
      },
    },
    async (request, reply) => {
      const caller = callerOf(request)
      const chatId = read.readChatId(request.params.id)
      const draft = read.readDraft(read.readFields(request.body, read.draftFields))
      const clientId = draft.clientId ?? idempotencyKeyOf(request)?.key ?? null
      const message = await chats.send(caller, { chatId, draft: { ...draft, clientId } })
      return reply.status(201).send(await history.show(await people.of(caller), message))
    },
  )
}

function addHistory(app: HttpApp, { people, history }: MessageRoutesDeps) {
  const tags = ['messages']

  app.get(
    '/v1/chats/:id/messages',
    {
      config: reads,
      schema: {
        tags,
        summary: 'A page of messages, by number or by time, either way',
        description:
          'Give one of the five positions, or none for the newest messages. Pages taken while others write neither skip nor repeat.',
        params: byChat,
        querystring: Type.Object({
          after: Type.Optional(given('Those numbered above it, the lowest first taken.', 0)),
          before: Type.Optional(given('Those numbered below it, the highest first taken.', 100)),
          around: Type.Optional(given('Those about this number.', 50)),
          from_time: Type.Optional(given('Those sent at or after it.', '2026-02-03T12:30:00Z')),
          until_time: Type.Optional(given('Those sent before it.', '2026-02-03T12:30:00Z')),
          limit,
        }),
        response: { 200: shapes.PageShape },
      },
    },
    async request => {
      const chatId = read.readChatId(request.params.id)
      const position = read.readPosition(request.query)
      const pageLimit = read.readLimit(request.query.limit, pageDefault)
      return history.page({ person: await people.of(callerOf(request)), chatId, position, limit: pageLimit })
    },
  )

  app.get(
    '/v1/chats/:id/messages/:seq',
    {
      config: reads,
      schema: { tags, summary: 'A message', params: byMessage, response: { 200: shapes.MessageShape } },
    },
    async request => history.one(await aboutOf(people, request)),
  )
}

function addEdits(app: HttpApp, { people, edits, history }: MessageRoutesDeps) {
  const tags = ['messages']
  const answer = { 200: shapes.MessageShape }

  app.patch(
    '/v1/chats/:id/messages/:seq',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Edit a message of yours',
        params: byMessage,
        body: given('The new `text`.', { text: 'hello again' }),
        response: answer,
      },
    },
    async request => {
      const about = await aboutOf(people, request)
      const text = read.readText(read.readFields(request.body, ['text']).text)
      return history.show(about.person, await edits.edit(about, text))
    },
  )

  app.delete(
    '/v1/chats/:id/messages/:seq',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Delete a message of yours, or any as a moderator; its number stays',
        params: byMessage,
        response: answer,
      },
    },
    async request => {
      const about = await aboutOf(people, request)
      return history.show(about.person, await edits.remove(about))
    },
  )

  for (const [method, isOn] of [
    ['PUT', true],
    ['DELETE', false],
  ] as const) {
    app.route({
      method,
      url: '/v1/chats/:id/messages/:seq/reactions/:emoji',
      config: writes,
      schema: {
        tags,
        summary: isOn ? 'React to a message' : 'Take a reaction back',
        params: Type.Object({ ...byMessage.properties, emoji: Type.String({ maxLength: 100 }) }),
        response: answer,
      },
      handler: async request => {
        const about = await aboutOf(people, request)
        const emoji = read.readEmoji((request.params as { emoji: string }).emoji)
        return history.show(about.person, await edits.react(about, emoji, isOn))
      },
    })
  }
}

async function aboutOf(people: People, request: FastifyRequest) {
  const { id, seq } = request.params as { id: string; seq: string }
  return {
    chatId: read.readChatId(id),
    seq: read.readSeq(seq, 'seq'),
    person: await people.of(callerOf(request)),
  }
}

function addSearch(app: HttpApp, { people, search }: MessageRoutesDeps) {
  const found = Type.Object({ messages: Type.Array(shapes.MessageShape), next_cursor: shapes.nextCursor })
  const query = { ...page, q: Type.Optional(given('Words; "in quotes" together, -without, or.', 'cargo -cancelled')) }
  const tags = ['messages']

  async function asked(request: FastifyRequest) {
    const fields = request.query as { q?: unknown; cursor?: string; limit?: unknown }
    return {
      person: await people.of(callerOf(request)),
      query: read.readQuery(fields.q),
      cursor: fields.cursor,
      limit: read.readLimit(fields.limit, pageDefault),
    }
  }

  app.get(
    '/v1/chats/:id/search',
    {
      config: reads,
      schema: {
        tags,
        summary: 'Find messages in a chat, the newest first',
        description: 'A page may be short, or empty, while `next_cursor` leads to older messages.',
        params: byChat,
        querystring: Type.Object(query),
        response: { 200: found },
      },
    },
    async request => search.inChat({ ...(await asked(request)), chatId: read.readChatId(request.params.id) }),
  )

  app.get(
    '/v1/search/messages',
    {
      config: reads,
      schema: {
        tags,
        summary: 'Find messages across your chats, the newest first',
        querystring: Type.Object(query),
        response: { 200: found },
      },
    },
    async request => search.across(await asked(request)),
  )
}
