/**
 * Messages: accepted over HTTP and over one WebSocket, beside a transaction a message and beside a Redis that syncs
 * each write, all behind the same HTTP server; delivered to a thousand followers; read from a table of ten million.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { makeSender } from './chat/load.ts'
import { type ChatServer, makeChats, makeServer } from './chat/server.ts'
import { type Crowd, clock, withCrowd } from './support/live-crowd.ts'
import {
  type Figure,
  figureOf,
  interleave,
  type Line,
  percentile,
  printBound,
  printHead,
  printLines,
  type Sample,
} from './support/measure.ts'
import { caller } from './support/platform.ts'
import { withPostgres, withRedis } from './support/servers.ts'

const rounds = 3
const seconds = 2
const warmUpSeconds = 1
const spreads = [1, 100, 10_000]
const followers = 1000
const messages = 1000
/** A thousand followers make it 100,000 deliveries a second. */
const pacedPerSecond = 100
const storedCount = 10_000_000
const fewCount = 1000
const pulls = 300
const page = 50

export async function benchChat() {
  await withPostgres(url =>
    withRedis('disk', async redisPort => {
      const server = await makeServer(url, redisPort)
      await benchSends(server)
      await benchDelivery(server)
      await benchPulls(server)
      await server.close()
    }),
  )
}

const ways = { http: '/api/send', socket: 'socket', usual: '/usual/send', redis: '/redis/send' }

async function benchSends(server: ChatServer) {
  const sender = makeSender()
  for (const spread of spreads) {
    const chatIds = await makeChats(server, spread)
    const send = async (target: string, howLong = seconds): Promise<Sample> => {
      const begun = performance.now()
      const result = await sender.send({ port: server.port, target, chatIds, milliseconds: howLong * 1000 })
      if (result.refused > 0) throw new Error(`${result.refused} messages to ${target} were refused.`)
      const perSecond = (result.sent / (performance.now() - begun)) * 1000
      return result.p50 === undefined ? { perSecond } : { perSecond, p50: result.p50, p99: result.p99! }
    }
    for (const target of Object.values(ways)) await send(target, warmUpSeconds)
    const contestants = Object.entries(ways).map(([name, target]) => [name, () => send(target)] as const)
    printSends(spread, await interleave(Object.fromEntries(contestants), rounds))
  }
  await sender.close()
}

function printSends(spread: number, figures: Record<string, Record<string, Figure>>) {
  const rate = (name: string) => figures[name]!.perSecond!
  const lines: Line[] = []
  for (const [name, what] of [
    ['http', 'POST /api/send'],
    ['socket', 'one WebSocket'],
  ] as const) {
    const usual = { theirs: rate('usual'), theirName: 'a transaction each', unit: '/s', aim: { atLeast: 8 } }
    lines.push({ what, ours: rate(name), ...usual })
    lines.push({
      what,
      ours: rate(name),
      theirs: rate('redis'),
      theirName: 'XADD, synced',
      unit: '/s',
      aim: { atLeast: 1 },
    })
  }
  const times = { theirs: figures.usual!.p99!, theirName: 'a transaction each', unit: 'ms' }
  lines.push({ what: 'POST /api/send, p99', ours: figures.http!.p99!, ...times })
  printLines(`Sends, 128 senders, ${spread.toLocaleString('en')} ${spread === 1 ? 'chat' : 'chats'}`, lines)
  const bound = { atLeast: spread === 1 ? 5000 : 20_000 }
  printBound('POST /api/send', rate('http'), '/s', bound)
  printBound('one WebSocket', rate('socket'), '/s', bound)
}

/** One room, followed by many connections of another process. */
async function benchDelivery(server: ChatServer) {
  const [chatId] = await makeChats(server, 1)
  const draft = { clientId: null, replyTo: null, mentions: [], attachments: [] }
  const send = () =>
    server.chat.send(caller, { chatId: chatId!, draft: { ...draft, text: `${clock()} a message as people write it` } })
  const paced = async () => {
    const begun = performance.now()
    const sent: Promise<unknown>[] = []
    while (sent.length < messages) {
      const due = Math.min(messages, Math.ceil(((performance.now() - begun) / 1000) * pacedPerSecond))
      while (sent.length < due) sent.push(send())
      await sleep(1)
    }
    await Promise.all(sent)
  }
  const measured = async (crowd: Crowd, sendAll: () => Promise<unknown>): Promise<Sample> => {
    const received = crowd.expect(messages)
    await sendAll()
    const { deliveries, tookMs, p50, p99, closed } = await received
    if (closed > 0) throw new Error(`${closed} followers were cut off.`)
    return { perSecond: (deliveries / tookMs) * 1000, p50, p99 }
  }
  await withCrowd(async crowd => {
    await crowd.connect({ port: server.port, token: 'bench', count: followers })
    const { rows } = await server.db.query<{ last_seq: number }>('select last_seq from chat.chats where id = $1', [
      chatId,
    ])
    await crowd.follow(`chats/${chatId}`, rows[0]!.last_seq)
    const figures = await interleave(
      {
        all: () => measured(crowd, () => Promise.all(Array.from({ length: messages }, send))),
        paced: () => measured(crowd, paced),
      },
      rounds,
    )
    printHead(`Delivery: one room, ${followers} followers, ${messages} messages`)
    printBound('deliveries, all sent at once', figures.all!.perSecond!, '/s', { atLeast: 100_000 })
    printBound(`send to receipt at ${pacedPerSecond} messages/s, p50`, figures.paced!.p50!, 'ms', 100)
    printBound(`send to receipt at ${pacedPerSecond} messages/s, p99`, figures.paced!.p99!, 'ms', 100)
  })
}

/** The newest page of a chat while the table is small and when it has millions of messages of others and its own. */
async function benchPulls(server: ChatServer) {
  const [small, big] = await makeChats(server, 2)
  await server.db.query('truncate chat.messages, chat.unindexed, chat.search')
  await fill(server, small!, fewCount)
  const before = await timePulls(server, small!)
  await fill(server, big!, storedCount)
  const figures = await interleave(
    { small: () => timePulls(server, small!), big: () => timePulls(server, big!) },
    rounds,
  )
  const theirName = `${fewCount.toLocaleString('en')} messages in the table`
  const line = (what: string, ours: Figure) => ({
    what,
    ours,
    theirs: figureOf([before.p50!]),
    theirName,
    unit: 'ms',
    aim: { atMost: 1.2 },
  })
  printLines(`The newest page of a chat, ${storedCount.toLocaleString('en')} messages in the table, p50`, [
    line('of a chat with a thousand', figures.small!.p50!),
    line('of the chat with all the others', figures.big!.p50!),
  ])
}

async function fill({ db, chat }: ChatServer, chatId: string, count: number) {
  const me = await chat.person(caller)
  await db.query(
    `insert into chat.messages (chat_id, seq, sender_id, created_at, kind, text)
     select $1, n, $2, now(), 'text', 'A message as people write it, the one numbered ' || n
     from generate_series(1, $3::bigint) n`,
    [chatId, me.id, count],
  )
  await db.query('update chat.chats set last_seq = $2 where id = $1', [chatId, count])
  await db.query('vacuum analyze chat.messages')
}

async function timePulls({ port }: ChatServer, chatId: string): Promise<Sample> {
  const times: number[] = []
  for (let n = 0; n < pulls; n++) {
    const begun = performance.now()
    const answer = await fetch(`http://127.0.0.1:${port}/v1/chats/${chatId}/messages?limit=${page}`)
    const { messages: found } = (await answer.json()) as { messages: unknown[] }
    if (found.length !== page) throw new Error(`A page had ${found.length} messages.`)
    times.push(performance.now() - begun)
  }
  times.sort((a, b) => a - b)
  return { p50: percentile(times, 0.5), p99: percentile(times, 0.99) }
}
