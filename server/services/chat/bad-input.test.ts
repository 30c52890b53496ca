import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Answer, makeTestChat } from './test-support.ts'

const chat = await makeTestChat()
const ada = chat.user('Ada')
const bob = chat.user('bob')
const id = await chat.direct(ada, bob)
const at = `/v1/chats/${id}`
await ada.say(id, 'first')

interface Case {
  what: string
  act: () => Promise<Answer>
  status: number
  code: string
}

async function check(cases: Case[]) {
  for (const { what, act, status, code } of cases) {
    const answer = await act()
    assert.deepEqual([answer.status, answer.body?.code], [status, code], `${what}: ${answer.text}`)
    assert.ok(answer.body.detail.length > 10, what)
  }
}

test('a message that is none is refused with a code of its own', async () => {
  const send = (body: unknown) => () => ada.post(`${at}/messages`, body)
  const loneSurrogate = () =>
    chat.send('POST', `${at}/messages`, { token: 'ada', raw: '{"text":"half of a pair: \\ud83d"}' })
  await check([
    { what: 'no text', act: send({}), status: 400, code: 'text_empty' },
    { what: 'an empty text', act: send({ text: '' }), status: 400, code: 'text_empty' },
    { what: 'a number', act: send({ text: 5 }), status: 400, code: 'text_empty' },
    { what: 'too many characters', act: send({ text: 'x'.repeat(8193) }), status: 400, code: 'text_too_long' },
    { what: 'too many bytes', act: send({ text: 'ü'.repeat(4097) }), status: 400, code: 'text_too_long' },
    { what: 'a NUL', act: send({ text: 'a\0b' }), status: 400, code: 'bad_text' },
    { what: 'a lone surrogate', act: loneSurrogate, status: 400, code: 'bad_text' },
    { what: 'an empty client id', act: send({ text: 'x', client_id: '' }), status: 400, code: 'bad_client_id' },
    {
      what: 'a long client id',
      act: send({ text: 'x', client_id: 'x'.repeat(129) }),
      status: 400,
      code: 'bad_client_id',
    },
    { what: 'an odd client id', act: send({ text: 'x', client_id: 'ü' }), status: 400, code: 'bad_client_id' },
    { what: 'a reply to nothing', act: send({ text: 'x', reply_to: 99 }), status: 400, code: 'bad_reply_to' },
    { what: 'a reply to 0', act: send({ text: 'x', reply_to: 0 }), status: 400, code: 'bad_reply_to' },
    { what: 'a reply to a text', act: send({ text: 'x', reply_to: '1' }), status: 400, code: 'bad_reply_to' },
    { what: 'mentions that are no list', act: send({ text: 'x', mentions: 'bob' }), status: 400, code: 'bad_mentions' },
    {
      what: 'too many mentions',
      act: send({ text: 'x', mentions: Array(51).fill('bob') }),
      status: 400,
      code: 'bad_mentions',
    },
    {
      what: 'a mention of nobody',
      act: send({ text: 'x', mentions: ['nobody'] }),
      status: 400,
      code: 'mention_not_member',
    },
    {
      what: 'an attachment that is no id',
      act: send({ text: 'x', attachments: ['cat.jpg'] }),
      status: 400,
      code: 'bad_attachments',
    },
    {
      what: 'too many attachments',
      act: send({ text: 'x', attachments: Array(11).fill(id) }),
      status: 400,
      code: 'bad_attachments',
    },
    { what: 'a sender', act: send({ text: 'x', sender: 'bob' }), status: 400, code: 'unknown_field' },
    { what: 'a list', act: send([]), status: 400, code: 'not_an_object' },
    {
      what: 'no JSON',
      act: () => chat.send('POST', `${at}/messages`, { token: 'ada', raw: '{"text":' }),
      status: 400,
      code: 'malformed_json',
    },
  ])
  assert.deepEqual(await ada.texts(id), ['first'])
})

test('the longest text that is allowed is allowed', async () => {
  const room = await chat.room([ada])
  assert.equal(await ada.say(room, 'x'.repeat(8192)), 2)
  assert.equal(await ada.say(room, 'ü'.repeat(4096)), 3)
})

test('a page that cannot be is refused with a code of its own', async () => {
  const get = (query: string) => () => ada.get(`${at}/messages?${query}`)
  await check([
    { what: 'a cursor below 0', act: get('after=-1'), status: 400, code: 'bad_message_number' },
    { what: 'a cursor that is no number', act: get('before=abc'), status: 400, code: 'bad_message_number' },
    { what: 'a broken number', act: get('around=1.5'), status: 400, code: 'bad_message_number' },
    { what: 'a number beyond all', act: get('after=99999999999999999999'), status: 400, code: 'bad_message_number' },
    { what: 'an empty number', act: get('after='), status: 400, code: 'bad_message_number' },
    { what: 'a limit of 0', act: get('limit=0'), status: 400, code: 'bad_limit' },
    { what: 'a limit of 10,000', act: get('limit=10000'), status: 400, code: 'bad_limit' },
    { what: 'a limit that is no number', act: get('limit=ten'), status: 400, code: 'bad_limit' },
    { what: 'two positions', act: get('after=1&before=5'), status: 400, code: 'two_positions' },
    { what: 'a time that is none', act: get('from_time=yesterday'), status: 400, code: 'bad_time' },
    {
      what: 'a day that is none',
      act: get('until_time=2026-13-41T00:00:00Z'),
      status: 400,
      code: 'bad_time',
    },
    { what: 'an empty search', act: () => ada.get(`${at}/search?q=`), status: 400, code: 'bad_query' },
    { what: 'a search for marks', act: () => ada.get('/v1/search/messages?q=%21%21'), status: 400, code: 'bad_query' },
    { what: 'no search', act: () => ada.get('/v1/search/messages'), status: 400, code: 'bad_query' },
    { what: 'a NUL', act: () => ada.get(`${at}/search?q=a%00`), status: 400, code: 'bad_text' },
    { what: 'a cursor of the list', act: () => ada.get('/v1/chats?cursor=xyz'), status: 400, code: 'bad_cursor' },
    {
      what: 'a cursor of a search',
      act: () => ada.get(`${at}/search?q=x&cursor=xyz`),
      status: 400,
      code: 'bad_cursor',
    },
  ])
})

test('a chat, a message or a person that is not there has a code of its own', async () => {
  const nowhere = '/v1/chats/0198aaaa-0000-7000-8000-000000000000'
  const carol = chat.user('carol')
  await check([
    { what: 'an unknown chat', act: () => ada.get(nowhere), status: 404, code: 'chat_not_found' },
    { what: 'an id that is none', act: () => ada.get('/v1/chats/42/messages'), status: 404, code: 'chat_not_found' },
    {
      what: 'sending into it',
      act: () => ada.post(`${nowhere}/messages`, { text: 'x' }),
      status: 404,
      code: 'chat_not_found',
    },
    { what: 'another’s chat', act: () => carol.get(`${at}/messages`), status: 403, code: 'not_a_member' },
    {
      what: 'sending into another’s chat',
      act: () => carol.post(`${at}/messages`, { text: 'x' }),
      status: 403,
      code: 'not_a_member',
    },
    { what: 'a message to come', act: () => ada.get(`${at}/messages/99`), status: 404, code: 'message_not_found' },
    { what: 'a message that is none', act: () => ada.get(`${at}/messages/x`), status: 400, code: 'bad_message_number' },
    {
      what: 'a mark beyond the end',
      act: () => ada.post(`${at}/read`, { seq: 99 }),
      status: 404,
      code: 'message_not_found',
    },
    {
      what: 'a mark that is none',
      act: () => ada.post(`${at}/read`, { seq: -1 }),
      status: 400,
      code: 'bad_message_number',
    },
    {
      what: 'a chat with nobody',
      act: () => ada.post('/v1/chats', { kind: 'direct', with: 'nobody' }),
      status: 404,
      code: 'user_not_found',
    },
    {
      what: 'a chat with oneself',
      act: () => ada.post('/v1/chats', { kind: 'direct', with: 'ADA' }),
      status: 400,
      code: 'self_chat',
    },
    {
      what: 'a chat with no name',
      act: () => ada.post('/v1/chats', { kind: 'direct' }),
      status: 400,
      code: 'bad_chat_username',
    },
    { what: 'a block of nobody', act: () => ada.put('/v1/blocks/nobody'), status: 404, code: 'user_not_found' },
    { what: 'no token', act: () => chat.send('GET', '/v1/chats'), status: 401, code: 'unauthenticated' },
  ])
})

test('a room that cannot be is refused with a code of its own', async () => {
  const make = (body: unknown) => () => ada.post('/v1/chats', body)
  const room = await chat.room([ada, bob])
  const act = (method: 'post' | 'patch' | 'put', url: string, body: unknown) => () => ada[method](url, body)
  const inside = `/v1/chats/${room}`
  await check([
    { what: 'no kind', act: make({}), status: 400, code: 'bad_kind' },
    { what: 'another kind', act: make({ kind: 'channel' }), status: 400, code: 'bad_kind' },
    { what: 'no name', act: make({ kind: 'room' }), status: 400, code: 'bad_chat_name' },
    { what: 'a blank name', act: make({ kind: 'room', name: ' ' }), status: 400, code: 'bad_chat_name' },
    { what: 'a long name', act: make({ kind: 'room', name: 'x'.repeat(101) }), status: 400, code: 'bad_chat_name' },
    { what: 'a name with NUL', act: make({ kind: 'room', name: 'a\0' }), status: 400, code: 'bad_text' },
    { what: 'half open', act: make({ kind: 'room', name: 'x', open: 'half' }), status: 400, code: 'bad_flag' },
    {
      what: 'unknown members',
      act: make({ kind: 'room', name: 'x', members: ['nobody'] }),
      status: 404,
      code: 'user_not_found',
    },
    {
      what: 'members no list',
      act: make({ kind: 'room', name: 'x', members: 'bob' }),
      status: 400,
      code: 'bad_chat_username',
    },
    {
      what: 'too many at once',
      act: make({ kind: 'room', name: 'x', members: Array(101).fill('bob') }),
      status: 400,
      code: 'too_many_members',
    },
    {
      what: 'a role that is none',
      act: act('patch', `${inside}/members/bob`, { role: 'king' }),
      status: 400,
      code: 'bad_role',
    },
    {
      what: 'a role of nobody',
      act: act('patch', `${inside}/members/nobody`, { role: 'member' }),
      status: 404,
      code: 'member_not_found',
    },
    {
      what: 'an endless invitation',
      act: act('post', `${inside}/invitations`, { uses: 0 }),
      status: 400,
      code: 'bad_invitation',
    },
    { what: 'a mute until nothing', act: act('put', `${inside}/mute`, {}), status: 400, code: 'bad_time' },
    {
      what: 'an emoji with blanks',
      act: act('put', `${inside}/messages/1/reactions/a%20b`, undefined),
      status: 400,
      code: 'bad_emoji',
    },
    {
      what: 'a long emoji',
      act: act('put', `${inside}/messages/1/reactions/${'x'.repeat(33)}`, undefined),
      status: 400,
      code: 'bad_emoji',
    },
    {
      what: 'a message of the system, edited',
      act: act('patch', `${inside}/messages/1`, { text: 'x' }),
      status: 409,
      code: 'message_fixed',
    },
  ])
})
