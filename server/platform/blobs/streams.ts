import type { FileHandle } from 'node:fs/promises'
import { Readable } from 'node:stream'

/** Chunks are gathered to so many bytes before they are written. */
const writeBytes = 256 * 1024

/**
 * Chunks as a stream of bytes. Their errors go through `translate`; those of whoever reads do not, which a listener on
 * the stream could not tell apart.
 *
 * @param end lets go of what lies below, also where nothing was ever read
 */
export function streamOf(given: {
  chunks: AsyncIterable<Buffer>
  translate: (error: unknown) => unknown
  end: () => void
}): Readable {
  let ended = false

  async function* read() {
    try {
      yield* given.chunks
    } catch (error) {
      throw ended ? error : given.translate(error)
    }
  }

  const stream = Readable.from(read(), { objectMode: false })
  const destroy = stream._destroy.bind(stream)
  // Not when it is closed: that waits for the chunk that `read` waits for.
  stream._destroy = (error, done) => {
    ended = true
    given.end()
    destroy(error, done)
  }
  return stream
}

/**
 * Does something with the chunks of a stream that others fill. It may fail before anybody reads it, and is let go of in
 * any case. An abort ends the wait for more, also where the stream itself cannot be woken: one made of a generator that
 * waits is not destroyed before that wait is over.
 */
export async function withSource<T>(
  source: Readable,
  signal: AbortSignal | undefined,
  use: (chunks: AsyncIterable<Buffer>) => Promise<T>,
): Promise<T> {
  const ignore = () => undefined
  let stop: (reason: unknown) => void = ignore
  const abort = () => stop(signal!.reason)

  async function* read() {
    const iterator: AsyncIterator<Buffer> = source[Symbol.asyncIterator]()
    for (;;) {
      signal?.throwIfAborted()
      // Not a race against one promise of the abort, which would hold every chunk as long as it lasts.
      const next = await new Promise<IteratorResult<Buffer>>((resolve, reject) => {
        stop = reject
        iterator.next().then(resolve, reject)
      })
      if (next.done) return
      yield next.value
    }
  }

  source.on('error', ignore)
  signal?.addEventListener('abort', abort, { once: true })
  try {
    signal?.throwIfAborted()
    return await use(read())
  } finally {
    signal?.removeEventListener('abort', abort)
    // Its listener stays: what it has to say now interests nobody.
    source.destroy()
  }
}

/**
 * Reads no faster than the disk writes.
 *
 * @param guard is around what the disk does, not around the source
 * @returns how many bytes
 */
export async function writeChunks(
  handle: FileHandle,
  chunks: AsyncIterable<Buffer>,
  guard: <T>(work: () => Promise<T>) => Promise<T>,
): Promise<number> {
  let bytes = 0
  let gathered: Buffer[] = []
  let gatheredBytes = 0
  const flush = async () => {
    const chunk = gathered.length === 1 ? gathered[0]! : Buffer.concat(gathered)
    gathered = []
    gatheredBytes = 0
    bytes += await guard(() => writeAll(handle, chunk))
  }
  for await (const chunk of chunks) {
    gathered.push(chunk)
    gatheredBytes += chunk.length
    if (gatheredBytes >= writeBytes) await flush()
  }
  if (gatheredBytes > 0) await flush()
  return bytes
}

export async function writeAll(handle: FileHandle, bytes: Buffer): Promise<number> {
  await handle.writeFile(bytes)
  return bytes.length
}

/**
 * Takes chunks until there are so many bytes, or all.
 * @returns what was taken, and the rest where there may be more: chunks that begin with those taken
 */
export async function takeHead(
  chunks: AsyncIterable<Buffer>,
  bytesMax: number,
): Promise<{ head: Buffer; all?: undefined } | { head?: undefined; all: AsyncIterable<Buffer> }> {
  const iterator = chunks[Symbol.asyncIterator]()
  const taken: Buffer[] = []
  let bytes = 0
  while (bytes <= bytesMax) {
    const next = await iterator.next()
    if (next.done) return { head: Buffer.concat(taken) }
    taken.push(next.value)
    bytes += next.value.length
  }
  async function* readAll() {
    yield* taken.splice(0)
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) yield next.value
  }
  return { all: readAll() }
}

/** Chunks of a body, each of which must come within that time; a reader that takes its time has it. */
export async function* readPatiently(body: Readable, idleMs: number): AsyncGenerator<Buffer> {
  const late = () => body.destroy(Object.assign(new Error(`nothing came for ${idleMs} ms`), { code: 'ETIMEDOUT' }))
  let timer = setTimeout(late, idleMs)
  try {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      clearTimeout(timer)
      yield chunk
      timer = setTimeout(late, idleMs)
    }
  } finally {
    clearTimeout(timer)
  }
}
