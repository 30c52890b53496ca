/** Chats with all of Capstan around them: real users, the old contract's open routes, an API key's scopes. */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { makeTestApp } from './support/app.ts'
import { makeUser, send } from './support/http.ts'

const capstan = await makeTestApp()
const closed = await makeTestApp({ env: { OPEN_ROUTES: 'none' } })
const ada = await makeUser(capstan, 'Ada')
const bob = await makeUser(capstan, 'bob')

test('a user is found by its name, though it was never in a chat, and by nothing else', async () => {
  const made = await ada.post(capstan, '/v1/chats', { kind: 'direct', with: 'BOB' })
  assert.equal(made.status, 201, JSON.stringify(made.body))
  assert.equal(made.body.with, 'bob')
  const { email } = (await bob.get(capstan, '/v1/auth/me')).body
  for (const name of ['nobody', email ?? 'bob@users.invalid', 'bob@users.invalid']) {
    const refused = await ada.post(capstan, '/v1/chats', { kind: 'direct', with: name })
    assert.deepEqual([refused.status, refused.body.code], [404, 'user_not_found'], name)
  }
})

test('a message reaches who follows the chat as an event stream', async () => {
  const { id } = (await ada.post(capstan, '/v1/chats', { kind: 'direct', with: 'bob' })).body
  const stream = await fetch(`${capstan.url}/v1/live/events?topic=chats/${id}`, {
    headers: { authorization: `Bearer ${bob.token}` },
  })
  await ada.post(capstan, `/v1/chats/${id}/messages`, { text: 'over the stream' })
  let text = ''
  for await (const chunk of stream.body!.pipeThrough(new TextDecoderStream())) {
    text += chunk
    if (text.includes('over the stream')) break
  }
  assert.match(text, /^id: 1\nevent: message$/m)
})

test('the old contract’s routes are open in development, and closed where OPEN_ROUTES says so', async () => {
  const body = { chat: 'jack:marcus', text: 'hello', sender: 'jack' }
  assert.equal((await send(capstan, 'POST', '/api/send', {}, body)).status, 200)
  const pulled = await send(capstan, 'GET', '/api/pull?chat=jack:marcus')
  assert.deepEqual([pulled.body.messages[0].text, pulled.body.next_cursor], ['hello', 0])
  const refused = await send(closed, 'POST', '/api/send', {}, body)
  assert.deepEqual([refused.status, Object.keys(refused.body)], [401, ['error']])
  assert.equal((await send(closed, 'GET', '/api/pull?chat=jack:marcus')).status, 401)
  assert.equal((await send(closed, 'GET', '/ping')).status, 200)
})

/** What the plan of the load tool does, done here, so that the plan stays right. */
test('the JMeter plan’s threads keep all of their identical messages', async () => {
  const plan = await readFile(path.join(import.meta.dirname, '../load/chat.jmx'), 'utf8')
  const values = (name: string) =>
    [...plan.matchAll(new RegExp(`<stringProp name="${name}">([^<]*)<`, 'g'))].map(found => found[1]!)
  const [threads] = values('ThreadGroup.num_threads').map(Number)
  const [loops] = values('LoopController.loops').map(Number)
  const [sendPath, pullPath] = values('HTTPSampler.path')
  const [chat, body, , limit] = values('Argument.value').map(value =>
    value.replace(/\$\{CHAT\}/, 'jack:marcus1').replace(/\$\{__time\(\)\}/, '1'),
  )
  assert.deepEqual([threads, loops, chat], [20, 10, 'jack:marcus1'])
  const statuses = await Promise.all(
    Array.from({ length: threads! }, async () => {
      const answers = []
      for (let loop = 0; loop < loops!; loop++)
        answers.push(await send(capstan, 'POST', sendPath!, {}, JSON.parse(body!)))
      return answers.map(answer => answer.status)
    }),
  )
  assert.deepEqual([...new Set(statuses.flat())], [200])
  const pulled = await send(capstan, 'GET', `${pullPath}?chat=${chat}&limit=${limit}`)
  assert.equal(String(pulled.body.messages.length), values('EXPECTED_VALUE')[0])
})

test('nothing unforeseen happened', () => {
  assert.deepEqual([...capstan.complaints, ...closed.complaints], [])
})
