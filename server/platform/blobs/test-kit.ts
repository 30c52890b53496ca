/** What every blob store does, whatever lies beneath it. */
import assert from 'node:assert/strict'
import { createHash, randomUUID } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { pino } from 'pino'
import { atEnd } from '../../../test/support/at-end.ts'
import { collectGarbage } from '../../../test/support/garbage.ts'
import { isAppError } from '../errors.ts'
import type { Log } from '../log.ts'
import type { BlobStore } from './types.ts'

const megabyte = 1024 * 1024
/** Bytes of a kind: nothing, a little, what one write takes, and what S3 takes in several parts. */
const sizes = [0, 1, 200_000, 20 * megabyte + 1]

/** @param at keys of this case begin with it */
type Case = (store: BlobStore, at: string) => Promise<void>

export const contract: readonly (readonly [fact: string, check: Case])[] = [
  ['what was put can be read, found and opened as a file', keepsWhatWasPut],
  ['a range of bytes can be read', readsRanges],
  ['what is not there is undefined, and deleting it is no error', knowsWhatIsAbsent],
  ['a later put stands instead of the earlier one', replaces],
  ['a source that fails leaves what was there', outlivesFailingSources],
  ['an abort leaves what was there', outlivesAborts],
  ['keys are listed in their order, page by page', listsInOrder],
  ['any number of keys is deleted at once', deletesMany],
  ['of puts to one key at once, one stands whole', settlesRaces],
  ['what is put while its neighbours are deleted stays', outlivesNeighbours],
  ['a reader may leave early', letsReadersGo],
  ['what fails while it uses the file is its own affair', passesErrorsOfUse],
  ['what need not be durable is kept like the rest', keepsWhatMayBeLost],
  ['who trusts that a blob is there hears when it is not', tellsTheTrusting],
  ['128 MB go in and out without being held in memory', holdsLittle],
  ['a key that no blob may have is a bug', refusesKeys],
]

/** Bytes that are told apart from any others, of a length. */
export function makeBytes(bytes: number, seed: string = randomUUID()): Buffer {
  if (bytes === 0) return Buffer.alloc(0)
  return createHash('shake256', { outputLength: bytes }).update(seed).digest()
}

/** A stream of unknown length in pieces as a socket brings them. */
export function makeStream(bytes: Buffer): Readable {
  const piece = 65_536
  const pieces = Array.from({ length: Math.ceil(bytes.length / piece) }, (_, index) =>
    bytes.subarray(index * piece, (index + 1) * piece),
  )
  return Readable.from(pieces, { objectMode: false })
}

export async function readBlob(store: BlobStore, key: string): Promise<Buffer | undefined> {
  const blob = await store.get(key)
  return blob && buffer(blob.stream)
}

export async function keysOf(store: BlobStore, prefix: string): Promise<string[]> {
  return (await store.list(prefix, { limit: 10_000 })).map(each => each.key)
}

/** Gone at the end of the file's tests. */
export async function makeFolder(): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-blobs-'))
  atEnd(() => rm(folder, { recursive: true, force: true }))
  return folder
}

/** A log, and the lines it was given. */
export function makeKeptLog(): { log: Log; lines: Record<string, unknown>[] } {
  const lines: Record<string, unknown>[] = []
  return { lines, log: pino({ level: 'info' }, { write: (line: string) => lines.push(JSON.parse(line)) }) }
}

export function isUnavailable(error: unknown): boolean {
  return isAppError(error) && error.code === 'blob_store_unavailable' && error.status === 503
}

async function keepsWhatWasPut(store: BlobStore, at: string) {
  const folder = await makeFolder()
  for (const size of sizes) {
    const bytes = makeBytes(size)
    const file = path.join(folder, String(size))
    await writeFile(file, bytes)
    const before = Date.now()
    assert.deepEqual(await store.put(`${at}/${size}/buffer`, bytes), { bytes: size })
    assert.deepEqual(await store.put(`${at}/${size}/stream`, makeStream(bytes)), { bytes: size })
    assert.deepEqual(await store.putFile(`${at}/${size}/file`, file), { bytes: size })
    for (const kind of ['buffer', 'stream', 'file']) {
      const key = `${at}/${size}/${kind}`
      const blob = await store.get(key)
      assert.equal(blob!.bytes, size, key)
      assert.ok(bytes.equals(await buffer(blob!.stream)), key)
      const found = await store.find(key)
      assert.equal(found!.bytes, size, key)
      assert.equal(found!.key, key)
      // Stores keep whole seconds, and a file that is moved keeps its time.
      assert.ok(Math.abs(found!.modifiedAt.getTime() - before) < 60_000, key)
      assert.ok(bytes.equals((await store.withFile(key, file => readFile(file)))!), key)
    }
  }
}

async function readsRanges(store: BlobStore, at: string) {
  const key = `${at}/blob`
  const bytes = makeBytes(300_000)
  await store.put(key, bytes)
  for (const [start, end] of [
    [0, 0],
    [0, 299_999],
    [299_999, 299_999],
    [70_000, 270_000],
  ] as const) {
    const blob = await store.get(key, { start, end })
    assert.equal(blob!.bytes, bytes.length)
    assert.ok(bytes.subarray(start, end + 1).equals(await buffer(blob!.stream)), `${start}-${end}`)
  }
  await assert.rejects(store.get(key, { start: 0, end: 300_000 }), { code: 'ERR_ASSERTION' })
  await assert.rejects(store.get(key, { start: 300_000, end: 300_001 }), { code: 'ERR_ASSERTION' })
  assert.equal(await store.get(`${at}/none`, { start: 0, end: 1 }), undefined)
}

async function knowsWhatIsAbsent(store: BlobStore, at: string) {
  await store.put(`${at}/here/blob`, makeBytes(10))
  for (const key of [`${at}/blob`, `${at}/here`, `${at}/here/blo`, `${at}/there/blob`]) {
    assert.equal(await store.get(key), undefined, key)
    assert.equal(await store.find(key), undefined, key)
    assert.equal(await store.withFile(key, async () => assert.fail('was called')), undefined, key)
    await store.delete([key])
  }
  assert.deepEqual(await keysOf(store, at), [`${at}/here/blob`])
  await store.delete([])
}

async function replaces(store: BlobStore, at: string) {
  for (const size of [500, 100, 1000]) {
    const bytes = makeBytes(size)
    await store.put(`${at}/blob`, bytes)
    assert.ok(bytes.equals((await readBlob(store, `${at}/blob`))!))
  }
  assert.deepEqual(await keysOf(store, at), [`${at}/blob`])
}

/** Brings so many bytes, then does as told. */
function makeBroken(bytes: number, then: () => Promise<never>): Readable {
  async function* read() {
    for (let brought = 0; brought < bytes; brought += 65_536) yield makeBytes(65_536)
    await then()
  }
  return Readable.from(read(), { objectMode: false })
}

async function outlivesFailingSources(store: BlobStore, at: string) {
  const kept = makeBytes(1000)
  await store.put(`${at}/kept`, kept)
  for (const size of sizes) {
    for (const key of [`${at}/kept`, `${at}/${size}`]) {
      const source = makeBroken(size, () => Promise.reject(new Error('the line was cut')))
      await assert.rejects(store.put(key, source), { message: 'the line was cut' }, `${key} after ${size} bytes`)
    }
  }
  const failed = new Readable({ read() {} })
  failed.on('error', () => undefined).destroy(new Error('gone before'))
  await assert.rejects(store.put(`${at}/failed`, failed), { message: 'gone before' })
  await assert.rejects(store.putFile(`${at}/file`, path.join(await makeFolder(), 'none')), { code: 'ENOENT' })
  assert.deepEqual(await keysOf(store, at), [`${at}/kept`])
  assert.ok(kept.equals((await readBlob(store, `${at}/kept`))!))
}

async function outlivesAborts(store: BlobStore, at: string) {
  const kept = makeBytes(1000)
  const reason = new Error('nobody waits')
  await store.put(`${at}/kept`, kept)
  for (const size of sizes) {
    const abort = new AbortController()
    // Its end never comes: only the abort ends the wait.
    const source = makeBroken(size, async () => {
      abort.abort(reason)
      return new Promise<never>(() => undefined)
    })
    await assert.rejects(store.put(`${at}/kept`, source, { signal: abort.signal }), reason, `after ${size} bytes`)
    assert.ok(source.destroyed)
  }
  const signal = AbortSignal.abort(reason)
  const late = makeStream(makeBytes(100))
  await assert.rejects(store.put(`${at}/late`, late, { signal }), reason)
  assert.ok(late.destroyed)
  await assert.rejects(store.put(`${at}/late`, makeBytes(100), { signal }), reason)
  assert.deepEqual(await keysOf(store, at), [`${at}/kept`])
  assert.ok(kept.equals((await readBlob(store, `${at}/kept`))!))
}

async function listsInOrder(store: BlobStore, at: string) {
  const words = ['a', 'a-b', 'a.b', 'a/b', 'a/b-c', 'a/b/c', 'a0', 'b/0', 'b/1/x', 'b/1/y', 'b/10', 'c', 'd/e/f/g']
  // Where `a` is a blob, no `a/b` can be one in a folder.
  const keys = words.filter(word => !words.some(other => other.startsWith(`${word}/`))).map(word => `${at}/${word}`)
  for (const key of keys) await store.put(key, makeBytes(key.length))
  const wanted = keys.toSorted()

  const listed = await store.list(at, { limit: 100 })
  assert.deepEqual(
    listed.map(each => [each.key, each.bytes]),
    wanted.map(key => [key, key.length]),
  )
  for (const limit of [1, 2, 5]) {
    const paged: string[] = []
    for (;;) {
      const after = paged.at(-1)
      const page = await store.list(`${at}/`, { limit, ...(after === undefined ? {} : { after }) })
      if (page.length === 0) break
      assert.ok(page.length <= limit)
      paged.push(...page.map(each => each.key))
    }
    assert.deepEqual(paged, wanted, `${limit} at a time`)
  }
  for (const prefix of ['a', 'a/', 'a/b', 'b/1', 'b/1/', 'e']) {
    const under = wanted.filter(key => key.startsWith(`${at}/${prefix}`))
    assert.deepEqual(await keysOf(store, `${at}/${prefix}`), under, prefix)
  }
  for (const after of ['', 'a/b-c', 'a/zz', 'b/1', 'b/1/x', 'zz']) {
    const page = await store.list(at, { after: `${at}/${after}`, limit: 100 })
    const rest = wanted.filter(key => key > `${at}/${after}`)
    assert.deepEqual(
      page.map(each => each.key),
      rest,
      `after ${after}`,
    )
  }
}

async function deletesMany(store: BlobStore, at: string) {
  const present = [`${at}/0`, `${at}/1500`, `${at}/2499`]
  for (const key of [...present, `${at}/other`]) await store.put(key, makeBytes(1))
  await store.delete(Array.from({ length: 2500 }, (_, index) => `${at}/${index}`))
  assert.deepEqual(await keysOf(store, at), [`${at}/other`])
}

async function settlesRaces(store: BlobStore, at: string) {
  const bodies = Array.from({ length: 16 }, (_, index) => makeBytes(100_000 + index))
  await Promise.all(bodies.map(body => store.put(`${at}/one`, makeStream(body))))
  const read = (await readBlob(store, `${at}/one`))!
  assert.ok(bodies.some(body => body.equals(read)))
}

/** One of them is never deleted: the test server fails puts into folders that it removes at that moment. */
async function outlivesNeighbours(store: BlobStore, at: string) {
  await store.put(`${at}/deep/folder/kept`, makeBytes(1))
  await outlivesDeletions(store, at, ['kept'])
}

/** @param kept other blobs of the folder */
export async function outlivesDeletions(store: BlobStore, at: string, kept: readonly string[] = []) {
  const rounds = 25
  await Promise.all(
    Array.from({ length: 8 }, async (_, writer) => {
      for (let round = 0; round < rounds; round++) {
        const key = `${at}/deep/folder/${writer}`
        const bytes = makeBytes(1000)
        await store.put(key, bytes)
        assert.ok(bytes.equals((await readBlob(store, key))!), key)
        if (round < rounds - 1 || writer % 2 === 0) await store.delete([key])
      }
    }),
  )
  assert.deepEqual(
    await keysOf(store, at),
    [1, 3, 5, 7, ...kept].map(name => `${at}/deep/folder/${name}`),
  )
}

async function letsReadersGo(store: BlobStore, at: string) {
  const bytes = makeBytes(2 * megabyte)
  await store.put(`${at}/blob`, bytes)
  // More than there are connections or descriptors to be had, if they stayed.
  for (let round = 0; round < 200; round++) {
    const { stream } = (await store.get(`${at}/blob`))!
    if (round % 2 === 0) {
      for await (const chunk of stream) {
        assert.ok(chunk.length > 0)
        break
      }
    }
    stream.destroy()
  }
  assert.ok(bytes.equals((await readBlob(store, `${at}/blob`))!))
}

async function passesErrorsOfUse(store: BlobStore, at: string) {
  await store.put(`${at}/blob`, makeBytes(10))
  const failure = Object.assign(new Error('no such thing'), { code: 'ENOENT' })
  await assert.rejects(
    store.withFile(`${at}/blob`, () => Promise.reject(failure)),
    failure,
  )
}

async function keepsWhatMayBeLost(store: BlobStore, at: string) {
  const key = `${at}/blob`
  const durable = false
  for (const size of [0, 1000, 300_000]) {
    const bytes = makeBytes(size)
    for (const source of [bytes, makeStream(bytes)]) {
      assert.deepEqual(await store.put(key, source, { durable }), { bytes: size })
      assert.ok(bytes.equals((await readBlob(store, key))!))
    }
    const source = makeBroken(100_000, () => Promise.reject(new Error('the sender has gone')))
    await assert.rejects(store.put(key, source, { durable }), /has gone/)
    assert.ok(bytes.equals((await readBlob(store, key))!))
  }
  assert.deepEqual(await keysOf(store, at), [key])
}

async function tellsTheTrusting(store: BlobStore, at: string) {
  const options = { trusting: true }
  await store.put(`${at}/blob`, makeBytes(10, 'it'))
  assert.ok(makeBytes(10, 'it').equals((await store.withFile(`${at}/blob`, file => readFile(file), options))!))
  assert.equal(await store.withFile(`${at}/none`, file => readFile(file), options), undefined)
  const failure = new Error('no such thing')
  await assert.rejects(
    store.withFile(`${at}/blob`, () => Promise.reject(failure), options),
    failure,
  )
}

async function holdsLittle(store: BlobStore, at: string) {
  const pieces = 2048
  const piece = makeBytes(65_536)
  const heldMax = 64 * megabyte
  let peak = 0
  let looks = 0
  const held = () => {
    collectGarbage()
    return process.memoryUsage().arrayBuffers
  }
  const start = held()
  // What waits to be collected is nobody's, however much of it there is; collecting takes a while.
  const look = () => {
    if (looks++ % 128 === 0) peak = Math.max(peak, held() - start)
  }
  async function* read() {
    for (let index = 0; index < pieces; index++) {
      look()
      yield Buffer.from(piece)
    }
  }
  const { bytes } = await store.put(`${at}/large`, Readable.from(read(), { objectMode: false }))
  assert.equal(bytes, pieces * piece.length)
  assert.ok(peak < heldMax, `putting held ${peak} bytes`)

  const hash = createHash('sha256')
  const blob = (await store.get(`${at}/large`))!
  for await (const chunk of blob.stream) {
    look()
    hash.update(chunk)
  }
  const wanted = createHash('sha256')
  for (let index = 0; index < pieces; index++) wanted.update(piece)
  assert.equal(hash.digest('hex'), wanted.digest('hex'))
  assert.ok(peak < heldMax, `reading held ${peak} bytes`)
  await store.delete([`${at}/large`])
}

async function refusesKeys(store: BlobStore) {
  const wrong = ['', '/a', 'a/', 'a//b', '..', 'a/../b', './a', 'A', 'a b', 'a\0b', 'tmp/a', 'capstan-blobs', 'é']
  for (const key of [...wrong, 'a'.repeat(600)]) {
    const fault = { code: 'ERR_ASSERTION' }
    await assert.rejects(store.put(key, makeBytes(1)), fault, key)
    await assert.rejects(store.putFile(key, '/dev/null'), fault, key)
    await assert.rejects(store.get(key), fault, key)
    await assert.rejects(store.find(key), fault, key)
    await assert.rejects(
      store.withFile(key, async () => undefined),
      fault,
      key,
    )
    await assert.rejects(store.delete(['a', key]), fault, key)
  }
  await assert.rejects(store.list('../', { limit: 1 }), { code: 'ERR_ASSERTION' })
}
