import type { FileHandle } from 'node:fs/promises'
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  PutObjectCommand,
  type S3Client,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import { makeGate } from '../live/gate.ts'

/** S3 takes no smaller parts, but for the last. */
const partBytesMin = 5 * 1024 * 1024
const partsMax = 10_000
/** Of all uploads together, so that memory is bounded whatever their number. A part in memory can be sent again. */
const partsAtOnce = 8

export interface Uploads {
  putBytes(key: string, bytes: Buffer, signal: AbortSignal | undefined): Promise<void>
  putFile(key: string, file: { handle: FileHandle; bytes: number }, signal: AbortSignal | undefined): Promise<void>
  /** Ids of multipart uploads that this process is at. */
  underWay: ReadonlySet<string>
}

/**
 * What lib-storage's `Upload` does, with three differences: parts of all uploads together are bounded, an abort ends
 * what is on its way before it is answered, and nothing begins before all bytes are at hand.
 */
export function makeUploads({ client, bucket }: { client: S3Client; bucket: string }): Uploads {
  const gate = makeGate(partsAtOnce)
  const underWay = new Set<string>()

  async function putBytes(key: string, bytes: Buffer, signal?: AbortSignal) {
    await client.send(
      new PutObjectCommand({ Bucket: bucket, Key: key, Body: bytes, ContentLength: bytes.length }),
      options(signal),
    )
  }

  async function putParts(key: string, file: { handle: FileHandle; bytes: number }, signal?: AbortSignal) {
    const at = { Bucket: bucket, Key: key }
    const { UploadId } = await client.send(new CreateMultipartUploadCommand(at), options(signal))
    const upload = { ...at, UploadId }
    underWay.add(UploadId!)
    try {
      const Parts = await sendAll(partsOf(file.bytes), signal, async (part, stop) => {
        const Body = await readPart(file.handle, part)
        const command = new UploadPartCommand({ ...upload, PartNumber: part.number, Body, ContentLength: part.bytes })
        return { PartNumber: part.number, ETag: (await client.send(command, options(stop))).ETag }
      })
      await client.send(new CompleteMultipartUploadCommand({ ...upload, MultipartUpload: { Parts } }), options(signal))
    } catch (error) {
      // Where the store is away, the sweep does it later.
      await client.send(new AbortMultipartUploadCommand(upload)).catch(() => undefined)
      throw error
    } finally {
      underWay.delete(UploadId!)
    }
  }

  /** All or none: the first failure ends the others before it is told. */
  async function sendAll<T>(
    parts: Part[],
    signal: AbortSignal | undefined,
    send: (part: Part, stop: AbortSignal) => Promise<T>,
  ): Promise<T[]> {
    const failing = new AbortController()
    const stop = signal ? AbortSignal.any([signal, failing.signal]) : failing.signal
    const sent = parts.map(part =>
      gate(async () => {
        stop.throwIfAborted()
        return send(part, stop)
      }),
    )
    try {
      return await Promise.all(sent)
    } catch (error) {
      failing.abort()
      await Promise.allSettled(sent)
      throw error
    }
  }

  return {
    underWay,
    putBytes,
    async putFile(key, file, signal) {
      if (file.bytes > partBytesMin) return putParts(key, file, signal)
      return gate(async () => {
        signal?.throwIfAborted()
        await putBytes(key, await readPart(file.handle, { start: 0, bytes: file.bytes }), signal)
      })
    },
  }
}

interface Part {
  number: number
  start: number
  bytes: number
}

function partsOf(bytes: number): Part[] {
  const partBytes = Math.max(partBytesMin, Math.ceil(bytes / partsMax))
  return Array.from({ length: Math.ceil(bytes / partBytes) }, (_, index) => {
    const start = index * partBytes
    return { number: index + 1, start, bytes: Math.min(partBytes, bytes - start) }
  })
}

async function readPart(handle: FileHandle, { start, bytes }: Pick<Part, 'start' | 'bytes'>): Promise<Buffer> {
  const part = Buffer.allocUnsafe(bytes)
  let filled = 0
  while (filled < bytes) {
    const { bytesRead } = await handle.read(part, filled, bytes - filled, start + filled)
    if (bytesRead === 0) throw new Error('The file became shorter while it was put into the blob store.')
    filled += bytesRead
  }
  return part
}

function options(signal: AbortSignal | undefined) {
  return signal ? { abortSignal: signal } : {}
}
