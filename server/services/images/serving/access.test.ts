/** Who may see what of an image. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeLinks } from './links.ts'
import { makeImageServer, type Who } from './test-support.ts'

const server = await makeImageServer({ IMAGE_PRESETS: 'small:width=64,format=webp' })
const variants = [
  { name: 'small', width: 64 },
  { name: 'past', width: 32 },
]
const images = {
  private: await server.add({ variants }),
  public: await server.add({ variants, visibility: 'public' }),
  nobodys: await server.add({ variants, owner: null }),
  none: { id: '01890000-0000-7000-8000-000000000000' },
}
type Which = keyof typeof images
const everyone: Who[] = ['ann', 'bob', 'root', 'annsKey', 'annsWriteKey', 'annsOtherKey', undefined]

async function codeOf(who: Who, path: string): Promise<string> {
  const { statusCode, headers, body } = await server.get(who, path)
  assert.equal((await server.head(who, path)).statusCode, statusCode, `HEAD ${path}`)
  if (statusCode === 200) return '200'
  assert.equal(headers['cache-control'], 'no-store')
  assert.equal(headers.etag, undefined)
  return `${statusCode} ${JSON.parse(body).code}`
}

test('the owner and admins see everything, everybody the presets of public images, and nobody else anything', async () => {
  const no = '404 image_not_found'
  const lacks = '403 missing_scope'
  const closed = {
    ann: '200',
    root: '200',
    annsKey: '200',
    bob: no,
    annsWriteKey: lacks,
    annsOtherKey: lacks,
    nobody: no,
  }
  const open = Object.fromEntries([...everyone, 'nobody'].map(who => [who, '200']))
  const absent = { ...closed, ann: no, root: no, annsKey: no }
  const ofAdmins = { ...absent, root: '200' }
  const cases: [which: Which, words: string[], wanted: Record<string, string>][] = [
    ['private', ['small', 'past', 'original', 'width=20'], closed],
    ['public', ['small'], open],
    // No preset any more: what nobody may ask for is closed.
    ['public', ['past', 'original', 'width=20', 'width=64,format=webp'], closed],
    ['nobodys', ['small', 'original', 'width=20'], ofAdmins],
    ['none', ['small', 'original', 'width=20', 'past'], absent],
  ]
  for (const [which, words, wanted] of cases) {
    for (const word of words) {
      for (const who of everyone) {
        const title = `${who ?? 'nobody'}: ${which}/${word}`
        assert.equal(await codeOf(who, `/v1/images/${images[which].id}/${word}`), wanted[who ?? 'nobody'], title)
      }
    }
  }
})

test('a bad token is refused even for what everybody may see', async () => {
  assert.equal(await codeOf('nobody' as Who, `/v1/images/${images.public.id}/small`), '401 unauthenticated')
})

async function linkBy(who: Who, which: Which, word: string, more: object) {
  const answer = await server.post(who, `/v1/images/${images[which].id}/links`, { transform: word, ...more })
  return { status: answer.statusCode, body: answer.json() }
}

const link = (which: Which, word: string, more = {}) => linkBy('ann', which, word, more)

test('a link shows one transform of one image to whoever has it', async () => {
  for (const word of ['original', 'small', 'past', 'width=30,format=png', 'width=30,format=auto']) {
    const { status, body } = await link('private', word)
    assert.equal(status, 201, JSON.stringify(body))
    assert.match(body.url, new RegExp(`^/v1/images/${images.private.id}/${word}\\?expires=\\d+&signature=[\\w-]{43}$`))
    for (const who of everyone) assert.equal(await codeOf(who, body.url), '200', `${who ?? 'nobody'}: ${word}`)
  }
})

test('a link says when it ends, and ends then', async () => {
  const { body } = await link('private', 'small', { expires_in: 60 })
  const inMs = Date.parse(body.expires_at) - Date.now()
  assert.ok(inMs > 55_000 && inMs <= 60_000, body.expires_at)
  const { headers } = await server.get(undefined, body.url)
  const [, seconds] = /^private, max-age=(\d+)$/.exec(String(headers['cache-control'])) ?? []
  assert.ok(Number(seconds) > 50 && Number(seconds) <= 60, headers['cache-control'])
  server.clock.aheadMs = 61_000
  try {
    assert.equal(await codeOf(undefined, body.url), '403 link_expired')
    assert.equal(await codeOf('ann', body.url), '403 link_expired')
  } finally {
    server.clock.aheadMs = 0
  }
})

test('a link that was changed in any part is refused, for the owner too', async () => {
  const { url } = (await link('private', 'width=30')).body as { url: string }
  const other = (await link('private', 'width=31')).body.url as string
  const signature = /signature=(.*)$/.exec(url)![1]!
  const expires = /expires=(\d+)/.exec(url)![1]!
  const last = signature.at(-1) === 'A' ? 'B' : 'A'
  const forged = [
    url.replace('width=30', 'width=31'),
    url.replace('width=30', 'original'),
    url.replace('width=30', 'small'),
    // It means the same and was not signed.
    url.replace('width=30', 'width=30,fit=inside'),
    url.replace(images.private.id, images.public.id),
    url.replace(images.private.id, images.none.id),
    url.replace(images.private.id, images.private.id.toUpperCase()),
    url.replace(`expires=${expires}`, `expires=${Number(expires) + 1}`),
    url.replace(`expires=${expires}`, 'expires='),
    url.replace(`expires=${expires}`, 'expires=1e12'),
    url.replace(`expires=${expires}`, 'expires=-1'),
    url.replace(`expires=${expires}&`, ''),
    url.replace(signature, ''),
    url.replace(`&signature=${signature}`, ''),
    url.replace(signature, signature.slice(0, -1)),
    `${url}A`,
    url.replace(signature, signature.slice(0, -1) + last),
    url.replace(signature, /signature=(.*)$/.exec(other)![1]!),
    url.replace(signature, '%C3%A9'.repeat(43)),
  ]
  for (const each of forged) {
    for (const who of [undefined, 'ann', 'bob'] as const)
      assert.equal(await codeOf(who, each), '403 link_invalid', each)
  }
  const twice = `${url}&expires=${expires}`
  assert.equal((await server.get(undefined, twice)).statusCode, 400)
  assert.equal(await codeOf(undefined, url), '200')
})

test('links are given to owners and admins who may write, for what can be made', async () => {
  const cases: [which: Which, word: string, who: Who, more: object, wanted: string][] = [
    ['private', 'small', 'root', {}, '201'],
    ['private', 'small', 'annsSharingKey', {}, '201'],
    // Or it could read by way of a link.
    ['private', 'small', 'annsWriteKey', {}, '403 missing_scope'],
    ['private', 'small', 'annsKey', {}, '403 missing_scope'],
    ['private', 'small', undefined, {}, '401 unauthenticated'],
    ['private', 'small', 'bob', {}, '404 image_not_found'],
    ['public', 'small', 'bob', {}, '404 image_not_found'],
    ['nobodys', 'small', 'ann', {}, '404 image_not_found'],
    ['none', 'small', 'ann', {}, '404 image_not_found'],
    ['private', 'width=0', 'ann', {}, '400 bad_transform'],
    ['private', 'never', 'ann', {}, '400 bad_transform'],
    ['private', '../small', 'ann', {}, '400 bad_transform'],
    ['private', 'small', 'ann', { expires_in: 604_800 }, '201'],
    ['private', 'small', 'ann', { expires_in: 604_801 }, '400 validation_failed'],
    ['private', 'small', 'ann', { expires_in: 0 }, '400 validation_failed'],
    ['private', 'small', 'ann', { expires_in: '60' }, '400 validation_failed'],
    ['private', 'small', 'ann', { for_ever: true }, '400 validation_failed'],
  ]
  for (const [which, word, who, more, wanted] of cases) {
    const { status, body } = await linkBy(who, which, word, more)
    assert.equal(status === 201 ? '201' : `${status} ${body.code}`, wanted, JSON.stringify([which, word, who, more]))
  }
})

test('all processes of a database sign with one key', async () => {
  const [one, other] = [0, 1].map(() => makeLinks({ db: server.db, clock: Date.now }))
  const expires = Math.floor(Date.now() / 1000) + 60
  const path = await one!.pathTo({ id: images.private.id, word: 'small', expires })
  const signature = /signature=(.*)$/.exec(path)![1]!
  const seconds = await other!.check({ id: images.private.id, word: 'small', expires: String(expires), signature })
  assert.ok(seconds > 50 && seconds <= 60, String(seconds))
})

test('with a public address links are whole, and another database signs with another key', async () => {
  const other = await makeImageServer({ PUBLIC_URL: 'https://images.example/base/' })
  const { id } = await other.add()
  const theirs = await other.post('ann', `/v1/images/${id}/links`, { transform: 'original' })
  assert.match(theirs.json().url, new RegExp(`^https://images\\.example/base/v1/images/${id}/original\\?expires=`))
  const ours = (await link('private', 'original')).body.url as string
  assert.equal((await other.get(undefined, ours)).json().code, 'link_invalid')
})
