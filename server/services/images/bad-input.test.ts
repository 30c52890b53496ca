/** What hostile senders send: every file is answered with a clear 4xx or fails with its reason, and the next one works. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { test } from 'node:test'
import { makeTestApp } from '../../../test/support/app.ts'
import { type HostilePicture, hostilePictures } from '../../../test/support/hostile-pictures.ts'
import { makePicture } from '../../../test/support/pictures.ts'
import { assertProblem, makeSender, postForm } from './test-support.ts'

const mib = 1024 * 1024
const idleMs = 400
const server = await makeTestApp({
  env: { IMAGE_IDLE_MS: String(idleMs), IMAGE_UPLOAD_MS: '2000', IMAGE_BYTES_MAX: String(32 * mib) },
})
const mallory = await makeSender(server, 'mallory')
const headers = { authorization: `Bearer ${mallory.user.token}` }
const good = await makePicture({ width: 600, height: 400, format: 'jpeg', kind: 'photo', seed: 1 })
/** Of this process, which decodes nothing: what the pictures are made of here, and waits to be collected. Bombs ask for gigabytes. */
const growthMax = 512 * mib

async function check({ name, bytes, expect, code }: HostilePicture) {
  const answer = await mallory.raw(bytes(), '?wait=60', { 'content-type': 'image/jpeg' })
  const said = `${name}: ${answer.status} ${JSON.stringify(answer.body)}`
  if (expect === 'refused at upload') {
    assert.ok(answer.status >= 400 && answer.status < 500, said)
    if (code) assert.equal(answer.body.code, code, said)
    assert.ok(answer.body.detail.length > 10, said)
  } else {
    assert.equal(answer.status, 200, said)
    assert.equal(answer.body.status, expect === 'works' ? 'ready' : 'failed', said)
    if (expect !== 'works') assert.ok(answer.body.error.length > 10, said)
  }
}

test('every hostile picture is answered clearly, in bounded memory, and the next image works', async () => {
  const before = process.memoryUsage.rss()
  let most = before
  const watch = setInterval(() => {
    most = Math.max(most, process.memoryUsage.rss())
  }, 20)
  for (const picture of hostilePictures()) await check(picture)
  clearInterval(watch)
  assert.ok(most - before < growthMax, `grew by ${Math.round((most - before) / mib)} MiB`)
  const next = await mallory.raw(good, '?wait=30')
  assert.equal(next.body.status, 'ready')
  assert.deepEqual(server.complaints, [])
})

const post = (more: Omit<Parameters<typeof postForm>[2], 'bytes'> & { bytes?: Uint8Array }) =>
  postForm(server, '/v1/images', { bytes: good, headers, ...more })

test('a form that is not as it must be is refused', async () => {
  assertProblem(await post({ part: 'picture' }), 400, 'part_missing')
  assertProblem(await post({ fields: { colour: 'blue' } }), 400, 'part_unexpected')
  assertProblem(await post({ fields: { image: 'text' } }), 400, 'part_missing')
  assertProblem(await post({ fields: { visibility: 'secret' } }), 400, 'visibility_unknown')
  assertProblem(await post({ bytes: new Uint8Array(0) }), 422, 'image_empty')
  assertProblem(await mallory.raw(new Uint8Array(0)), 422, 'image_empty')
  assertProblem(await mallory.user.post(server, '/v1/images', {}), 415, 'not_an_image_body')
})

test('two files, or a file without an end, are refused', async () => {
  const part = (name: string) =>
    `--b\r\ncontent-disposition: form-data; name="${name}"; filename="a.jpg"\r\n\r\n${good.toString('latin1')}\r\n`
  const send = (text: string) =>
    mallory.raw(Buffer.from(text, 'latin1'), '', { 'content-type': 'multipart/form-data; boundary=b' })
  assertProblem(await send(`${part('image')}${part('image')}--b--\r\n`), 400, 'part_unexpected')
  assertProblem(await send(part('image')), 400, 'form_malformed')
  assertProblem(await send(''), 400, 'form_malformed')
  assertProblem(await send('--b--\r\n'), 400, 'part_missing')
  assertProblem(await mallory.raw(good, '', { 'content-type': 'multipart/form-data' }), 400, 'form_malformed')
  const headerBomb = `--b\r\n${'x-a: b\r\n'.repeat(50_000)}content-disposition: form-data; name="image"; filename="a"\r\n\r\n`
  const bombed = await send(`${headerBomb}${good.toString('latin1')}\r\n--b--\r\n`)
  assert.ok(bombed.status < 500, JSON.stringify(bombed.body))
})

test('a path in the file’s name is only a name', async () => {
  for (const [fileName, expected] of [
    ['../../../etc/passwd', 'passwd'],
    ['..\\..\\windows\\system.ini', 'system.ini'],
    ['/..', null],
    ['a\u202egpj.exe', 'agpj.exe'],
    ['x'.repeat(5000), 'x'.repeat(200)],
  ] as const) {
    const { status, body } = await post({ fileName })
    assert.deepEqual([status, body.name], [202, expected], JSON.stringify(body))
  }
})

/** Speaks HTTP by hand; answers what comes back until the server closes. */
async function speak(head: string, write: (send: (chunk: string | Buffer) => void) => void): Promise<string> {
  const { port, hostname } = new URL(server.url)
  const socket = connect(Number(port), hostname)
  await once(socket, 'connect')
  let answer = ''
  socket.setEncoding('utf8').on('data', text => {
    answer += text
  })
  // Writing to a server that has answered and closed is no surprise.
  socket.on('error', () => {})
  const closed = new Promise(resolve => socket.once('close', resolve))
  socket.write(`POST /v1/images HTTP/1.1\r\nhost: a\r\nauthorization: ${headers.authorization}\r\n${head}\r\n`)
  write(chunk => socket.writable && socket.write(chunk))
  await closed
  return answer
}

test('a body that drips or stops is ended in time', async () => {
  const head = `content-type: image/jpeg\r\ncontent-length: ${good.length}\r\n`
  const begun = performance.now()
  const stopped = await speak(head, send => send(good.subarray(0, 1000)))
  assert.match(stopped, /^HTTP\/1.1 408[\s\S]*"code":"body_too_slow"/)
  let timer: NodeJS.Timeout | undefined
  const dripped = await speak(head, send => {
    let at = 0
    timer = setInterval(() => send(good.subarray(at, ++at)), idleMs / 4)
  })
  clearInterval(timer)
  assert.match(dripped, /^HTTP\/1.1 408[\s\S]*"code":"body_too_slow"/)
  assert.ok(performance.now() - begun < 20_000)
})

test('a chunked body past the limit is cut off there', async () => {
  const chunk = Buffer.concat([Buffer.from('100000\r\n'), Buffer.alloc(mib), Buffer.from('\r\n')])
  const start = Buffer.concat([Buffer.from(`${good.length.toString(16)}\r\n`), good, Buffer.from('\r\n')])
  let sent = 0
  const answer = await speak('content-type: image/jpeg\r\ntransfer-encoding: chunked\r\n', send => {
    send(start)
    const more = () => {
      if (sent++ > 40) return
      send(chunk)
      setImmediate(more)
    }
    more()
  })
  assert.match(answer, /^HTTP\/1.1 (413[\s\S]*"code":"image_too_large"|422[\s\S]*"code":"image_)/)
})

test('a length that is too large is refused before a byte is read', async () => {
  const answer = await speak(`content-type: image/jpeg\r\ncontent-length: ${200 * mib}\r\n`, () => {})
  assert.match(answer, /^HTTP\/1.1 413[\s\S]*"code":"image_too_large"/)
})

test('who hangs up in the middle leaves nothing behind', async () => {
  const { port, hostname } = new URL(server.url)
  const count = async () => (await server.db.query(`select from images.files`)).rows.length
  const before = await count()
  for (let n = 0; n < 20; n++) {
    const socket = connect(Number(port), hostname)
    socket.on('error', () => {})
    await once(socket, 'connect')
    socket.write(
      `POST /v1/images HTTP/1.1\r\nhost: a\r\nauthorization: ${headers.authorization}\r\ncontent-type: image/jpeg\r\ncontent-length: ${good.length}\r\n\r\n`,
    )
    socket.write(good.subarray(0, n * 1000))
    socket.destroy()
  }
  assert.equal((await mallory.raw(good, '?wait=30')).body.status, 'ready')
  assert.ok((await count()) <= before + 1)
  assert.deepEqual(server.complaints, [])
})
