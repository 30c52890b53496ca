import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestChat, type TestUser } from './test-support.ts'

const chat = await makeTestChat()
const ada = chat.user('Ada')

interface Page {
  messages: { seq: number; text: string }[]
  before: number | null
  after: number | null
  last_seq: number
}

async function page(id: string, query: string): Promise<Page> {
  const { status, body, text } = await ada.get(`/v1/chats/${id}/messages?${query}`)
  assert.equal(status, 200, text)
  return body
}

const seqs = ({ messages }: Page) => messages.map(message => message.seq)
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, at) => from + at)

/** A room whose messages 2 to `count` say their own numbers; the first is the system's. */
async function filled(count: number, members: TestUser[] = []): Promise<string> {
  const id = await chat.room([ada, ...members])
  const begun = members.length + 2
  await Promise.all(range(begun, count).map(at => ada.say(id, `m${at}`)))
  return id
}

test('pages go both ways by number, and each says where the next one begins', async () => {
  const id = await filled(20)
  const cases: [query: string, seqs: number[], before: number | null, after: number | null][] = [
    ['', range(1, 20), null, null],
    ['limit=5', range(16, 20), 16, null],
    ['limit=5&before=16', range(11, 15), 11, 15],
    ['limit=5&before=4', range(1, 3), null, 3],
    ['limit=5&after=0', range(1, 5), null, 5],
    ['limit=5&after=5', range(6, 10), 6, 10],
    ['limit=5&after=17', range(18, 20), 18, null],
    ['limit=5&after=20', [], 21, null],
    ['limit=5&after=90', [], 21, null],
    ['limit=5&before=1', [], null, null],
    ['limit=5&before=0', [], null, null],
    ['limit=5&around=10', range(8, 12), 8, 12],
    ['limit=5&around=1', range(1, 5), null, 5],
    ['limit=5&around=20', range(18, 20), 18, null],
  ]
  for (const [query, wanted, before, after] of cases) {
    const got = await page(id, query)
    assert.deepEqual([seqs(got), got.before, got.after, got.last_seq], [wanted, before, after, 20], query)
  }
})

test('pages go both ways by time', async () => {
  const id = await chat.room([ada])
  const times: string[] = []
  for (let at = 2; at <= 10; at++) {
    chat.time.offsetMs += 1000
    const { body } = await ada.post(`/v1/chats/${id}/messages`, { text: `m${at}` })
    times[at] = body.created_at
  }
  const justAfter = new Date(Date.parse(times[5]!) + 1).toISOString()
  const cases: [query: string, seqs: number[]][] = [
    [`from_time=${times[5]}`, range(5, 10)],
    [`from_time=${justAfter}`, range(6, 10)],
    [`until_time=${times[5]}`, range(1, 4)],
    [`until_time=${justAfter}`, range(1, 5)],
    [`until_time=${justAfter}&limit=2`, range(4, 5)],
    [`from_time=${times[5]}&limit=2`, range(5, 6)],
    ['from_time=2000-01-01T00:00:00Z', range(1, 10)],
    ['until_time=2000-01-01T00:00:00Z', []],
    ['from_time=2999-01-01T00:00:00%2B02:00', []],
  ]
  for (const [query, wanted] of cases) assert.deepEqual(seqs(await page(id, query)), wanted, query)
})

test('pages taken in both directions while others append never skip or repeat', async () => {
  const writers = Array.from({ length: 4 }, (_, at) => chat.user(`writer${at}`))
  const id = await filled(60, writers)
  let writing = true
  const written = writers.map(async writer => {
    while (writing) await writer.say(id, 'more')
  })
  const down: number[] = []
  const up: number[] = []
  const goDown = async () => {
    for (let before: number | null | undefined; before !== null; ) {
      const got: Page = await page(id, `limit=7${before === undefined ? '' : `&before=${before}`}`)
      down.unshift(...seqs(got))
      before = got.before
    }
  }
  const goUp = async () => {
    while (up.length < 100) up.push(...seqs(await page(id, `limit=7&after=${up.at(-1) ?? 0}`)))
  }
  await Promise.all([goDown(), goUp()])
  writing = false
  await Promise.all(written)
  assert.deepEqual(down, range(1, down.length))
  assert.deepEqual(up, range(1, up.length))
})

async function indexAll() {
  while ((await chat.service.indexMessages()) > 0);
}

async function find(user: TestUser, url: string, query: string, limit = 50): Promise<string[]> {
  const found: string[] = []
  for (let cursor: string | null = ''; cursor !== null; ) {
    const more: string = cursor ? `&cursor=${cursor}` : ''
    const { status, body, text } = await user.get(`${url}?q=${encodeURIComponent(query)}&limit=${limit}${more}`)
    assert.equal(status, 200, text)
    found.push(...body.messages.map((message: { text: string }) => message.text))
    cursor = body.next_cursor
  }
  return found
}

test('a search finds words in a chat, the newest first, in pages', async () => {
  const id = await chat.room([ada])
  const other = await chat.room([ada])
  for (const text of ['the red harbour', 'a blue Harbour', 'harbours', 'red and blue', 'blue red harbour'])
    await ada.say(id, text)
  await ada.say(other, 'another red harbour')
  await indexAll()
  const cases: [query: string, texts: string[]][] = [
    ['harbour', ['blue red harbour', 'a blue Harbour', 'the red harbour']],
    ['red harbour', ['blue red harbour', 'the red harbour']],
    ['"red harbour"', ['blue red harbour', 'the red harbour']],
    ['red or blue -harbour', ['blue red harbour', 'red and blue', 'the red harbour']],
    ['harbour -red', ['a blue Harbour']],
    ['green', []],
    [`' & | ! :* ) x`, []],
  ]
  for (const [query, texts] of cases) {
    assert.deepEqual(await find(ada, `/v1/chats/${id}/search`, query), texts, query)
    assert.deepEqual(await find(ada, `/v1/chats/${id}/search`, query, 1), texts, `${query}, one a page`)
  }
})

test('a search across finds what is in one’s own chats only, and no longer in those one has left', async () => {
  const [finder, friend] = [chat.user('finder'), chat.user('friend')]
  const rooms = [await chat.room([finder, friend]), await chat.room([friend, finder]), await chat.room([friend])]
  for (const [at, id] of rooms.entries()) {
    chat.time.offsetMs += 10
    await friend.say(id, `treasure ${at}`)
  }
  await indexAll()
  for (const limit of [1, 50]) {
    assert.deepEqual(await find(finder, '/v1/search/messages', 'treasure', limit), ['treasure 1', 'treasure 0'])
  }
  await finder.post(`/v1/chats/${rooms[1]}/leave`)
  assert.deepEqual(await find(finder, '/v1/search/messages', 'treasure'), ['treasure 0'])
  assert.deepEqual(await find(chat.user('lonely'), '/v1/search/messages', 'treasure'), [])
})

test('a search finds an edited message by its new words, and a deleted one by none', async () => {
  const id = await chat.room([ada])
  await ada.say(id, 'old words')
  await ada.say(id, 'secret words')
  await indexAll()
  await ada.patch(`/v1/chats/${id}/messages/2`, { text: 'new words' })
  await ada.delete(`/v1/chats/${id}/messages/3`)
  assert.deepEqual(await find(ada, `/v1/chats/${id}/search`, 'secret'), [], 'at once')
  await indexAll()
  assert.deepEqual(await find(ada, `/v1/chats/${id}/search`, 'old'), [])
  assert.deepEqual(await find(ada, `/v1/chats/${id}/search`, 'words'), ['new words'])
  const { rows } = await chat.db.query(`select seq from chat.search where chat_id = $1`, [id])
  assert.deepEqual(rows, [{ seq: 2 }])
})

test('a chat of many stretches is searched from end to end', async () => {
  const id = await chat.room([ada])
  // As if a million messages had been sent, of which a few are looked for.
  const last = 20 * 65_536
  const seqsKept = [65_535, 65_536, 9 * 65_536 + 5, last]
  await chat.db.query(
    `insert into chat.messages (chat_id, seq, sender_id, created_at, kind, text)
     select $1, seq, (select id from chat.people where name = 'ada'), now(), 'text', 'needle ' || seq
     from unnest($2::bigint[]) seq`,
    [id, seqsKept],
  )
  await chat.db.query(`update chat.chats set last_seq = $2 where id = $1`, [id, last])
  await chat.db.query(
    `insert into chat.unindexed (messages, chat_ids, first_seqs, last_seqs)
     select 1, array[$1::uuid], array[seq], array[seq] from unnest($2::bigint[]) seq`,
    [id, seqsKept],
  )
  await indexAll()
  const texts = seqsKept.toReversed().map(seq => `needle ${seq}`)
  assert.deepEqual(await find(ada, `/v1/chats/${id}/search`, 'needle'), texts)
  assert.deepEqual(await find(ada, `/v1/chats/${id}/search`, 'needle', 1), texts)
  const first = await ada.get(`/v1/chats/${id}/search?q=nothing`)
  assert.deepEqual(first.body.messages, [])
  assert.ok(first.body.next_cursor, 'a look goes so far and no further')
})

test('messages become searchable by themselves soon after they were sent', async () => {
  const working = await chat.another({ work: true })
  const me = working.user('soon')
  const id = await working.room([me])
  await me.say(id, 'eventually')
  const deadline = Date.now() + 10_000
  while ((await find(me, '/v1/search/messages', 'eventually')).length === 0) {
    assert.ok(Date.now() < deadline, 'not within ten seconds')
  }
})
