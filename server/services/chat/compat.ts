/** The old messenger's routes: CONTRACTS say what they take and answer; its chats are direct chats. */
import type { FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { errors as platformErrors } from '#platform/errors.ts'
import { callerUnlessOpen, type OpenRoutes } from '#platform/http/open-routes.ts'
import type { HttpApp } from '#platform/http/server.ts'
import { errors } from './errors.ts'
import { type Pairs, spellingOf } from './pairs.ts'
import type { Message } from './types.ts'

export interface CompatDeps {
  pairs: Pairs
  openRoutes: OpenRoutes
}

const tags = ['old contract: messages']
const open = { access: 'public', errorShape: 'legacy' } as const
const writes = { access: 'optional', scope: 'chat:write', errorShape: 'legacy' } as const
const reads = { access: 'optional', scope: 'chat:read', errorShape: 'legacy' } as const

const bodyBytesMax = 4096

export function addCompatRoutes(app: HttpApp, { pairs, openRoutes }: CompatDeps) {
  app.get('/ping', { config: open, schema: { tags, summary: 'Is it there?' } }, async () => ({ message: 'pong' }))

  app.post(
    '/api/send',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Send a message to one of two',
        body: Type.Unsafe<unknown>({ examples: [{ chat: 'jack:marcus', text: 'hello', sender: 'jack' }] }),
      },
    },
    async (request, reply) => {
      const caller = callerUnlessOpen(request, openRoutes)
      const { chat, text, sender } = fieldsOf(request.body)
      await pairs.send({ caller, isOpen: openRoutes.has('/api/send'), chat, text, sender })
      return reply.status(200).send()
    },
  )

  app.get(
    '/api/pull',
    {
      config: reads,
      schema: {
        tags,
        summary: 'Messages of a chat, from a number on, up or down',
        description: 'The fields come in the query or as JSON in the body of the GET.',
        querystring: Type.Object({
          chat: Type.Optional(Type.String()),
          cursor: Type.Optional(Type.String()),
          limit: Type.Optional(Type.String()),
          reverse: Type.Optional(Type.String()),
        }),
      },
    },
    async (request, reply) => {
      const caller = callerUnlessOpen(request, openRoutes)
      const { chat, cursor, limit, reverse } = { ...request.query, ...fieldsOf(await bodyOfGet(request, reply)) }
      const { messages, hasMore, nextCursor } = await pairs.pull({ caller, chat, cursor, limit, reverse })
      return {
        messages: messages.map(message => showMessage(message, chat as string)),
        has_more: hasMore,
        next_cursor: nextCursor,
      }
    },
  )
}

function fieldsOf(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw errors.notAnObject()
  return value as Record<string, unknown>
}

/** HTTP lets a GET have a body, and the old clients send one. Fastify leaves it unread. */
async function bodyOfGet(request: FastifyRequest, reply: FastifyReply): Promise<unknown> {
  const chunks: Buffer[] = []
  let bytes = 0
  // The connection is not cut before the client has read what was wrong.
  for await (const chunk of request.raw.iterator({ destroyOnReturn: false })) {
    bytes += (chunk as Buffer).length
    if (bytes > bodyBytesMax) {
      request.raw.resume()
      reply.header('connection', 'close')
      throw platformErrors.bodyTooLarge(bodyBytesMax)
    }
    chunks.push(chunk as Buffer)
  }
  const text = Buffer.concat(chunks).toString('utf8')
  if (text.trim() === '') return {}
  try {
    return JSON.parse(text)
  } catch {
    throw platformErrors.malformedJson()
  }
}

/** @param chat as it was asked for */
function showMessage(message: Message, chat: string) {
  return {
    chat,
    text: message.text,
    sender: spellingOf(message),
    send_time: Math.floor(message.createdAt.getTime() / 1000),
  }
}
