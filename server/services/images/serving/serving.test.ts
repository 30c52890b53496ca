/** What an answer with an image says, and which bytes it has. */
import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import type { LightMyRequestResponse } from 'fastify'
import sharp from 'sharp'
import { originalKey } from '../keys.ts'
import { makeImageServer, type Who } from './test-support.ts'

const presets = 'small:width=64,format=webp;best:width=48,format=auto;late:width=40,format=png'
const server = await makeImageServer({ IMAGE_PRESETS: presets })
const variants = [
  { name: 'small', width: 64 },
  { name: 'past', width: 32 },
]
const image = await server.add({ variants, name: 'a hill.JPEG' })
const shown = await server.add({ variants: [...variants, { name: 'best', width: 48 }], visibility: 'public' })
const at = (word: string, id = image.id) => `/v1/images/${id}/${word}`

async function looksLike(answer: LightMyRequestResponse, wanted: { format: string; width: number }) {
  const { format, width } = await sharp(answer.rawPayload).metadata()
  assert.deepEqual({ format, width }, wanted)
}

test('the original comes byte for byte, to be saved and not shown', async () => {
  const answer = await server.get('ann', at('original'))
  assert.deepEqual(answer.rawPayload, image.original)
  assert.equal(answer.headers['content-type'], 'image/jpeg')
  assert.equal(answer.headers['content-disposition'], 'attachment; filename="a hill.jpg"')
})

test('a preset is the variant a worker made, or else is made now', async () => {
  const before = server.works.length
  const variant = await server.get('ann', at('small'))
  await looksLike(variant, { format: 'webp', width: 64 })
  assert.equal(variant.headers['content-disposition'], 'inline; filename="a hill.webp"')
  await looksLike(await server.get('ann', at('past')), { format: 'webp', width: 32 })
  assert.equal(server.works.length, before, 'nothing was made')
  await looksLike(await server.get('ann', at('late')), { format: 'png', width: 40 })
  assert.equal(server.works.length, before + 1)
})

test('every answer says what it is, how to keep it, and that it is nothing else', async () => {
  const cases: [who: Who, path: string, type: string, cache: string, policy: string][] = [
    ['ann', at('small'), 'image/webp', 'private, no-cache', 'same-site'],
    ['ann', at('width=33,format=png'), 'image/png', 'private, no-cache', 'same-site'],
    ['ann', at('original'), 'image/jpeg', 'private, no-cache', 'same-site'],
    [undefined, at('small', shown.id), 'image/webp', 'public, max-age=86400', 'cross-origin'],
    // Whoever asks, it is the same.
    ['ann', at('small', shown.id), 'image/webp', 'public, max-age=86400', 'cross-origin'],
    ['ann', at('original', shown.id), 'image/jpeg', 'private, no-cache', 'same-site'],
  ]
  for (const [who, path, type, cache, policy] of cases) {
    const { headers, rawPayload } = await server.get(who, path)
    const { etag, 'content-disposition': disposition, date, 'x-request-id': id, connection, ...rest } = headers
    assert.deepEqual(rest, {
      'content-type': type,
      'content-length': String(rawPayload.length),
      'cache-control': cache,
      'accept-ranges': 'bytes',
      'content-security-policy': `default-src 'none'; sandbox`,
      'cross-origin-resource-policy': policy,
      'x-content-type-options': 'nosniff',
    })
    assert.match(String(etag), /^"[\w-]{27}"$/)
    assert.match(String(disposition), /^(inline|attachment); filename="/)
  }
})

test('HEAD answers what GET would, without the bytes', async () => {
  for (const word of ['original', 'small', 'late', 'width=35,format=webp', 'width=35,format=auto']) {
    const head = await server.head('ann', at(word))
    const get = await server.get('ann', at(word))
    assert.equal(head.statusCode, 200)
    assert.equal(head.rawPayload.length, 0)
    const strip = ({ 'x-request-id': _, date, ...headers }: LightMyRequestResponse['headers']) => headers
    assert.deepEqual(strip(head.headers), strip(get.headers), word)
    assert.equal(Number(head.headers['content-length']), get.rawPayload.length)
    // A Range means nothing with it.
    assert.equal((await server.head('ann', at(word), { range: 'bytes=0-1' })).statusCode, 200)
  }
})

test('what the client has is not read, not made, and not sent', async () => {
  const untouched = async () => assert.fail('the store was asked')
  for (const word of ['original', 'small', 'late', 'width=36,format=webp', 'width=36,format=auto']) {
    const { headers } = await server.get('ann', at(word))
    const etag = String(headers.etag)
    const before = server.works.length
    Object.assign(server.faults, { get: untouched, find: untouched, withFile: untouched })
    try {
      for (const known of [etag, `W/${etag}`, '*', `"a", ${etag}, "b"`]) {
        for (const ask of [server.get, server.head]) {
          const answer = await ask('ann', at(word), { 'if-none-match': known, range: 'bytes=0-1' })
          assert.equal(answer.statusCode, 304, known)
          assert.equal(answer.rawPayload.length, 0)
          assert.equal(answer.headers.etag, etag)
          assert.equal(answer.headers['cache-control'], 'private, no-cache')
          assert.equal(answer.headers.vary, word.endsWith('auto') ? 'Accept' : undefined)
          assert.equal(answer.headers['content-type'], undefined)
        }
      }
      // Nor is it told to whoever may not know.
      assert.equal((await server.get('bob', at(word), { 'if-none-match': '*' })).statusCode, 404)
    } finally {
      server.faults.get = server.faults.find = server.faults.withFile = undefined
    }
    assert.equal(server.works.length, before)
    assert.equal((await server.get('ann', at(word), { 'if-none-match': '"other"' })).statusCode, 200)
  }
})

test('an ETag belongs to the bytes: the same for what was made and for what is kept, another for all else', async () => {
  const words = ['original', 'small', 'late', 'width=37,format=webp', 'width=37,format=png', 'width=38,format=png']
  const etags = new Set<unknown>()
  for (const word of words) {
    const answers = [await server.get('ann', at(word)), await server.get('ann', at(word))]
    const [made, again] = answers.map(answer => answer.headers.etag)
    assert.equal(made, again)
    assert.deepEqual(answers[0]!.rawPayload, answers[1]!.rawPayload)
    etags.add(made)
    etags.add((await server.get('ann', at(word, shown.id))).headers.etag)
  }
  assert.equal(etags.size, 2 * words.length)
  const reordered = await server.get('ann', at('format=webp,width=37'))
  assert.ok(etags.has(reordered.headers.etag), 'the same transform in other words')
})

test('a part that is asked for comes alone', async () => {
  // From the store and, the first time, from what was just made.
  for (const word of ['original', 'small', 'width=39,format=png', 'width=39,format=png']) {
    const whole = (await server.get('ann', at(word.replace('39', '139')))).rawPayload
    const now = word.replace('39', '139')
    const n = whole.length
    const cases: [range: string, from: number, to: number][] = [
      ['bytes=0-9', 0, 9],
      ['bytes=10-', 10, n - 1],
      ['bytes=-7', n - 7, n - 1],
      [`bytes=${n - 1}-${n + 5}`, n - 1, n - 1],
    ]
    for (const [range, from, to] of cases) {
      const answer = await server.get('ann', at(now), { range })
      assert.equal(answer.statusCode, 206, range)
      assert.deepEqual(answer.rawPayload, whole.subarray(from, to + 1))
      assert.equal(answer.headers['content-range'], `bytes ${from}-${to}/${n}`)
      assert.equal(answer.headers['content-length'], String(to - from + 1))
    }
    for (const range of ['bytes=0-1,4-5', 'bytes=5-1', 'lines=1-2']) {
      const answer = await server.get('ann', at(now), { range })
      assert.equal(answer.statusCode, 200, range)
      assert.deepEqual(answer.rawPayload, whole)
      assert.equal(answer.headers['content-range'], undefined)
    }
    const late = await server.get('ann', at(now), { range: `bytes=${n}-` })
    assert.equal(late.statusCode, 416)
    assert.equal(late.headers['content-range'], `bytes */${n}`)
    assert.equal(late.json().code, 'range_not_satisfiable')
    assert.equal(late.headers['cache-control'], 'no-store')
    assert.equal(late.headers.etag, undefined)
  }
})

test('a part of what is made for it at once, however large', async () => {
  // Noise does not compress: more than is read into memory at once.
  const large = await server.add({ width: 900, height: 700 })
  const [part, whole] = [at('format=png,width=900', large.id), at('width=900,format=png', large.id)]
  const [range, full] = await Promise.all([
    server.get('ann', part, { range: 'bytes=1000-1099' }),
    server.get('ann', whole),
  ])
  assert.equal(range.statusCode, 206)
  assert.ok(full.rawPayload.length > 1024 * 1024, String(full.rawPayload.length))
  assert.equal(full.headers['content-length'], String(full.rawPayload.length))
  assert.deepEqual(range.rawPayload, full.rawPayload.subarray(1000, 1100))
  await looksLike(full, { format: 'png', width: 900 })
})

test('If-Range gives the part of the same bytes, and else the whole', async () => {
  const { headers } = await server.get('ann', at('small'))
  const ask = async (tag: unknown) =>
    (await server.get('ann', at('small'), { range: 'bytes=0-0', 'if-range': String(tag) })).statusCode
  assert.equal(await ask(headers.etag), 206)
  assert.equal(await ask('"other"'), 200)
  assert.equal(await ask(`W/${headers.etag}`), 200)
})

test('the best format is chosen by what the client names, and caches are told', async () => {
  const accepts: [accept: string | undefined, format: string][] = [
    [undefined, 'jpeg'],
    ['*/*', 'jpeg'],
    ['image/webp,*/*', 'webp'],
    ['image/webp;q=0,image/*', 'jpeg'],
  ]
  for (const [accept, format] of accepts) {
    for (const [who, path, width] of [
      ['ann', at('width=45,format=auto'), 45],
      ['ann', at('width=46'), 46],
      // A preset too. A worker made it as WebP.
      [undefined, at('best', shown.id), 48],
    ] as const) {
      const answer = await server.get(who, path, accept ? { accept } : {})
      await looksLike(answer, { format, width })
      assert.equal(answer.headers['content-type'], `image/${format}`)
      assert.equal(answer.headers.vary, 'Accept')
    }
  }
  assert.equal((await server.get('ann', at('small'))).headers.vary, undefined)
})

test('an image that is not ready is not shown, and only its owner hears why', async () => {
  const error = 'It has a secret defect.'
  const variants = [{ name: 'small', width: 64 }]
  for (const [status, wanted] of [
    ['waiting', '409 image_not_ready'],
    ['failed', '409 image_unusable'],
    ['refused', '409 image_unusable'],
  ] as const) {
    const { id } = await server.add({ status, error, visibility: 'public', variants })
    for (const who of ['ann', undefined] as const) {
      const answer = await server.get(who, at('small', id))
      assert.equal(`${answer.statusCode} ${answer.json().code}`, wanted)
      assert.equal(answer.body.includes(error), who === 'ann' && status !== 'waiting')
      assert.equal(answer.headers['cache-control'], 'no-store')
    }
    assert.equal((await server.get('ann', at('original', id))).statusCode, 409)
  }
})

test('words that mean nothing are refused, whatever they try', async () => {
  const words = [
    '..%2foriginal',
    '..%2f..%2f..%2fetc%2fpasswd',
    '%2e%2e%2f%2e%2e',
    '%00',
    'original%00',
    'small%00.webp',
    'small.webp',
    'Original',
    'variant-small.webp',
    'original%2f',
    'width=10%2f..%2foriginal',
    'width=64;format=webp',
    '%E2%80%AEsmall',
    'ｓｍａｌｌ'.split('').map(encodeURIComponent).join(''),
    '__proto__',
    'constructor',
    'toString',
    'a'.repeat(64),
    'width='.repeat(20),
    `width=${'9'.repeat(150)}`,
  ]
  for (const word of words) {
    const { statusCode, body } = await server.get('ann', at(word))
    assert.equal(`${statusCode} ${JSON.parse(body).code}`, '400 bad_transform', word)
  }
  for (const [word, status] of [
    ['a'.repeat(201), 414],
    ['a'.repeat(5000), 414],
    ['%zz', 400],
    ['%2e%2e', 404],
    ['small/original', 404],
    ['../../../etc/passwd', 404],
  ] as const) {
    assert.equal((await server.get('ann', at(word))).statusCode, status, word.slice(0, 50))
  }
  for (const id of ['1', '..%2f', 'formats'])
    assert.equal((await server.get('ann', at('small', id))).statusCode, 400, id)
})

test('bytes that are gone from the store are said to be gone, and a deleted image is not there', async () => {
  const lost = await server.add()
  await server.blobs.delete([originalKey(lost.fileId)])
  for (const word of ['original', 'width=20']) {
    const answer = await server.get('ann', at(word, lost.id))
    assert.equal(`${answer.statusCode} ${answer.json().code}`, '500 image_bytes_missing')
  }
  assert.ok(server.complaints.some(line => line.includes(lost.fileId)))
})

test('a store that fails while it is read is no image: no cache keeps the error', async () => {
  server.faults.get = async () => ({
    bytes: image.original.length,
    stream: new Readable({ read: stream => void stream, construct: done => done(new Error('broken disk')) }),
  })
  try {
    const { statusCode, headers } = await server.get('ann', at('original'), { range: 'bytes=0-5' })
    assert.equal(statusCode, 500)
    assert.equal(headers['cache-control'], 'no-store')
    for (const name of ['etag', 'content-range', 'content-disposition', 'accept-ranges']) {
      assert.equal(headers[name], undefined, name)
    }
    assert.match(String(headers['content-type']), /problem\+json/)
  } finally {
    server.faults.get = undefined
  }
})
