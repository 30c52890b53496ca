import type { FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import type { Database } from '#platform/database/pool.ts'
import { decodeCursor, encodeCursor } from '#platform/http/cursor.ts'
import { callerOf } from '#platform/http/guard.ts'
import { type Answer, idempotencyKeyOf } from '#platform/http/idempotency.ts'
import { time } from '#platform/http/schema.ts'
import type { HttpApp } from '#platform/http/server.ts'
import { getView } from './access.ts'
import type { Chats } from './chat.ts'
import { errors } from './errors.ts'
import { pageDefault } from './following.ts'
import type { People } from './people.ts'
import * as read from './requests.ts'
import { listMembers } from './room-store.ts'
import type { Act, Rooms } from './rooms.ts'
import { byChat, isNameCursor, page, reads, writes } from './routes.ts'
import * as shapes from './shapes.ts'

export interface RoomRoutesDeps {
  db: Database
  people: People
  rooms: Rooms
  chats: Chats
}

const { given } = shapes
const byMember = Type.Object({ id: Type.String({ maxLength: 64 }), username: Type.String({ maxLength: 100 }) })
const nothing = { 204: Type.Null() }

export function addRoomRoutes(app: HttpApp, deps: RoomRoutesDeps) {
  addMaking(app, deps)
  addMembers(app, deps)
  addComing(app, deps)
  addInvitations(app, deps)
}

/** Who asks, about which room, under which key. */
async function actOf(people: People, request: FastifyRequest): Promise<Act> {
  const { id } = request.params as { id: string }
  return {
    chatId: read.readChatId(id),
    person: await people.of(callerOf(request)),
    key: idempotencyKeyOf(request),
  }
}

function answer(reply: FastifyReply, { status, body }: Answer): FastifyReply {
  return reply.status(status).send(body)
}

function addMaking(app: HttpApp, { people, rooms, chats }: RoomRoutesDeps) {
  const tags = ['chats']

  app.post(
    '/v1/chats',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Make a room, or find your direct chat with a user',
        description:
          '`{"kind":"room","name","open","members"}` or `{"kind":"direct","with"}`. There is one direct chat of two ' +
          'users, whoever asks for it; 200 when it was there.',
        body: given('`kind`, and what it needs.', { kind: 'room', name: 'Harbour', open: true, members: ['grace'] }),
        response: { 200: shapes.ChatShape, 201: shapes.ChatShape },
      },
    },
    async (request, reply) => {
      const kind = (request.body as { kind?: unknown } | null)?.kind
      if (kind === 'direct') {
        const fields = read.readFields(request.body, ['kind', 'with'])
        const { chat, isNew } = await chats.openDirect(callerOf(request), read.readUsername(fields.with, 'with'))
        return reply.status(isNew ? 201 : 200).send(chat)
      }
      if (kind !== 'room') throw errors.badKind()
      const fields = read.readFields(request.body, ['kind', 'name', 'open', 'members'])
      const name = read.readName(fields.name)
      const isOpen = read.readFlag(fields.open ?? false, 'open')
      const usernames = read.readUsernames(fields.members, 'members')
      const members = await Promise.all(usernames.map(people.user))
      const person = await people.of(callerOf(request))
      const { body } = await rooms.create({ person, key: idempotencyKeyOf(request), name, isOpen, members })
      return reply.status(201).send(body)
    },
  )

  app.patch(
    '/v1/chats/:id',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Rename a room, open or close it',
        params: byChat,
        body: given('`name`, `open` or both.', { name: 'Old harbour', open: false }),
        response: { 200: shapes.ChatShape },
      },
    },
    async (request, reply) => {
      const fields = read.readFields(request.body, ['name', 'open'])
      const wish = {
        ...(fields.name === undefined ? {} : { name: read.readName(fields.name) }),
        ...(fields.open === undefined ? {} : { isOpen: read.readFlag(fields.open, 'open') }),
      }
      return answer(reply, await rooms.update(await actOf(people, request), wish))
    },
  )
}

function addMembers(app: HttpApp, { db, people, rooms }: RoomRoutesDeps) {
  const tags = ['members']

  app.get(
    '/v1/chats/:id/members',
    {
      config: reads,
      schema: {
        tags,
        summary: 'Who is in a chat, and how far each has read',
        params: byChat,
        querystring: Type.Object(page),
        response: { 200: Type.Object({ members: Type.Array(shapes.MemberShape), next_cursor: shapes.nextCursor }) },
      },
    },
    async request => {
      const chatId = read.readChatId(request.params.id)
      await getView(db, { person: await people.of(callerOf(request)), chatId })
      const limit = read.readLimit(request.query.limit, pageDefault)
      const after = decodeCursor(request.query.cursor, isNameCursor)?.[0] ?? ''
      const rows = await listMembers(db, { chatId, after, limit })
      return {
        members: rows.map(shapes.showMember),
        next_cursor: rows.length === limit ? encodeCursor([rows.at(-1)!.name]) : null,
      }
    },
  )

  app.post(
    '/v1/chats/:id/members',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Bring a user into a room',
        description: 'For its owner and moderators. One who is a member stays what it is.',
        params: byChat,
        body: given('The `username`.', { username: 'grace' }),
        response: { 201: shapes.MemberShape },
      },
    },
    async (request, reply) => {
      const { username } = read.readFields(request.body, ['username'])
      const added = await people.user(read.readUsername(username, 'username'))
      return answer(reply, await rooms.add(await actOf(people, request), added))
    },
  )

  app.patch(
    '/v1/chats/:id/members/:username',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Change a member’s role',
        description: 'For the owner. Who makes another the owner becomes a moderator.',
        params: byMember,
        body: given('The `role`: owner, moderator or member.', { role: 'moderator' }),
        response: { 200: shapes.MemberShape },
      },
    },
    async (request, reply) => {
      const role = read.readRole(read.readFields(request.body, ['role']).role)
      const act = await actOf(people, request)
      return answer(reply, await rooms.setRole(act, await memberOf(request), role))
    },
  )

  app.delete(
    '/v1/chats/:id/members/:username',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Take a member out of a room',
        description: 'The owner may take anybody out, moderators whoever is neither.',
        params: byMember,
        response: nothing,
      },
    },
    async (request, reply) => answer(reply, await rooms.remove(await actOf(people, request), await memberOf(request))),
  )

  async function memberOf(request: FastifyRequest) {
    const { username } = request.params as { username: string }
    const person = await people.known(read.readUsername(username, 'username'))
    if (!person) throw errors.memberNotFound(username)
    return person
  }
}

function addComing(app: HttpApp, { people, rooms }: RoomRoutesDeps) {
  const tags = ['members']

  app.post(
    '/v1/chats/:id/join',
    {
      config: writes,
      schema: { tags, summary: 'Join an open room', params: byChat, response: { 200: shapes.ChatShape } },
    },
    async (request, reply) => answer(reply, await rooms.joinOpen(await actOf(people, request))),
  )

  app.post(
    '/v1/chats/:id/leave',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Leave a room',
        description: 'The owner hands the room over before; the last one out need not.',
        params: byChat,
        response: nothing,
      },
    },
    async (request, reply) => answer(reply, await rooms.leave(await actOf(people, request))),
  )
}

function addInvitations(app: HttpApp, { people, rooms }: RoomRoutesDeps) {
  const tags = ['members']

  app.post(
    '/v1/chats/:id/invitations',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Make a code with which others can join',
        description: 'For its owner and moderators. The code is shown this once; one use and a day unless you say.',
        params: byChat,
        body: Type.Union([given('`uses`, `expires_in_seconds`.', { uses: 5, expires_in_seconds: 3600 }), Type.Null()]),
        response: {
          201: Type.Object({
            code: Type.String(),
            chat_id: Type.String({ format: 'uuid' }),
            uses: Type.Integer(),
            expires_at: time,
          }),
        },
      },
    },
    async (request, reply) => {
      const wish = read.readInvitation(read.readFields(request.body ?? {}, ['uses', 'expires_in_seconds']))
      return answer(reply, await rooms.invite(await actOf(people, request), wish))
    },
  )

  app.delete(
    '/v1/chats/:id/invitations',
    {
      config: writes,
      schema: { tags, summary: 'Take all codes of a room back', params: byChat, response: nothing },
    },
    async (request, reply) => answer(reply, await rooms.uninvite(await actOf(people, request))),
  )

  app.post(
    '/v1/chats/invitations/redeem',
    {
      config: writes,
      schema: {
        tags,
        summary: 'Join a room with a code',
        body: given('The `code`.', { code: 'x1K…' }),
        response: { 200: shapes.ChatShape },
      },
    },
    async (request, reply) => {
      const { code } = read.readFields(request.body, ['code'])
      if (typeof code !== 'string' || code.length > 100) throw errors.invitationOver()
      const person = await people.of(callerOf(request))
      return answer(reply, await rooms.redeem({ person, key: idempotencyKeyOf(request), code }))
    },
  )
}
