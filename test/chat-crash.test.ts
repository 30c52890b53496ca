/**
 * Chats through crashes: two Capstans on one database, killed in turns, and so are Redis and PostgreSQL, while users
 * send with client ids and try again until they are answered, and others follow and come back whenever they are cut off.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { WebSocket } from 'ws'
import { type Capstan, killPostgres, makeDataDir, queryIn, startCapstan, stopAll } from './support/capstan.ts'
import { makeUser, type User } from './support/http.ts'
import { makeTestRedis, redisIsMissing } from './support/redis.ts'
import { until } from './support/until.ts'

const sendersMax = 4
/** How many messages are to be accepted between one crash and the next. */
const messagesBetween = 150

interface Row {
  seq: number
  text: string
  client_id: string | null
}

/** Two Capstans, either of which may be down just now. */
async function makePair(env: Record<string, string>) {
  const dataDir = await makeDataDir()
  const start = () => startCapstan({ dataDir, env, services: 'chat' })
  const up: (Capstan | undefined)[] = [await start(), await start()]
  return {
    dataDir,
    /** One that is up, another one each time where both are. */
    any(turn: number): Capstan {
      return (up[turn % 2] ?? up[(turn + 1) % 2])!
    },
    async crash(at: number) {
      const doomed = up[at]!
      up[at] = undefined
      doomed.kill('SIGKILL')
      await doomed.exited
      return async () => {
        up[at] = await start()
      }
    },
    stop: () => stopAll(...up.filter(each => each !== undefined)),
  }
}

type Pair = Awaited<ReturnType<typeof makePair>>

interface Storm {
  pair: Pair
  chatId: string
  /** The number each message was given, by client id. */
  accepted: Map<string, number>
  going: boolean
  /** Nobody answers any more. */
  isOver: boolean
}

/** Sends one message after the other, each until it is accepted. */
async function sendOn(storm: Storm, user: User) {
  const { pair, chatId, accepted } = storm
  for (let at = 0; storm.going; at++) {
    const body = { text: at % 3 === 0 ? 'hello' : `${user.name} ${at}`, client_id: `${user.name}-${at}` }
    for (let turn = at; !storm.isOver; turn++) {
      const answer = await user.post(pair.any(turn), `/v1/chats/${chatId}/messages`, body).catch(() => undefined)
      if (answer?.status === 201) {
        accepted.set(body.client_id, answer.body.seq)
        break
      }
      const isPassing = answer === undefined || answer.status === 503
      assert.ok(isPassing, JSON.stringify(answer?.body))
    }
  }
}

/** Follows a chat, and comes back with its last number whenever it is cut off. */
function followOn(pair: Pair, user: User, chatId: string) {
  const seen: { seq: number; text: string }[] = []
  let ended = false
  let socket: WebSocket | undefined
  let turn = 0
  let connections = 0

  function connect() {
    if (ended) return
    const { url } = pair.any(turn++)
    socket = new WebSocket(`${url.replace('http', 'ws')}/v1/live`, {
      headers: { authorization: `Bearer ${user.token}` },
    })
    socket.on('open', () => {
      connections++
      socket!.send(JSON.stringify({ type: 'subscribe', topic: `chats/${chatId}`, after: seen.at(-1)?.seq ?? 0 }))
    })
    socket.on('message', data => {
      const frame = JSON.parse(String(data))
      if (frame.type === 'events') {
        for (const { seq, data: message } of frame.events) seen.push({ seq, text: message.text })
      }
      // Whoever cannot be told apart from a stranger while the database is away comes again.
      if (frame.type === 'error') socket!.terminate()
    })
    socket.on('error', () => {})
    socket.on('close', () => setImmediate(connect))
  }

  connect()
  return {
    seen,
    get connections() {
      return connections
    },
    end() {
      ended = true
      socket?.terminate()
    },
  }
}

test('what is sent through crashes is there once, in order, and every reader has exactly it', {
  skip: redisIsMissing,
  timeout: 180_000,
}, async t => {
  const redis = await makeTestRedis()
  const pair = await makePair({
    REDIS_URL: redis.url,
    CHAT_SENDS_PER_MINUTE: '0',
    CHAT_SENDS_PER_MINUTE_PER_CHAT: '0',
  })
  const users = await Promise.all(Array.from({ length: sendersMax }, (_, at) => makeUser(pair.any(at), `crash${at}`)))
  const [owner, ...others] = users
  const made = await owner!.post(pair.any(0), '/v1/chats', {
    kind: 'room',
    name: 'Storm',
    members: others.map(user => user.name),
  })
  const chatId = made.body.id as string
  const accepted = new Map<string, number>()
  const storm: Storm = { pair, chatId, accepted, going: true, isOver: false }
  const readers = users.map(user => followOn(pair, user, chatId))
  const senders = users.map(user => sendOn(storm, user))
  // Whoever went on after a failure would keep this process from ending.
  t.after(() => {
    Object.assign(storm, { going: false, isOver: true })
    for (const reader of readers) reader.end()
  })
  const some = async () => {
    const wanted = accepted.size + messagesBetween
    await until(() => accepted.size >= wanted, 60_000)
  }

  await some()
  for (const at of [0, 1]) {
    const restart = await pair.crash(at)
    await some()
    await restart()
    await some()
  }
  await redis.kill()
  await some()
  const restart = await pair.crash(0)
  await some()
  await redis.start()
  await restart()
  await killPostgres(pair.dataDir)
  await some()
  storm.going = false
  await Promise.all(senders)

  const rows = await queryIn<Row>(
    pair.dataDir,
    `select seq::int, text, client_id from chat.messages where chat_id = $1 order by seq`,
    [chatId],
  )
  assert.deepEqual(
    rows.map(row => row.seq),
    rows.map((_, at) => at + 1),
    'no number is missing or doubled',
  )
  const kept = rows.filter(row => row.client_id !== null)
  assert.equal(new Set(kept.map(row => row.client_id)).size, kept.length, 'none is there twice')
  assert.deepEqual(
    new Map(kept.map(row => [row.client_id, row.seq])),
    new Map([...accepted].sort(([, a], [, b]) => a - b)),
  )
  for (const reader of readers) {
    await until(() => reader.seen.length >= rows.length)
    assert.deepEqual(
      reader.seen,
      rows.map(({ seq, text }) => ({ seq, text })),
    )
    reader.end()
  }
  assert.ok(
    readers.some(reader => reader.connections > 2),
    'readers were cut off',
  )
  await pair.stop()
})
