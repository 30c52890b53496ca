import assert from 'node:assert/strict'
import { test } from 'node:test'
import { TestClient } from '#platform/live/test-kit.ts'
import { until } from '../../../test/support/until.ts'
import { makeTestChat, type TestUser } from './test-support.ts'

// Waiting for the poll would take longer than any of these tests may.
const chat = await makeTestChat({ pollMs: 600_000 })
const other = await chat.another({ pollMs: 600_000 })
let users = 0

function connect(user: TestUser, at: { host: string } = chat): Promise<TestClient> {
  return TestClient.connect(at.host, { token: user.name.toLowerCase() })
}

async function follow(client: TestClient, topic: string, after = 0) {
  client.send({ type: 'subscribe', topic, after })
  return client.frame('subscribed', topic)
}

function guest(): TestUser {
  return chat.user(`guest${++users}`)
}

let calls = 0

// biome-ignore lint/suspicious/noExplicitAny: answers are looked at field by field
async function call(client: TestClient, name: string, params: unknown): Promise<any> {
  const id = `call-${++calls}`
  client.send({ type: 'call', id, call: name, params })
  const results = () => client.frames.filter(frame => frame.type === 'results').flatMap(frame => frame.results)
  await client.until(() => results().some(result => result.id === id), `the answer to ${name}`)
  return results().find(result => result.id === id)
}

test('who follows a chat gets what it missed, then what comes, from every process', async () => {
  const [one, two] = [guest(), guest()]
  const id = await chat.direct(one, two)
  for (const text of ['1', '2', '3']) await one.say(id, text)
  const client = await connect(two)
  await follow(client, `chats/${id}`, 1)
  await client.until(() => client.events.length === 2, 'what it missed')
  await one.say(id, '4')
  await other.user(one.name).say(id, '5')
  await client.until(() => client.events.length === 4, 'what comes')
  assert.deepEqual(
    client.events.map(({ seq, type, data }) => [seq, type, (data as { text: string }).text]),
    [2, 3, 4, 5].map(seq => [seq, 'message', String(seq)]),
  )
  const { body } = await two.get(`/v1/chats/${id}/messages/5`)
  assert.deepEqual(client.events[3]!.data, body)
})

test('edits, deletions, reactions and roles come on a topic of their own', async () => {
  const [one, two] = [guest(), guest()]
  const id = await chat.room([one, two])
  const at = `/v1/chats/${id}`
  const client = await connect(two)
  await one.say(id, 'a')
  await one.patch(`${at}/messages/3`, { text: 'b' })
  await follow(client, `chat-changes/${id}`)
  await two.put(`${at}/messages/3/reactions/x`)
  await one.patch(`${at}/members/${two.name}`, { role: 'moderator' })
  await one.delete(`${at}/messages/3`)
  await client.until(() => client.events.length === 5, 'five changes')
  assert.deepEqual(
    client.events.map(event => [event.seq, event.type]),
    [
      [1, 'member'],
      [2, 'edited'],
      [3, 'reaction'],
      [4, 'member'],
      [5, 'deleted'],
    ],
  )
  const [, , reaction, role, deleted] = client.events.map(event => event.data as Record<string, unknown>)
  const { emoji, username, on, count } = reaction!
  assert.deepEqual({ emoji, username, on, count }, { emoji: 'x', username: two.name, on: true, count: 1 })
  assert.deepEqual(role, { username: two.name, role: 'moderator' })
  assert.ok((deleted!.message as { deleted_at: string }).deleted_at)
})

test('changes that are kept no longer are passed over', async () => {
  const [one, two] = [guest(), guest()]
  const id = await chat.direct(one, two)
  await one.say(id, 'a')
  await one.patch(`/v1/chats/${id}/messages/1`, { text: 'b' })
  chat.time.offsetMs += 31 * 86_400_000
  await chat.service.maintain()
  await one.patch(`/v1/chats/${id}/messages/1`, { text: 'c' })
  chat.time.offsetMs = 0
  const client = await connect(two)
  await follow(client, `chat-changes/${id}`)
  await client.until(() => client.events.length === 1, 'the one that is left')
  assert.equal(client.events[0]!.seq, 2)
})

test('whoever is removed or leaves is told so, and gets nothing after it', async () => {
  for (const way of ['removed', 'left'] as const) {
    const [owner, gone] = [guest(), guest()]
    const id = await chat.room([owner, gone])
    const clients = [await connect(gone), await connect(other.user(gone.name), other)]
    const stays = await connect(owner)
    for (const client of clients) {
      await follow(client, `chats/${id}`)
      await follow(client, `chat-changes/${id}`)
    }
    await follow(stays, `chats/${id}`)
    await owner.say(id, 'before')
    // What follows at once, while nobody has asked again who may follow.
    await Promise.all([
      way === 'left' ? gone.post(`/v1/chats/${id}/leave`) : owner.delete(`/v1/chats/${id}/members/${gone.name}`),
      ...Array.from({ length: 20 }, () => owner.say(id, 'about')),
    ])
    await owner.say(id, 'after')
    await owner.patch(`/v1/chats/${id}/messages/3`, { text: 'edited after' })
    await stays.until(() => stays.events.some(({ data }) => (data as { text: string }).text === 'after'), 'the end')
    const end = stays.events.find(({ data }) => (data as { event: { type: string } | null }).event?.type === way)!.seq
    for (const client of clients) {
      await until(() => client.frames.filter(frame => frame.type === 'error').length === 2)
      const texts = client.events.filter(event => event.type === 'message')
      assert.equal(texts.at(-1)!.seq, end, 'the last one tells of the end')
      assert.deepEqual(
        client.events.filter(event => event.type === 'edited'),
        [],
      )
      assert.deepEqual(
        client.frames.filter(frame => frame.type === 'error').map(frame => frame.code),
        ['not_a_member', 'not_a_member'],
      )
    }
  }
})

test('who may not look into a chat may not follow it, and the connection stays', async () => {
  const [one, two, stranger] = [guest(), guest(), guest()]
  const id = await chat.direct(one, two)
  const client = await connect(stranger)
  const cases: [topic: string, code: string][] = [
    [`chats/${id}`, 'not_a_member'],
    [`chat-changes/${id}`, 'not_a_member'],
    ['chats/0198aaaa-0000-7000-8000-000000000000', 'chat_not_found'],
    ['chats/42', 'chat_not_found'],
    [`chats/${id.toUpperCase()}`, 'chat_not_found'],
  ]
  for (const [topic, code] of cases) {
    const answer = await client.ask({ type: 'subscribe', topic, after: 0 })
    assert.deepEqual([answer.type, answer.code], ['error', code], topic)
  }
  assert.equal((await client.ask({ type: 'ping' })).type, 'pong')
})

test('typing and marks are told to the others who follow just now, in every process', async () => {
  const [one, two] = [guest(), guest()]
  const id = await chat.direct(one, two)
  await one.say(id, 'a')
  const sender = await connect(one)
  const reader = await connect(other.user(two.name), other)
  await follow(sender, `chats/${id}`)
  await follow(reader, `chats/${id}`)
  const signals = (client: TestClient) =>
    client.frames.filter(frame => frame.type === 'signal' && frame.signal.type !== 'presence')
  assert.deepEqual((await call(reader, 'chats.typing', { chat_id: id })).result, {})
  await sender.until(() => signals(sender).length === 1, 'that somebody types')
  const read = await call(reader, 'chats.read', { chat_id: id, seq: 1 })
  assert.deepEqual(read.result, { read_seq: 1, delivered_seq: 1, unread: 0 })
  await call(reader, 'chats.read', { chat_id: id, seq: 1 })
  await sender.until(() => signals(sender).length === 2, 'that it was read')
  await one.post(`/v1/chats/${id}/typing`)
  await reader.until(() => signals(reader).length === 1, 'that the other types')
  assert.deepEqual(
    signals(sender).map(frame => frame.signal),
    [
      { type: 'typing', data: { username: two.name } },
      { type: 'marks', data: { username: two.name, read_seq: 1, delivered_seq: 1 } },
    ],
  )
  assert.deepEqual(signals(reader)[0].signal, { type: 'typing', data: { username: one.name } })
})

test('who follows a chat is present by name', async () => {
  const [one, two] = [guest(), guest()]
  const id = await chat.direct(one, two)
  const client = await connect(two)
  await follow(client, `chats/${id}`)
  const present = async () => (await one.get(`/v1/chats/${id}/present`)).body.usernames
  await until(async () => (await present()).length === 1)
  assert.deepEqual(await present(), [two.name])
  await client.drop()
  await until(async () => (await present()).length === 0)
})

test('messages sent over one connection without waiting are numbered in their order', async () => {
  const [one, two] = [guest(), guest()]
  const id = await chat.direct(one, two)
  const client = await connect(one)
  const count = 500
  for (let at = 1; at <= count; at++) {
    // Mentions are looked up first, which must not let the next one pass by.
    const mentions = at % 3 === 0 ? [two.name] : []
    client.send({ type: 'call', id: `${at}`, call: 'chats.send', params: { chat_id: id, text: `m${at}`, mentions } })
  }
  const results = () => client.frames.filter(frame => frame.type === 'results').flatMap(frame => frame.results)
  await client.until(() => results().length === count, 'all answers')
  assert.deepEqual(
    results().map(({ id, result }) => [id, result?.seq]),
    Array.from({ length: count }, (_, at) => [String(at + 1), at + 1]),
  )
  assert.deepEqual(
    await two.texts(id),
    Array.from({ length: count }, (_, at) => `m${at + 1}`),
  )
})

test('calls are refused with the codes that the routes have', async () => {
  const [one, two, stranger] = [guest(), guest(), guest()]
  const id = await chat.direct(one, two)
  const client = await connect(stranger)
  const cases: [name: string, params: unknown, code: string][] = [
    ['chats.send', { chat_id: id, text: 'x' }, 'not_a_member'],
    ['chats.send', { chat_id: id, text: '' }, 'text_empty'],
    ['chats.send', { chat_id: 42, text: 'x' }, 'chat_not_found'],
    ['chats.send', undefined, 'not_an_object'],
    ['chats.send', { chat_id: id, text: 'x', sender: one.name }, 'unknown_field'],
    ['chats.read', { chat_id: id, seq: 1 }, 'not_a_member'],
    ['chats.delivered', { chat_id: id, seq: -1 }, 'bad_message_number'],
    ['chats.typing', { chat_id: id }, 'not_a_member'],
    ['chats.pull', { chat_id: id }, 'not_a_member'],
    ['chats.pull', { chat_id: id, limit: 0 }, 'bad_limit'],
    ['chats.pull', { chat_id: id, after: 'x' }, 'bad_message_number'],
  ]
  for (const [name, params, code] of cases) {
    assert.equal((await call(client, name, params)).error?.code, code, `${name} ${JSON.stringify(params)}`)
  }
  const reader = await connect(chat.user('key-reader', ['chat:read']))
  assert.equal((await call(reader, 'chats.send', { chat_id: id, text: 'x' })).error.code, 'missing_scope')
})

test('a pull over the connection is a page of the history', async () => {
  const [one, two] = [guest(), guest()]
  const id = await chat.direct(one, two)
  for (const text of ['a', 'b', 'c']) await one.say(id, text)
  const client = await connect(two)
  const { result } = await call(client, 'chats.pull', { chat_id: id, before: 3, limit: 1 })
  const { body } = await two.get(`/v1/chats/${id}/messages?before=3&limit=1`)
  assert.deepEqual(result, body)
  assert.equal(result.messages[0].text, 'b')
})
