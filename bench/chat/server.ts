/** What answers: chats behind HTTP and WebSockets, and the same work done in two other ways in the same server. */
import { Redis } from 'ioredis'
import { Type } from 'typebox'
import type { Database } from '../../server/platform/database/pool.ts'
import type { HttpApp } from '../../server/platform/http/server.ts'
import { silentLog } from '../../server/platform/log.ts'
import { makeChatService } from '../../server/services/chat/index.ts'
import { chatSettings } from '../../server/services/chat/settings.ts'
import { caller, makePlatform } from '../support/platform.ts'

export type ChatServer = Awaited<ReturnType<typeof makeServer>>

/** @param redisPort of a Redis that syncs each write before it answers */
export async function makeServer(url: string, redisPort: number) {
  const platform = await makePlatform(url)
  const { db, live, metrics, http } = platform
  const redis = new Redis(redisPort, '127.0.0.1')
  const chat = makeChatService({
    db,
    live,
    metrics,
    log: silentLog,
    settings: {
      CHAT_SENDS_PER_MINUTE: 0,
      CHAT_SENDS_PER_MINUTE_PER_CHAT: 0,
      CHAT_MEMBERS_MAX: chatSettings.CHAT_MEMBERS_MAX.fallback,
      CHAT_CHANGES_DAYS: chatSettings.CHAT_CHANGES_DAYS.fallback,
    },
    identity: { findUserByName: async () => undefined },
    redis: undefined,
    openRoutes: { has: () => true },
    work: true,
  })
  await live.routes(http)
  await chat.routes(http)
  await chat.compatRoutes(http)
  await addUsualRoute(http, db)
  addRedisRoute(http, redis)
  const port = await platform.start()
  chat.start()
  return {
    db,
    chat,
    port,
    async close() {
      await platform.stop()
      await chat.stop()
      redis.disconnect()
      await db.close()
    },
  }
}

/** The direct chats of the caller with as many others as are wanted. Answers their ids, in the order of the others. */
export async function makeChats({ db, chat }: ChatServer, count: number): Promise<string[]> {
  const me = await chat.person(caller)
  const { rows } = await db.query<{ id: string }>(
    `with others as (
       insert into chat.people (name, shown) select 'peer' || n, 'peer' || n from generate_series(1, $1::integer) n
       on conflict (name) do update set shown = excluded.shown returning id, name),
     made as (
       insert into chat.chats (id, kind, low_id, high_id, members, created_at, last_at)
       select gen_random_uuid(), 'direct', least(id, $2::bigint), greatest(id, $2::bigint), 2, now(), now() from others
       on conflict (low_id, high_id) where low_id is not null do update set members = 2 returning id, low_id, high_id),
     placed as (
       insert into chat.members (chat_id, person_id, role, joined_at)
       select made.id, person, 'member', now() from made, unnest(array[low_id, high_id]) person
       on conflict do nothing)
     select made.id from made join others on others.id = low_id + high_id - $2::bigint
     order by substr(others.name, 5)::integer`,
    [count, me.id],
  )
  await db.query('vacuum analyze chat.chats')
  await db.query('vacuum analyze chat.members')
  return rows.map(row => row.id)
}

const Body = Type.Object({ chat: Type.String(), text: Type.String(), sender: Type.String() })

/** A transaction a message: lock the chat, number, insert. */
async function addUsualRoute(http: HttpApp, db: Database) {
  await db.query('create schema usual')
  await db.query(
    'create table usual.chats (id bigserial primary key, pair text not null unique, last_seq bigint not null default 0)',
  )
  await db.query(`create table usual.messages (chat_id bigint not null, seq bigint not null, sender text not null,
    text text not null, created_at timestamptz not null default now(), primary key (chat_id, seq))`)
  http.post('/usual/send', { config: { access: 'public' }, schema: { body: Body } }, async (request, reply) => {
    const { chat, text, sender } = request.body
    const pair = chat.toLowerCase().split(':').sort().join(':')
    await db.tx(async tx => {
      const find = () =>
        tx.query<{ id: number; last_seq: number }>(`select id, last_seq from usual.chats where pair = $1 for update`, [
          pair,
        ])
      let [found] = (await find()).rows
      if (!found) {
        await tx.query('insert into usual.chats (pair) values ($1) on conflict do nothing', [pair])
        found = (await find()).rows[0]!
      }
      await tx.query('update usual.chats set last_seq = $2 where id = $1', [found.id, found.last_seq + 1])
      await tx.query('insert into usual.messages (chat_id, seq, sender, text) values ($1, $2, $3, $4)', [
        found.id,
        found.last_seq + 1,
        sender,
        text,
      ])
    })
    return reply.status(200).send()
  })
}

/** A stream a chat: Redis numbers and keeps the messages. */
function addRedisRoute(http: HttpApp, redis: Redis) {
  http.post('/redis/send', { config: { access: 'public' }, schema: { body: Body } }, async (request, reply) => {
    const { chat, text, sender } = request.body
    await redis.xadd(chat.toLowerCase().split(':').sort().join(':'), '*', 'sender', sender, 'text', text)
    return reply.status(200).send()
  })
}
