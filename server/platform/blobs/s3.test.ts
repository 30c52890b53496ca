import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { Readable } from 'node:stream'
import { beforeEach, test } from 'node:test'
import {
  CreateMultipartUploadCommand,
  ListMultipartUploadsCommand,
  S3Client,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import { makeTestS3, s3IsMissing, type TestS3 } from '../../../test/support/s3.ts'
import { until } from '../../../test/support/until.ts'
import { SettingsError } from '../config.ts'
import type { Log } from '../log.ts'
import { makeBlobs } from './blobs.ts'
import { makeS3Store } from './s3.ts'
import {
  contract,
  isUnavailable,
  keysOf,
  makeBytes,
  makeFolder,
  makeKeptLog,
  makeStream,
  readBlob,
} from './test-kit.ts'
import type { BlobStore } from './types.ts'
import { type BucketTarget, parseBlobUrl } from './url.ts'

const skip = s3IsMissing
const megabyte = 1024 * 1024
/** Short, so that what hangs does not take long. */
const times = { connectMs: 500, answerMs: 1_000, idleMs: 300 }
// Where there is none, no test looks at it.
const s3 = skip ? (undefined as unknown as TestS3) : await makeTestS3()
const spoolFolder = path.join(await makeFolder(), 'spool')
let store: BlobStore
let lines: Record<string, unknown>[]

beforeEach(async () => {
  if (skip) return
  s3.fault = undefined
  s3.before = undefined
  const kept = makeKeptLog()
  lines = kept.lines
  store = await makeStore({ log: kept.log })
})

function makeStore(given: { log: Log; secret?: string; url?: string; hasty?: boolean }): Promise<BlobStore> {
  const keys = { id: s3.env.S3_ACCESS_KEY_ID, secret: given.secret ?? s3.env.S3_SECRET_ACCESS_KEY }
  const target = parseBlobUrl(given.url ?? s3.url) as BucketTarget
  return makeS3Store({ target, keys, spoolFolder, log: given.log, ...(given.hasty === false ? {} : { times }) })
}

/** The server as somebody else sees it. */
function makeClient(): S3Client {
  const { S3_ACCESS_KEY_ID: accessKeyId, S3_SECRET_ACCESS_KEY: secretAccessKey } = s3.env
  const credentials = { accessKeyId, secretAccessKey }
  return new S3Client({ endpoint: s3.endpoint, region: 'us-east-1', forcePathStyle: true, credentials })
}

async function unfinished(): Promise<string[]> {
  const client = makeClient()
  const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket: s3.bucket }))
  client.destroy()
  return Uploads.map(each => each.Key!)
}

async function spooled(): Promise<string[]> {
  return readdir(spoolFolder).catch(() => [])
}

for (const [index, [fact, check]] of contract.entries()) {
  test(`in a bucket: ${fact}`, { skip }, async () => {
    await check(await makeStore({ log: makeKeptLog().log, hasty: false }), `case/${index}`)
    assert.deepEqual(await unfinished(), [])
    assert.deepEqual(await spooled(), [])
  })
}

test('a bucket may have no prefix, and one store does not see another’s', { skip }, async () => {
  await store.put('mine', makeBytes(1))
  const whole = await makeStore({ log: makeKeptLog().log, url: s3.url.replace('/capstan?', '?') })
  const other = await makeStore({ log: makeKeptLog().log, url: s3.url.replace('/capstan?', '/other?') })
  assert.ok((await keysOf(whole, 'capstan/')).includes('capstan/mine'))
  assert.deepEqual(await keysOf(other, ''), [])
  assert.equal(store.description, `s3://blobs/capstan at ${s3.endpoint}`)
})

test('a small stream goes in one request, a large one in parts', { skip }, async () => {
  for (const [size, wanted] of [
    [0, ['PUT']],
    [200_000, ['PUT']],
    [3 * megabyte, ['PUT']],
    [11 * megabyte, ['POST', 'PUT', 'PUT', 'PUT', 'POST']],
  ] as const) {
    s3.requests.length = 0
    await store.put('sized', makeStream(makeBytes(size)))
    assert.deepEqual(
      s3.requests.map(each => each.split(' ')[0]),
      wanted,
      `${size} bytes`,
    )
  }
})

/** What may be asked while the store is away. */
const asks: readonly (readonly [name: string, ask: () => Promise<unknown>])[] = [
  ['put of a buffer', () => store.put('away/a', makeBytes(1000))],
  ['put of a stream', () => store.put('away/b', makeStream(makeBytes(1000)))],
  ['put in parts', () => store.put('away/c', makeStream(makeBytes(6 * megabyte)))],
  ['get', () => store.get('kept/blob')],
  ['get of what is not there', () => store.get('kept/none')],
  ['find', () => store.find('kept/blob')],
  ['find of what is not there', () => store.find('kept/none')],
  ['withFile', () => store.withFile('kept/blob', async () => assert.fail('was called'))],
  ['delete', () => store.delete(['kept/blob'])],
  ['list', () => store.list('', { limit: 1 })],
  ['sweep', () => store.sweepUnfinished(new Date(0))],
]

async function checkOutage(wantedLog: RegExp) {
  await Promise.all(asks.map(([name, ask]) => assert.rejects(ask(), isUnavailable, name)))
  assert.equal(lines.length, 1, 'an outage is logged once')
  assert.match(`${lines[0]!.msg} ${lines[0]!.reason}`, wantedLog)
  assert.doesNotMatch(JSON.stringify(lines), new RegExp(s3.env.S3_SECRET_ACCESS_KEY))
  assert.deepEqual(await spooled(), [])
}

async function checkBack() {
  const kept = makeBytes(1000, 'kept')
  assert.ok(kept.equals((await readBlob(store, 'kept/blob'))!))
  assert.deepEqual(await keysOf(store, 'away/'), [])
  await store.put('kept/later', makeStream(makeBytes(6 * megabyte)))
  await store.delete(['kept/later'])
}

test('a server that is killed is a 503 for everybody, and is used when it is back', { skip }, async () => {
  await store.put('kept/blob', makeBytes(1000, 'kept'))
  await s3.kill()
  await checkOutage(/cannot be used/)
  await s3.start()
  await checkBack()
})

test('so is one whose connections are refused', { skip }, async () => {
  await store.put('kept/blob', makeBytes(1000, 'kept'))
  await s3.refuse()
  await checkOutage(/cannot be used.*ECONNREFUSED/)
  await s3.accept()
  await checkBack()
})

for (const [fault, wantedLog] of [
  ['slow-down', /cannot be used/],
  ['hang-up', /cannot be used/],
  ['hang', /cannot be used/],
  ['full', /is full: make room/],
] as const) {
  test(`so is one that answers everything with ${fault}`, { skip }, async () => {
    await store.put('kept/blob', makeBytes(1000, 'kept'))
    s3.fault = () => fault
    await checkOutage(wantedLog)
    s3.fault = undefined
    await checkBack()
  })
}

test('a bucket that is not there, or keys that are wrong, are a 503 whose log says what to see to', {
  skip,
}, async () => {
  await store.put('kept/blob', makeBytes(1000, 'kept'))
  const wrong = [{ url: s3.url.replace('//blobs/', '//nothing-here/') }, { secret: 'wrong-but-still-a-secret' }]
  for (const each of wrong) {
    const kept = makeKeptLog()
    lines = kept.lines
    store = await makeStore({ log: kept.log, ...each })
    await checkOutage(/refuses Capstan: see the name, the keys and the permissions/)
    assert.doesNotMatch(JSON.stringify(lines), /wrong-but-still/)
  }
})

test('requests that fail twice are sent again', { skip }, async () => {
  let failures = 0
  s3.fault = () => (failures++ < 2 ? 'slow-down' : undefined)
  const bytes = makeBytes(5000)
  await store.put('again/blob', makeStream(bytes))
  failures = 0
  assert.ok(bytes.equals((await readBlob(store, 'again/blob'))!))
  failures = 0
  s3.fault = asked => (/partNumber=2/.test(asked) && failures++ < 2 ? 'hang-up' : undefined)
  const large = makeBytes(16 * megabyte)
  await store.put('again/large', makeStream(large))
  assert.equal(failures, 3)
  assert.ok(large.equals((await readBlob(store, 'again/large'))!))
})

test('a part that fails leaves nothing of the others', { skip }, async () => {
  s3.fault = asked => (/partNumber=2/.test(asked) ? 'slow-down' : undefined)
  await assert.rejects(store.put('parts/blob', makeStream(makeBytes(21 * megabyte))), isUnavailable)
  assert.deepEqual(await unfinished(), [])
  assert.equal(await store.find('parts/blob'), undefined)
})

test('a part that fails ends those that hang or wait, and the upload after them', { skip }, async () => {
  // With its usual patience: nothing here is to wait for a limit.
  const patient = await makeStore({ log: makeKeptLog().log, hasty: false })
  s3.requests.length = 0
  s3.fault = asked => (/partNumber=2/.test(asked) ? 'full' : /partNumber/.test(asked) ? 'hang' : undefined)
  await assert.rejects(patient.put('parts/hanging', makeStream(makeBytes(51 * megabyte))), isUnavailable)
  await until(() => s3.open === 0)
  assert.match(s3.requests.at(-1)!, /^DELETE .*uploadId/)
  assert.ok(s3.requests.filter(asked => /partNumber/.test(asked)).length <= 8)
  s3.fault = undefined
  assert.deepEqual(await unfinished(), [])
})

test('a request deletes no more than S3 allows', { skip }, async () => {
  s3.requests.length = 0
  await store.delete(Array.from({ length: 2001 }, (_, index) => `many/${index}`))
  assert.equal(s3.requests.length, 3)
})

test('an abort ends an upload that hangs, and nothing of it stays', { skip }, async () => {
  const reason = new Error('nobody waits')
  for (const [size, point] of [
    [1000, /PUT/],
    [11 * megabyte, /partNumber=3/],
    [11 * megabyte, /POST.*uploadId/],
  ] as const) {
    const abort = new AbortController()
    s3.requests.length = 0
    s3.fault = asked => {
      if (!point.test(asked)) return undefined
      abort.abort(reason)
      return 'hang'
    }
    const putting = store.put('aborted', makeStream(makeBytes(size)), { signal: abort.signal })
    await assert.rejects(putting, reason, String(point))
    assert.equal(s3.requests.filter(asked => point.test(asked)).length, 1, 'what was aborted is sent again')
    s3.fault = undefined
    assert.deepEqual(await unfinished(), [])
    assert.equal(await store.find('aborted'), undefined)
  }
})

test('a body that is cut or stalls fails its reader, and is no whole file', { skip }, async () => {
  await store.put('cut/blob', makeBytes(4 * megabyte))
  for (const fault of ['cut', 'stall', 'mute'] as const) {
    s3.fault = () => fault
    await assert.rejects(readBlob(store, 'cut/blob'), isUnavailable, fault)
    await assert.rejects(
      store.withFile('cut/blob', async () => assert.fail('was called')),
      isUnavailable,
      fault,
    )
    assert.deepEqual(await spooled(), [])
  }
})

test('a reader who leaves waits for nothing, and is no trouble of the store', { skip }, async () => {
  await store.put('left/blob', makeBytes(4 * megabyte))
  const { log, lines } = makeKeptLog()
  const patient = await makeStore({ log, hasty: false })
  for (const fault of ['stall', 'mute', undefined] as const) {
    s3.fault = () => fault
    const { stream } = (await patient.get('left/blob'))!
    if (fault === 'stall') await once(stream, 'readable')
    else stream.read()
    stream.destroy()
    await once(stream, 'close')
    await until(() => s3.open === 0)
  }
  assert.deepEqual(lines, [])
})

test('a reader may take longer than the store may', { skip }, async () => {
  const bytes = makeBytes(8 * megabyte)
  await store.put('slow/blob', bytes)
  const { stream } = (await store.get('slow/blob'))!
  const read: Buffer[] = []
  for await (const chunk of stream) {
    // The one wait by the clock: it must be longer than the limit that must not strike.
    if (read.length === 0) await new Promise(resolve => setTimeout(resolve, times.idleMs * 2))
    read.push(chunk)
  }
  assert.ok(bytes.equals(Buffer.concat(read)))
})

test('a server killed in the middle of an upload has all of it or nothing, and the sweep takes the rest', {
  skip,
}, async () => {
  const kept = makeBytes(1000)
  const large = makeBytes(21 * megabyte)
  await store.put('killed/kept', kept)
  for (const point of [/partNumber=1/, /partNumber=4/, /POST.*uploadId/]) {
    s3.before = async asked => {
      if (!point.test(asked)) return
      s3.before = undefined
      await s3.kill()
    }
    for (const key of ['killed/kept', 'killed/new']) {
      await assert.rejects(store.put(key, makeStream(large)), isUnavailable, String(point))
    }
    await s3.start()
    assert.deepEqual(await keysOf(store, 'killed/'), ['killed/kept'])
    assert.ok(kept.equals((await readBlob(store, 'killed/kept'))!))
    const left = (await unfinished()).length
    assert.ok(left > 0, 'the abort could not be sent')
    assert.equal(await store.sweepUnfinished(new Date(0)), 0)
    assert.equal(await store.sweepUnfinished(new Date(Date.now() + 60_000)), left)
    assert.deepEqual(await unfinished(), [])
  }
  await store.put('killed/new', makeStream(large))
  assert.ok(large.equals((await readBlob(store, 'killed/new'))!))
})

test('the sweep takes what others left, of this store alone, and nothing that is under way', { skip }, async () => {
  const client = makeClient()
  for (const Key of ['capstan/left', 'elsewhere/left']) {
    const at = { Bucket: s3.bucket, Key }
    const { UploadId } = await client.send(new CreateMultipartUploadCommand(at))
    await client.send(new UploadPartCommand({ ...at, UploadId, PartNumber: 1, Body: makeBytes(100) }))
  }
  client.destroy()
  await writeFile(path.join(spoolFolder, 'left'), 'half')

  let go: () => void = assert.fail
  const held = new Promise<void>(resolve => {
    go = resolve
  })
  s3.before = asked => (/partNumber=2/.test(asked) ? held : Promise.resolve())
  const large = makeBytes(11 * megabyte)
  const slow = await makeStore({ log: makeKeptLog().log, hasty: false })
  const putting = slow.put('under-way', makeStream(large))
  await until(async () => (await unfinished()).includes('capstan/under-way'))
  assert.equal(await slow.sweepUnfinished(new Date(Date.now() + 60_000)), 2)
  go()
  await putting
  assert.ok(large.equals((await readBlob(store, 'under-way'))!))
  assert.deepEqual(await unfinished(), ['elsewhere/left'])
})

test('sources that bring nothing hold no connection', { skip }, async () => {
  const sources = Array.from({ length: 200 }, () => new Readable({ read() {} }))
  const abort = new AbortController()
  const waiting = sources.map((source, index) => {
    source.push(makeBytes(300_000))
    return store.put(`slow/${index}`, source, { signal: abort.signal })
  })
  const ends = Promise.allSettled(waiting)
  await until(async () => (await spooled()).length === sources.length)
  await store.put('quick', makeBytes(1000))
  abort.abort(new Error('enough'))
  assert.ok((await ends).every(each => each.status === 'rejected'))
  assert.deepEqual(await keysOf(store, 'slow/'), ['slow/blob'])
})

test('settings choose the store, and wrong ones stop the start', { skip }, async () => {
  const data = await makeFolder()
  const { log } = makeKeptLog()
  const settings = { DATA_DIR: data, BLOB_URL: undefined, S3_ACCESS_KEY_ID: undefined, S3_SECRET_ACCESS_KEY: undefined }
  const inFolder = await makeBlobs({ settings, log })
  await inFolder.put('a', makeBytes(1))
  assert.ok((await readdir(path.join(data, 'blobs'))).includes('a'))
  const inBucket = await makeBlobs({ settings: { ...settings, ...s3.env, BLOB_URL: s3.url }, log })
  await inBucket.put('chosen', makeBytes(1))
  assert.ok(await store.find('chosen'))
  await inBucket.close()

  const half = { ...settings, BLOB_URL: s3.url, S3_ACCESS_KEY_ID: 'id' }
  await assert.rejects(makeBlobs({ settings: half, log }), {
    name: 'SettingsError',
    message: 'S3_ACCESS_KEY_ID is set, but S3_SECRET_ACCESS_KEY is not: set both, or neither.',
  })
  await assert.rejects(
    makeBlobs({ settings: { ...settings, ...s3.env, BLOB_URL: 's3://bucket' }, log }),
    (error: Error) => error instanceof SettingsError && /names no region/.test(error.message),
  )
})
