/** Senders and readers at random, on two processes: what every reader ends with is what stands in the table. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { TestClient } from '#platform/live/test-kit.ts'
import { makeRandom } from '#platform/random.ts'
import { until } from '../../../test/support/until.ts'
import { makeTestChat, type TestProcess, type TestUser } from './test-support.ts'

const chat = await makeTestChat({ pollMs: 300 })
const processes: TestProcess[] = [chat, await chat.another({ pollMs: 300 })]

const seed = Number(process.env.CHAT_MODEL_SEED ?? Date.now() % 1_000_000)
const seconds = Number(process.env.CHAT_MODEL_SECONDS ?? 5)

interface Seen {
  seq: number
  text: string
}

interface Span {
  isOn(): boolean
  over: Promise<void>
}

function makeSpan(ms: number): Span {
  let on = true
  const over = sleep(ms).then(() => {
    on = false
  })
  return { isOn: () => on, over }
}

/** Follows all chats, now on one process, now on the other, and drops whenever it likes. */
async function readAtRandom(given: { user: TestUser; ids: string[]; random: () => number; span: Span }) {
  const { user, ids, random, span } = given
  const seen = new Map<string, Seen[]>(ids.map(id => [id, []]))
  let drops = 0

  async function connect(): Promise<TestClient> {
    const at = processes[Math.floor(random() * processes.length)]!
    const client = await TestClient.connect(at.host, { token: user.name })
    client.socket.on('message', data => {
      const frame = JSON.parse(String(data))
      if (frame.type !== 'events') return
      const list = seen.get(frame.topic.slice('chats/'.length))!
      for (const { seq, data } of frame.events) list.push({ seq, text: data.text })
    })
    for (const id of ids)
      client.send({ type: 'subscribe', topic: `chats/${id}`, after: seen.get(id)!.at(-1)?.seq ?? 0 })
    return client
  }

  async function stayAWhile(client: TestClient) {
    const most = Math.floor(random() * 60)
    for (let frames = 0; frames < most && span.isOn(); frames++) await Promise.race([once(client, 'change'), span.over])
  }

  while (span.isOn()) {
    const client = await connect()
    await stayAWhile(client)
    await client.drop()
    drops++
  }
  return { seen, drops, last: await connect() }
}

async function sendAtRandom(given: { user: string; ids: string[]; random: () => number; span: Span }) {
  const { user, ids, random, span } = given
  const here = processes.map(each => each.user(user))
  const sent: string[] = []
  while (span.isOn()) {
    const id = ids[Math.floor(random() * ids.length)]!
    const burst = 1 + Math.floor(random() * 4)
    const texts = Array.from({ length: burst }, () => (random() < 0.3 ? 'hello' : `${user} ${sent.length}`))
    await Promise.all(
      texts.map(async text => {
        const body = { text, ...(random() < 0.2 ? { client_id: `c${sent.length}-${text}-${random()}` } : {}) }
        const tries = 'client_id' in body ? 2 : 1
        const answers = await Promise.all(
          Array.from({ length: tries }, () => here[random() < 0.5 ? 0 : 1]!.post(`/v1/chats/${id}/messages`, body)),
        )
        for (const { status, text: shown } of answers) assert.equal(status, 201, shown)
        sent.push(`${id} ${answers[0]!.body.seq} ${text}`)
      }),
    )
  }
  return sent
}

test(`every reader ends with exactly the sequence in the table (seed ${seed})`, { timeout: 120_000 }, async () => {
  const random = makeRandom(seed)
  const names = Array.from({ length: 6 }, (_, at) => `model${at}`)
  const users = names.map(name => chat.user(name))
  const ids = [await chat.room(users), await chat.room(users), await chat.room(users)]
  const span = makeSpan(seconds * 1000)
  const readers = users.map(user => readAtRandom({ user, ids, random: makeRandom(random() * 2 ** 32), span }))
  const senders = names.map(user => sendAtRandom({ user, ids, random: makeRandom(random() * 2 ** 32), span }))
  const sent = new Set((await Promise.all(senders)).flat())
  const read = await Promise.all(readers)
  await chat.assertDense()
  for (const id of ids) {
    const { rows } = await chat.db.query<Seen & { kind: string }>(
      `select seq, text, kind from chat.messages where chat_id = $1 order by seq`,
      [id],
    )
    const wanted = rows.map(({ seq, text }) => ({ seq, text }))
    for (const { seen } of read) {
      await until(() => seen.get(id)!.length >= wanted.length)
      assert.deepEqual(seen.get(id), wanted)
    }
    const kept = rows.filter(row => row.kind === 'text').map(row => `${id} ${row.seq} ${row.text}`)
    const ofThis = [...sent].filter(line => line.startsWith(id))
    assert.deepEqual(kept.toSorted(), ofThis.toSorted(), 'what was accepted is what is there')
  }
  assert.ok(sent.size > 100 && read.every(({ drops }) => drops > 0), `${sent.size} messages`)
  for (const { last } of read) await last.drop()
})
