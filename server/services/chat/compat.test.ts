import assert from 'node:assert/strict'
import http from 'node:http'
import { test } from 'node:test'
import { makeTestChat, type TestProcess } from './test-support.ts'

const chat = await makeTestChat()
const closed = await chat.another({ openRoutes: [] })

function send(body: unknown, options: { token?: string; at?: TestProcess } = {}) {
  return (options.at ?? chat).send('POST', '/api/send', { body, ...(options.token ? { token: options.token } : {}) })
}

/** Over a socket, as the old clients do it: the fields in the body of a GET. */
function pull(
  fields: unknown,
  options: { token?: string; chunked?: boolean } = {},
): Promise<{ status: number; text: string }> {
  const body = JSON.stringify(fields)
  return new Promise((resolve, reject) => {
    const request = http.request(
      `http://${chat.host}/api/pull`,
      {
        method: 'GET',
        headers: {
          'content-type': 'application/json',
          ...(options.chunked ? { 'transfer-encoding': 'chunked' } : { 'content-length': Buffer.byteLength(body) }),
          ...(options.token ? { authorization: `Bearer ${options.token}` } : {}),
        },
      },
      answer => {
        let text = ''
        answer.setEncoding('utf8').on('data', chunk => {
          text += chunk
        })
        answer.on('end', () => resolve({ status: answer.statusCode!, text }))
      },
    )
    request.on('error', reject)
    request.end(body)
  })
}

test('it is there', async () => {
  const answer = await chat.send('GET', '/ping')
  assert.deepEqual([answer.status, answer.text], [200, '{"message":"pong"}'])
})

test('what is sent is answered with 200 and nothing, and pulled as it was', async () => {
  for (const text of ['hello', 'world', '!']) {
    const answer = await send({ chat: 'jack:marcus', text, sender: 'jack' })
    assert.deepEqual([answer.status, answer.text], [200, ''])
  }
  const { status, text } = await pull({ chat: 'jack:marcus', limit: 2 })
  assert.equal(status, 200)
  const time = JSON.parse(text).messages[0].send_time
  assert.ok(Math.abs(time - Date.now() / 1000) < 5)
  const message = (said: string) => `{"chat":"jack:marcus","text":"${said}","sender":"jack","send_time":${time}}`
  assert.equal(
    text.replaceAll(/"send_time":\d+/g, `"send_time":${time}`),
    `{"messages":[${message('hello')},${message('world')}],"has_more":true,"next_cursor":2}`,
  )
})

test('the fields of a pull come in the body of the GET, whole or in chunks, or in the query', async () => {
  const inQuery = await chat.send('GET', '/api/pull?chat=jack:marcus&cursor=1&limit=1&reverse=false')
  for (const answer of [
    inQuery,
    await pull({ chat: 'jack:marcus', cursor: 1, limit: 1, reverse: false }),
    await pull({ chat: 'jack:marcus', cursor: 1, limit: 1 }, { chunked: true }),
  ]) {
    const { messages, has_more, next_cursor } = JSON.parse(answer.text)
    assert.deepEqual([messages.length, messages[0].text, has_more, next_cursor], [1, 'world', true, 2])
  }
})

test('pages go up above a number and down from one', async () => {
  for (let at = 1; at <= 5; at++) await send({ chat: 'up:down', text: String(at), sender: 'up' })
  const cases: [fields: object, texts: string, hasMore: boolean, next: number][] = [
    [{}, '12345', false, 0],
    [{ limit: 5 }, '12345', false, 0],
    [{ limit: 2 }, '12', true, 2],
    [{ limit: 2, cursor: 2 }, '34', true, 4],
    [{ limit: 2, cursor: 4 }, '5', false, 0],
    [{ cursor: 5 }, '', false, 0],
    [{ reverse: true }, '54321', false, 0],
    [{ reverse: true, limit: 2 }, '54', true, 3],
    [{ reverse: true, limit: 2, cursor: 3 }, '32', true, 1],
    [{ reverse: true, limit: 2, cursor: 1 }, '1', false, 0],
    [{ reverse: true, cursor: 99, limit: 1 }, '5', true, 4],
  ]
  for (const [fields, texts, hasMore, next] of cases) {
    const { text } = await pull({ chat: 'up:down', ...fields })
    const answer = JSON.parse(text)
    const said = answer.messages.map((message: { text: string }) => message.text).join('')
    assert.deepEqual([said, answer.has_more, answer.next_cursor], [texts, hasMore, next], JSON.stringify(fields))
  }
})

test('ten messages are a page where nothing is said', async () => {
  for (let at = 1; at <= 11; at++) await send({ chat: 'ten:eleven', text: String(at), sender: 'ten' })
  const { messages, has_more, next_cursor } = JSON.parse((await pull({ chat: 'ten:eleven' })).text)
  assert.deepEqual([messages.length, has_more, next_cursor], [10, true, 10])
})

test('a:b and b:a are one chat, and case makes no difference', async () => {
  await send({ chat: 'Tick:Tock', text: '1', sender: 'Tick' })
  await send({ chat: 'tock:TICK', text: '2', sender: 'TOCK' })
  const { messages } = JSON.parse((await pull({ chat: 'TOCK:tick' })).text)
  assert.deepEqual(
    messages.map(({ chat: name, text, sender }: Record<string, string>) => [name, text, sender]),
    [
      ['TOCK:tick', '1', 'Tick'],
      ['TOCK:tick', '2', 'TOCK'],
    ],
  )
})

test('a chat nobody has written to is empty', async () => {
  assert.equal((await pull({ chat: 'no:body' })).text, '{"messages":[],"has_more":false,"next_cursor":0}')
})

test('two hundred identical messages from twenty senders at once are all kept', async () => {
  await Promise.all(
    Array.from({ length: 20 }, async () => {
      for (let loop = 0; loop < 10; loop++) {
        const answer = await send({ chat: 'john:doe', text: 'hello', sender: 'john' })
        assert.equal(answer.status, 200)
      }
    }),
  )
  const { messages, has_more } = JSON.parse((await pull({ chat: 'john:doe', limit: 500 })).text)
  assert.deepEqual([messages.length, has_more], [200, false])
})

test('what is wrong is 4xx with a text that says so', async () => {
  const ok = { chat: 'jack:marcus', text: 'x', sender: 'jack' }
  const sends: [body: object, status: number, says: RegExp][] = [
    [{ ...ok, chat: 'jack' }, 400, /two different members/],
    [{ ...ok, chat: 'jack:marcus:anne' }, 400, /two different members/],
    [{ ...ok, chat: 'jack:' }, 400, /two different members/],
    [{ ...ok, chat: 'jack:JACK' }, 400, /two different members/],
    [{ ...ok, chat: undefined }, 400, /two different members/],
    [{ ...ok, sender: 'anne' }, 400, /one of the two/],
    [{ ...ok, sender: undefined }, 400, /one of the two/],
    [{ ...ok, text: '' }, 400, /needs a `text`/],
    [{ ...ok, text: 'x'.repeat(8193) }, 400, /longer than 8192/],
  ]
  for (const [body, status, says] of sends) {
    const answer = await send(body)
    assert.equal(answer.status, status, answer.text)
    assert.deepEqual(Object.keys(answer.body), ['error'])
    assert.match(answer.body.error, says)
  }
  const pulls: [fields: unknown, status: number, says: RegExp][] = [
    [{ chat: 'jack' }, 400, /two different members/],
    [{ chat: 'jack:marcus', cursor: -1 }, 400, /`cursor` must be/],
    [{ chat: 'jack:marcus', cursor: 'x' }, 400, /`cursor` must be/],
    [{ chat: 'jack:marcus', limit: 0 }, 400, /`limit` must be/],
    [{ chat: 'jack:marcus', limit: 10_000 }, 400, /`limit` must be/],
    [{ chat: 'jack:marcus', reverse: 'maybe' }, 400, /`reverse` is true or false/],
    [[], 400, /JSON object/],
    [{ chat: 'x'.repeat(5000) }, 413, /larger than 4096 bytes/],
    [{ chat: 'x'.repeat(300_000) }, 413, /larger than 4096 bytes/],
  ]
  for (const [fields, status, says] of pulls) {
    const { status: got, text } = await pull(fields)
    assert.equal(got, status, text)
    assert.match(JSON.parse(text).error, says)
  }
})

test('a GET with a body leaves the connection fit for the next request', async () => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
  const ask = (body: string) =>
    new Promise<number>((resolve, reject) => {
      const headers = { 'content-length': Buffer.byteLength(body) }
      const request = http.request(`http://${chat.host}/api/pull`, { method: 'GET', headers, agent }, answer => {
        answer.resume().on('end', () => resolve(answer.statusCode!))
      })
      request.on('error', reject)
      request.end(body)
    })
  const statuses = []
  for (const body of ['{"chat":"jack:marcus"}', '{"chat":', '{"chat":"jack:marcus"}']) statuses.push(await ask(body))
  agent.destroy()
  assert.deepEqual(statuses, [200, 400, 200])
})

test('with a token the sender is the caller, and only members pull', async () => {
  const [ada, bob] = [chat.user('Ada'), chat.user('bob')]
  assert.ok(ada && bob)
  const body = { chat: 'ada:bob', text: 'hi', sender: 'ada' }
  assert.equal((await send(body, { token: 'ada' })).status, 200)
  const foreign = await send(body, { token: 'bob' })
  assert.deepEqual([foreign.status, Object.keys(foreign.body)], [403, ['error']])
  chat.user('eve')
  assert.equal((await pull({ chat: 'ada:bob' }, { token: 'eve' })).status, 403)
  assert.equal((await pull({ chat: 'ada:bob' }, { token: 'bob' })).status, 200)
})

test('where the routes are not open a token is needed, and both must be users', async () => {
  const body = { chat: 'ada:bob', text: 'hi', sender: 'Ada' }
  assert.equal((await send(body, { at: closed })).status, 401)
  assert.equal((await closed.send('GET', '/api/pull?chat=ada:bob')).status, 401)
  assert.equal((await send(body, { at: closed, token: 'ada' })).status, 200)
  const unknown = await send({ ...body, chat: 'ada:nobody' }, { at: closed, token: 'ada' })
  assert.deepEqual([unknown.status, unknown.body.error], [404, 'There is no user called nobody.'])
})

test('who registers a name gets what was sent under it before', async () => {
  await send({ chat: 'early:bird', text: 'before', sender: 'early' })
  const early = chat.user('Early')
  const { body } = await early.get('/v1/chats')
  assert.deepEqual(
    body.chats.map((each: { with: string; last_message: { text: string } }) => [each.with, each.last_message.text]),
    [['bird', 'before']],
  )
  assert.equal(
    (await chat.user('latebird').post('/v1/chats', { kind: 'direct', with: 'bird' })).body.code,
    'user_not_found',
  )
})

test('the chats of the old contract are the direct chats', async () => {
  const [ada, bob] = [chat.user('Ada'), chat.user('bob')]
  const id = await chat.direct(ada, bob)
  const before = (await ada.texts(id)).length
  await bob.say(id, 'from the new')
  await send({ chat: 'bob:ada', text: 'from the old', sender: 'Ada' })
  assert.deepEqual((await ada.texts(id)).slice(before), ['from the new', 'from the old'])
})
