import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestChat, type TestUser } from './test-support.ts'

const chat = await makeTestChat()
const other = await chat.another()
const ada = chat.user('Ada')
const bob = chat.user('bob')
let users = 0

/** Two who have never met, and their chat. */
async function pair(): Promise<{ one: TestUser; two: TestUser; id: string; at: string }> {
  const [one, two] = [chat.user(`one${++users}`), chat.user(`two${users}`)]
  const id = await chat.direct(one, two)
  return { one, two, id, at: `/v1/chats/${id}` }
}

test('two users have one direct chat, whoever asks for it', async () => {
  const first = await ada.post('/v1/chats', { kind: 'direct', with: 'bob' })
  assert.equal(first.status, 201, first.text)
  const again = await bob.post('/v1/chats', { kind: 'direct', with: 'ADA' })
  assert.equal(again.status, 200)
  assert.equal(again.body.id, first.body.id)
  assert.equal(again.body.with, 'Ada')
  assert.equal(first.body.with, 'bob')
})

test('two users who ask for their chat at the same time, in two processes, get the same one', async () => {
  for (let round = 0; round < 10; round++) {
    const names = [`left${round}`, `right${round}`] as const
    const here = names.map(name => chat.user(name))
    const there = names.map(name => other.user(name))
    const asked = [0, 1].flatMap(at => [
      here[at]!.post('/v1/chats', { kind: 'direct', with: names[1 - at] }),
      there[at]!.post('/v1/chats', { kind: 'direct', with: names[1 - at] }),
    ])
    const ids = (await Promise.all(asked)).map(answer => answer.body.id)
    assert.ok(ids[0])
    assert.equal(new Set(ids).size, 1)
  }
})

test('messages are numbered 1, 2, 3 and kept as they were sent', async () => {
  const { one, two, id, at } = await pair()
  const texts = ['hello "bob" \\ {NULL}, \n', 'NULL', '', '👩‍🚀 ünï', 'x'.repeat(8192)].filter(text => text !== '')
  for (const [index, text] of texts.entries()) assert.equal(await (index % 2 ? one : two).say(id, text), index + 1)
  assert.deepEqual(await one.texts(id), texts)
  const sent = await one.post(`${at}/messages`, { text: 'again', reply_to: 2, attachments: [id] })
  assert.equal(sent.status, 201, sent.text)
  const read = await two.get(`${at}/messages/${texts.length + 1}`)
  assert.deepEqual(read.body, sent.body)
  assert.deepEqual(read.body, {
    chat_id: id,
    seq: texts.length + 1,
    kind: 'text',
    sender: one.name,
    text: 'again',
    client_id: null,
    reply_to: 2,
    mentions: [],
    attachments: [id],
    event: null,
    created_at: sent.body.created_at,
    edited_at: null,
    edits: 0,
    deleted_at: null,
    reactions: [],
  })
})

test('two hundred messages of one text in one second, from two processes, are all kept', async () => {
  const { one, id } = await pair()
  const same = other.user(one.name)
  await Promise.all(Array.from({ length: 200 }, (_, index) => (index % 2 ? one : same).say(id, 'hello')))
  assert.equal((await one.texts(id)).length, 200)
  await chat.assertDense()
})

test('a message that may not be sent fails alone among those it shares a commit with', async () => {
  const { one, two, id, at } = await pair()
  const stranger = chat.user('stranger')
  const outcomes = await Promise.all([
    one.post(`${at}/messages`, { text: 'a' }),
    stranger.post(`${at}/messages`, { text: 'b' }),
    two.post(`${at}/messages`, { text: 'c', reply_to: 9 }),
    two.post(`${at}/messages`, { text: 'd' }),
    one.post('/v1/chats/0198aaaa-0000-7000-8000-000000000000/messages', { text: 'e' }),
  ])
  assert.deepEqual(
    outcomes.map(outcome => outcome.body.code ?? outcome.status),
    [201, 'not_a_member', 'bad_reply_to', 201, 'chat_not_found'],
  )
  assert.deepEqual((await one.texts(id)).sort(), ['a', 'd'])
})

test('a retry with the same client id answers the first message, in whichever process, at whatever time', async () => {
  const { one, two, id, at } = await pair()
  const same = other.user(one.name)
  const body = { text: 'once', client_id: 'c-1' }
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, index) => (index % 2 ? one : same).post(`${at}/messages`, body)),
  )
  assert.deepEqual([...new Set(answers.map(answer => `${answer.status} ${answer.body.seq}`))], ['201 1'])
  assert.deepEqual(await two.texts(id), ['once'])
  assert.equal((await two.post(`${at}/messages`, body)).body.seq, 2, 'client ids of two users are two')
  assert.equal((await one.patch(`${at}/messages/1`, { text: 'edited' })).status, 200)
  const later = await one.post(`${at}/messages`, body)
  assert.deepEqual([later.body.seq, later.body.text, later.body.client_id], [1, 'edited', 'c-1'])
  const reused = await one.post(`${at}/messages`, { ...body, text: 'other' })
  assert.deepEqual([reused.status, reused.body.code], [422, 'client_id_reused'])
})

test('an Idempotency-Key is the client id where none is given', async () => {
  const { one, id, at } = await pair()
  const first = await one.post(`${at}/messages`, { text: 'paid?' }, 'key-1')
  const again = await one.post(`${at}/messages`, { text: 'paid?' }, 'key-1')
  assert.equal(again.body.seq, first.body.seq)
  assert.equal((await one.post(`${at}/messages`, { text: 'else' }, 'key-1')).body.code, 'client_id_reused')
  assert.deepEqual(await one.texts(id), ['paid?'])
})

test('mentions are of members, by their names as they write them', async () => {
  const room = await chat.room([ada, bob])
  // Known here, and no member.
  await chat.user('carol').get('/v1/chats')
  const sent = await ada.post(`/v1/chats/${room}/messages`, { text: 'hi', mentions: ['BOB', 'bob', 'ada'] })
  assert.deepEqual(sent.body.mentions, ['bob', 'Ada'], sent.text)
  for (const name of ['carol', 'nobody']) {
    const refused = await ada.post(`/v1/chats/${room}/messages`, { text: 'hi', mentions: [name] })
    assert.equal(refused.body.code, 'mention_not_member')
  }
})

test('an edit and a deletion keep the number, and tell that they happened', async () => {
  const { one, two, id, at } = await pair()
  await one.say(id, 'first')
  await two.say(id, 'second')
  const edited = await one.patch(`${at}/messages/1`, { text: 'first, edited' })
  assert.deepEqual([edited.body.seq, edited.body.text, edited.body.edits], [1, 'first, edited', 1])
  assert.ok(edited.body.edited_at)
  assert.equal((await one.patch(`${at}/messages/2`, { text: 'mine now' })).body.code, 'not_the_sender')
  assert.equal((await one.delete(`${at}/messages/2`)).body.code, 'role_too_low')
  const deleted = await two.delete(`${at}/messages/2`)
  assert.equal(deleted.body.text, '')
  assert.ok(deleted.body.deleted_at)
  assert.equal((await two.delete(`${at}/messages/2`)).status, 200, 'again does nothing')
  assert.equal((await two.patch(`${at}/messages/2`, { text: 'back' })).body.code, 'message_fixed')
  assert.equal((await two.patch(`${at}/messages/3`, { text: 'x' })).body.code, 'message_not_found')
  assert.deepEqual(await one.texts(id), ['first, edited', ''])
  assert.equal(await one.say(id, 'third'), 3)
})

test('reactions are counted by emoji, once a member', async () => {
  const { one, two, id, at } = await pair()
  await one.say(id, 'well?')
  const thumb = `${at}/messages/1/reactions/${encodeURIComponent('👍')}`
  await Promise.all([one.put(thumb), one.put(thumb), two.put(thumb)])
  const seen = await one.get(`${at}/messages`)
  assert.deepEqual(seen.body.messages[0].reactions, [{ emoji: '👍', count: 2, mine: true }])
  await one.delete(thumb)
  await one.delete(thumb)
  assert.deepEqual((await one.get(`${at}/messages/1`)).body.reactions, [{ emoji: '👍', count: 1, mine: false }])
  assert.deepEqual((await two.delete(thumb)).body.reactions, [])
  for (let kind = 0; kind < 20; kind++) assert.equal((await one.put(`${at}/messages/1/reactions/k${kind}`)).status, 200)
  assert.equal((await two.put(`${at}/messages/1/reactions/k20`)).body.code, 'too_many_reactions')
  assert.equal((await two.put(`${at}/messages/1/reactions/k19`)).status, 200)
})

test('marks only rise, however they come, and never beyond the newest message', async () => {
  const { one, two, id, at } = await pair()
  const same = other.user(two.name)
  for (let at = 1; at <= 20; at++) await one.say(id, 'x')
  const seqs = Array.from({ length: 20 }, (_, index) => index + 1).sort(() => Math.random() - 0.5)
  await Promise.all(
    seqs.map((seq, index) => (index % 2 ? two : same).post(`${at}/${index % 3 ? 'read' : 'delivered'}`, { seq })),
  )
  const { body } = await two.get(at)
  const highestRead = Math.max(...seqs.filter((_, index) => index % 3))
  assert.deepEqual([body.read_seq, body.delivered_seq, body.unread], [highestRead, 20, 20 - highestRead])
  await two.post(`${at}/read`, { seq: 20 })
  assert.deepEqual((await two.post(`${at}/read`, { seq: 3 })).body, { read_seq: 20, delivered_seq: 20, unread: 0 })
  assert.equal((await two.post(`${at}/read`, { seq: 21 })).body.code, 'message_not_found')
  assert.equal((await chat.user('stranger').post(`${at}/read`, { seq: 1 })).body.code, 'not_a_member')
  const members = await one.get(`${at}/members`)
  assert.deepEqual(
    members.body.members.map((member: { username: string; read_seq: number }) => [member.username, member.read_seq]),
    [
      [one.name, 20],
      [two.name, 20],
    ],
  )
})

test('what is unread is counted, one’s own messages are read', async () => {
  const { one, two, id, at } = await pair()
  for (const text of ['a', 'b', 'c']) await one.say(id, text)
  assert.equal((await one.get(at)).body.unread, 0)
  assert.equal((await two.get(at)).body.unread, 3)
  await two.post(`${at}/read`, { seq: 2 })
  assert.equal((await two.get(at)).body.unread, 1)
  await two.say(id, 'd')
  assert.equal((await two.get(at)).body.unread, 0)
  assert.equal((await one.get(at)).body.unread, 1)
})

test('one’s chats come by their newest activity, in pages, with the newest message and what is unread', async () => {
  const me = chat.user('lister')
  const ids: string[] = []
  for (let at = 0; at < 7; at++) {
    const friend = chat.user(`friend${at}`)
    ids.push(await chat.direct(me, friend))
    chat.time.offsetMs += 10
    await friend.say(ids.at(-1)!, `from ${at}`)
  }
  chat.time.offsetMs += 10
  await me.say(ids[0]!, 'newest')
  const seen: [string, string, number][] = []
  for (let cursor: string | null = ''; cursor !== null; ) {
    const { body, text } = await me.get(`/v1/chats?limit=3${cursor ? `&cursor=${cursor}` : ''}`)
    for (const each of body.chats) seen.push([each.id, each.last_message.text, each.unread])
    assert.ok(body.chats.length > 0, text)
    cursor = body.next_cursor
  }
  assert.deepEqual(seen, [[ids[0], 'newest', 0], ...[6, 5, 4, 3, 2, 1].map(at => [ids[at], `from ${at}`, 1])])
  const unread = await me.get('/v1/chats?unread=true')
  assert.equal(unread.body.chats.length, 6)
})

test('whom one blocks cannot write to one’s direct chat, nor bring one into a room', async () => {
  const { one, two, id, at } = await pair()
  const room = await chat.room([one, two])
  assert.equal((await one.put(`/v1/blocks/${two.name}`)).status, 204)
  const sent = await other.user(two.name).post(`${at}/messages`, { text: 'please' })
  assert.deepEqual([sent.status, sent.body.code], [403, 'blocked'])
  assert.equal(await one.say(id, 'you still hear me'), 1)
  assert.equal(await two.say(room, 'rooms stay'), 3)
  const brought = await two.post('/v1/chats', { kind: 'room', name: 'trap', members: [one.name] })
  assert.equal(brought.body.code, 'blocked')
  const listed = await one.get('/v1/blocks')
  assert.deepEqual(
    listed.body.blocks.map((block: { username: string }) => block.username),
    [two.name],
  )
  assert.equal((await one.delete(`/v1/blocks/${two.name}`)).status, 204)
  assert.equal(await two.say(id, 'thanks'), 2)
})

test('a block from before the first message holds for the chat that is made then', async () => {
  const [shy, loud] = [chat.user('shy'), chat.user('loud')]
  assert.equal((await shy.put('/v1/blocks/loud')).status, 204)
  assert.equal((await loud.post('/v1/chats', { kind: 'direct', with: 'shy' })).body.code, 'blocked')
  const id = await chat.direct(shy, loud)
  assert.equal((await loud.post(`/v1/chats/${id}/messages`, { text: 'ha' })).body.code, 'blocked')
  assert.equal((await shy.put('/v1/blocks/shy')).body.code, 'self_block')
})

test('a chat is muted for oneself, until a time', async () => {
  const { one, two, at } = await pair()
  assert.equal((await one.put(`${at}/mute`, { until: '2030-01-01T00:00:00Z' })).status, 204)
  assert.equal((await one.get(at)).body.muted_until, '2030-01-01T00:00:00.000Z')
  assert.equal((await two.get(at)).body.muted_until, null)
  assert.equal((await one.put(`${at}/mute`, { until: null })).status, 204)
  assert.equal((await one.get(at)).body.muted_until, null)
})

test('past its messages a minute a user, and past its own a chat, is told when to come back', async () => {
  const limited = await chat.another({ settings: { CHAT_SENDS_PER_MINUTE: 3, CHAT_SENDS_PER_MINUTE_PER_CHAT: 5 } })
  const [one, two, three] = ['limited1', 'limited2', 'limited3'].map(name => limited.user(name))
  const id = await limited.room([one!, two!, three!])
  const send = (user: TestUser) => user.post(`/v1/chats/${id}/messages`, { text: 'x' })
  for (let at = 0; at < 3; at++) assert.equal((await send(one!)).status, 201)
  const refused = await send(one!)
  assert.deepEqual([refused.status, refused.body.code], [429, 'rate_limited'])
  assert.ok(Number(refused.headers['retry-after']) > 0)
  assert.equal((await send(two!)).status, 201)
  assert.equal((await send(two!)).status, 201)
  assert.equal((await send(three!)).status, 429, 'the chat has had its five')
})

test('an API key needs chat:read to look and chat:write to send', async () => {
  const reader = chat.user('reader', ['chat:read'])
  const id = await chat.direct(ada, reader)
  assert.equal((await reader.get(`/v1/chats/${id}`)).status, 200)
  const refused = await reader.post(`/v1/chats/${id}/messages`, { text: 'x' })
  assert.deepEqual([refused.status, refused.body.code], [403, 'missing_scope'])
  const writer = chat.user('writer', ['chat:write'])
  assert.equal((await writer.get('/v1/chats')).status, 403)
})

test('whose clock goes back gives no message an earlier time than the one before it', async () => {
  const { one, id, at } = await pair()
  const late = await chat.another({})
  chat.time.offsetMs += 60_000
  await one.say(id, 'later')
  chat.time.offsetMs -= 60_000
  await late.user(one.name).say(id, 'earlier')
  const { body } = await one.get(`${at}/messages`)
  assert.ok(body.messages[0].created_at <= body.messages[1].created_at)
})
