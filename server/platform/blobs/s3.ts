/**
 * Blobs in a bucket. S3 wants to know how many bytes come before it takes them, so a stream that is not small goes into
 * a file of this machine first (`spool.ts`): the store's memory is bounded whatever the number of uploads, a slow
 * sender holds no connection, and a source that fails has touched nothing. A blob appears under its key when S3 has all
 * of it. What may be left behind are multipart uploads and spooled files of a killed process: the sweep takes them.
 *
 * Where S3 does not answer a put in time, nobody knows whether it was kept; it is then refused, and belongs to nobody.
 */
import assert from 'node:assert/strict'
import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import {
  AbortMultipartUploadCommand,
  DeleteObjectsCommand,
  GetObjectCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  type S3Client,
} from '@aws-sdk/client-s3'
import type { Log } from '../log.ts'
import { assertKey, assertPrefix } from './keys.ts'
import { makeOutage, type Outage } from './outage.ts'
import { makeS3Client, type S3Times, s3Times, s3TroubleOf, unlessMissing } from './s3-client.ts'
import { makeUploads } from './s3-upload.ts'
import { makeSpool } from './spool.ts'
import { readPatiently, streamOf, takeHead, withSource, writeChunks } from './streams.ts'
import type { BlobInfo, BlobStore, ByteRange } from './types.ts'
import type { BucketTarget } from './url.ts'

/** A stream of no more bytes needs no file. */
const inMemoryBytes = 256 * 1024
/** S3's own limits of one request. */
const deletesMax = 1000
const pageMax = 1000

interface Bucket {
  client: S3Client
  name: string
  /** Before every key: empty, or with a slash at its end. */
  prefix: string
  idleMs: number
  outage: Outage
}

/**
 * @param given.keys undefined looks for them where every AWS program does
 * @param given.spoolFolder of this machine
 * @throws SettingsError where nothing names the region
 */
export async function makeS3Store(given: {
  target: BucketTarget
  keys: { id: string; secret: string } | undefined
  spoolFolder: string
  log: Log
  times?: S3Times
}): Promise<BlobStore> {
  const { target, times = s3Times } = given
  const client = await makeS3Client({ ...given, times })
  const description = describe(target)
  const outage = makeOutage({ description, log: given.log, troubleOf: s3TroubleOf })
  const { guard } = outage
  const prefix = target.prefix === '' ? '' : `${target.prefix}/`
  const bucket: Bucket = { client, name: target.bucket, prefix, idleMs: times.idleMs, outage }
  const spool = makeSpool(given.spoolFolder, guard)
  const uploads = makeUploads({ client, bucket: target.bucket })

  /** Its own reason is what an abort ends with. */
  async function upload(signal: AbortSignal | undefined, work: () => Promise<void>) {
    try {
      signal?.throwIfAborted()
      await work()
    } catch (error) {
      signal?.throwIfAborted()
      throw outage.translate(error)
    }
  }

  return {
    description,
    async put(key, source, { signal } = {}) {
      assertKey(key)
      const putBytes = async (bytes: Buffer) => {
        await upload(signal, () => uploads.putBytes(prefix + key, bytes, signal))
        return { bytes: bytes.length }
      }
      if (Buffer.isBuffer(source)) return putBytes(source)
      return withSource(source, signal, async chunks => {
        const { head, all } = await takeHead(chunks, inMemoryBytes)
        if (head) return putBytes(head)
        return spool.withFile(async ({ handle }) => {
          const bytes = await writeChunks(handle, all, guard)
          await upload(signal, () => uploads.putFile(prefix + key, { handle, bytes }, signal))
          return { bytes }
        })
      })
    },
    async putFile(key, from) {
      assertKey(key)
      const handle = await open(from, constants.O_RDONLY | constants.O_NOFOLLOW)
      try {
        const { size: bytes } = await handle.stat()
        await guard(() => uploads.putFile(prefix + key, { handle, bytes }, undefined))
        return { bytes }
      } finally {
        await handle.close()
      }
    },
    async get(key, range) {
      assertKey(key)
      return guard(() => getBlob(bucket, key, range))
    },
    async find(key) {
      assertKey(key)
      return guard(() => findBlob(bucket, key))
    },
    async withFile(key, use) {
      assertKey(key)
      const blob = await guard(() => getBlob(bucket, key, undefined))
      if (!blob) return undefined
      try {
        return await spool.withFile(async ({ handle, path }) => {
          await writeChunks(handle, blob.stream, guard)
          return use(path)
        })
      } finally {
        blob.stream.destroy()
      }
    },
    async delete(keys) {
      for (const key of keys) assertKey(key)
      await guard(() => deleteAll(bucket, keys))
    },
    async list(under, options) {
      assertPrefix(under)
      return guard(() => listBlobs(bucket, under, options))
    },
    sweepUnfinished: before =>
      guard(async () => (await spool.sweep(before)) + (await sweepUploads(bucket, before, uploads.underWay))),
    async close() {
      client.destroy()
    },
  }
}

function describe({ bucket, prefix, endpoint }: BucketTarget): string {
  const name = `s3://${[bucket, prefix].filter(Boolean).join('/')}`
  return endpoint ? `${name} at ${endpoint}` : name
}

async function getBlob(bucket: Bucket, key: string, range: ByteRange | undefined) {
  const { client, name, prefix, outage, idleMs } = bucket
  const Range = range && `bytes=${range.start}-${range.end}`
  const command = new GetObjectCommand({ Bucket: name, Key: prefix + key, ...(Range ? { Range } : {}) })
  const found = await unlessMissing(client.send(command)).catch(error => {
    assert.notEqual((error as Error).name, 'InvalidRange', `the range lies outside of ${key}`)
    throw error
  })
  if (!found) return undefined
  const body = found.Body as Readable
  // Who fails before anybody reads it has no listener yet.
  body.on('error', () => undefined)
  const bytes = range ? Number(/\/(\d+)$/.exec(found.ContentRange ?? '')?.[1]) : found.ContentLength!
  if (range && !(range.start <= range.end && range.end < bytes)) {
    body.destroy()
    assert.fail(`the range lies outside of ${key}`)
  }
  const stream = streamOf({
    chunks: readPatiently(body, idleMs),
    translate: outage.translate,
    end: () => body.destroy(),
  })
  return { stream, bytes }
}

async function findBlob({ client, name, prefix }: Bucket, key: string): Promise<BlobInfo | undefined> {
  const found = await unlessMissing(client.send(new HeadObjectCommand({ Bucket: name, Key: prefix + key })))
  if (found) return { key, bytes: found.ContentLength!, modifiedAt: found.LastModified! }
  // The answer has no body, so it does not say which of them is missing: the blob or its bucket.
  const isThere = await unlessMissing(client.send(new HeadBucketCommand({ Bucket: name })))
  if (!isThere) throw Object.assign(new Error(`There is no bucket ${name}.`), { name: 'NoSuchBucket' })
  return undefined
}

async function deleteAll({ client, name, prefix }: Bucket, keys: readonly string[]) {
  for (let at = 0; at < keys.length; at += deletesMax) {
    const Objects = keys.slice(at, at + deletesMax).map(key => ({ Key: prefix + key }))
    const { Errors = [] } = await client.send(
      new DeleteObjectsCommand({ Bucket: name, Delete: { Objects, Quiet: true } }),
    )
    const failed = Errors.find(each => each.Code !== 'NoSuchKey')
    if (failed) {
      const { Code = 'InternalError', Message, Key } = failed
      throw Object.assign(new Error(`${Key} was not deleted: ${Message ?? Code}`), { name: Code, code: Code })
    }
  }
}

async function listBlobs(bucket: Bucket, under: string, options: { after?: string; limit: number }) {
  const { client, name, prefix } = bucket
  const found: BlobInfo[] = []
  let next: string | undefined
  do {
    const page = await client.send(
      new ListObjectsV2Command({
        Bucket: name,
        Prefix: prefix + under,
        MaxKeys: Math.min(pageMax, options.limit - found.length),
        ...(options.after === undefined ? {} : { StartAfter: prefix + options.after }),
        ...(next === undefined ? {} : { ContinuationToken: next }),
      }),
    )
    for (const each of page.Contents ?? []) {
      const key = each.Key!.slice(prefix.length)
      // Consoles make such objects to show a folder.
      if (key === '' || key.endsWith('/')) continue
      found.push({ key, bytes: each.Size!, modifiedAt: each.LastModified! })
    }
    next = page.IsTruncated ? page.NextContinuationToken : undefined
  } while (next !== undefined && found.length < options.limit)
  return found
}

async function sweepUploads({ client, name, prefix }: Bucket, before: Date, underWay: ReadonlySet<string>) {
  let swept = 0
  let from = {}
  for (;;) {
    const page = await client.send(new ListMultipartUploadsCommand({ Bucket: name, Prefix: prefix, ...from }))
    for (const { Key, UploadId, Initiated } of page.Uploads ?? []) {
      if (!Initiated || Initiated >= before || underWay.has(UploadId!)) continue
      await client.send(new AbortMultipartUploadCommand({ Bucket: name, Key, UploadId })).catch(unlessEnded)
      swept++
    }
    if (!page.IsTruncated) return swept
    from = { KeyMarker: page.NextKeyMarker, UploadIdMarker: page.NextUploadIdMarker }
  }
}

/** Somebody else may end it meanwhile. */
function unlessEnded(error: Error) {
  if (error.name !== 'NoSuchUpload') throw error
}
