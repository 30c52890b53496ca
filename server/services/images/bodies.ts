/** Reads the bodies of uploads: bare files and forms, from senders that may be slow, lie or go away. */
import { once } from 'node:events'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { Busboy, type BusboyFileStream, type BusboyInstance } from '@fastify/busboy'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { isAppError } from '#platform/errors.ts'
import { errors } from './errors.ts'
import type { ImagesSettings } from './settings.ts'

type Pace = Pick<ImagesSettings, 'IMAGE_IDLE_MS' | 'IMAGE_UPLOAD_MS'>

/**
 * The chunks of a stream whose sender must go on sending. Time in which nobody asks for a chunk does not count as idle:
 * a slow store is not the sender's fault. The stream is left as it is, so that an answer can go over its socket.
 * @throws body_too_slow, body_cut_off
 */
export async function* inTime(source: Readable, pace: Pace): AsyncGenerator<Buffer> {
  const chunks = source.iterator({ destroyOnReturn: false })
  let giveUp: (error: unknown) => void = () => {}
  const tooSlow = new Promise<never>((_, reject) => {
    giveUp = reject
  })
  // The body may be whole before it is too late.
  tooSlow.catch(() => {})
  const whole = setTimeout(() => giveUp(errors.bodyTooSlow()), pace.IMAGE_UPLOAD_MS)
  let idle: NodeJS.Timeout | undefined
  try {
    for (;;) {
      idle = setTimeout(() => giveUp(errors.bodyTooSlow()), pace.IMAGE_IDLE_MS)
      const next = await Promise.race([chunks.next(), tooSlow])
      clearTimeout(idle)
      if (next.done) return
      yield next.value as Buffer
    }
  } catch (error) {
    throw isAppError(error) ? error : errors.bodyCutOff()
  } finally {
    clearTimeout(idle)
    clearTimeout(whole)
  }
}

export interface Form<T> {
  /** What `onFile` answered. */
  file: T
  /** As the sender calls it, which may be anything. */
  fileName: string | undefined
  fields: Record<string, string>
}

const fieldBytesMax = 1024
const headersMax = 20
/** Of a form, beside its file. */
export const formBytesMax = 64 * 1024

/**
 * Reads a form with one file. `onFile` is given its bytes as they come; the form is whole when this resolves.
 * @throws part_missing, part_unexpected, form_malformed, and what `onFile` throws
 */
export async function readForm<T>(
  request: FastifyRequest,
  given: { part: string; fields: readonly string[]; pace: Pace; onFile: (bytes: AsyncIterable<Buffer>) => Promise<T> },
): Promise<Form<T>> {
  const busboy = openForm(request, given.fields.length)
  const fields: Record<string, string> = {}
  let file: { stream: BusboyFileStream; done: Promise<T>; name: string } | undefined
  const failed = Promise.withResolvers<never>()
  failed.promise.catch(() => {})

  busboy.on('file', (part, stream, name) => {
    // Heard even where nobody reads it: the form may fail at any byte.
    stream.on('error', () => {})
    if (part !== given.part || file !== undefined) {
      stream.resume()
      return failed.reject(file === undefined ? errors.partMissing(given.part) : errors.partUnexpected(part))
    }
    const done = given.onFile(stream as Readable)
    done.catch(failed.reject)
    file = { stream, done, name }
  })
  busboy.on('field', (name, value, nameIsCut, valueIsCut) => {
    const isKnown = given.fields.includes(name) && !(name in fields) && !nameIsCut && !valueIsCut
    if (isKnown) fields[name] = value
    else failed.reject(name === given.part ? errors.partMissing(given.part) : errors.partUnexpected(name.slice(0, 40)))
  })
  for (const event of ['partsLimit', 'filesLimit', 'fieldsLimit'] as const) {
    busboy.on(event, () => failed.reject(errors.partUnexpected('one too many')))
  }
  const parsed = once(busboy, 'finish')
  parsed.catch(() => {})
  const over = new AbortController()
  try {
    const fed = feed(busboy, inTime(request.raw, given.pace), over.signal)
    fed.catch(() => {})
    await Promise.race([fed, failed.promise])
    await Promise.race([parsed, failed.promise])
    if (file === undefined) throw errors.partMissing(given.part)
    return { file: await file.done, fileName: file.name, fields }
  } catch (error) {
    over.abort()
    const known = isAppError(error) ? error : errors.formMalformed()
    file?.stream.destroy(known)
    busboy.destroy()
    // What it received is given back before the answer goes out.
    await file?.done.catch(() => {})
    throw known
  }
}

function openForm(request: FastifyRequest, fieldsMax: number): BusboyInstance {
  const contentType = request.headers['content-type'] ?? ''
  try {
    return new Busboy({
      headers: { 'content-type': contentType },
      limits: {
        files: 2,
        fields: fieldsMax + 1,
        fieldSize: fieldBytesMax,
        headerPairs: headersMax,
        parts: fieldsMax + 3,
      },
    })
  } catch {
    throw errors.formMalformed()
  }
}

async function feed(busboy: BusboyInstance, chunks: AsyncIterable<Buffer>, signal: AbortSignal) {
  for await (const chunk of chunks) {
    if (signal.aborted) return
    if (!busboy.write(chunk)) await once(busboy, 'drain', { signal })
  }
  busboy.end()
}

const letGoMs = 1000

/**
 * Before a body is answered that nobody will read to its end: what still comes is thrown away for a moment, so that the
 * sender hears the answer and not a broken connection, which is closed after it.
 */
export async function letGoOf(request: FastifyRequest, reply: FastifyReply) {
  const { raw } = request
  if (raw.readableEnded || raw.destroyed) return
  reply.header('connection', 'close')
  raw.resume()
  const over = new AbortController()
  await Promise.race([
    once(raw, 'close', { signal: over.signal }).catch(() => {}),
    once(raw, 'end', { signal: over.signal }).catch(() => {}),
    sleep(letGoMs, undefined, { signal: over.signal }).catch(() => {}),
  ])
  over.abort()
}
