/** `POST /v1/streams/:name/records`: one record, an array, or NDJSON for as long as the client sends. */
import { Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import type { Outcome } from '#platform/batch.ts'
import { asAppError, isAppError, errors as platformErrors } from '#platform/errors.ts'
import { callerOf } from '#platform/http/guard.ts'
import { type Answer, type IdempotencyKey, idempotencyKeyOf } from '#platform/http/idempotency.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Accepted, Appending } from './appending.ts'
import { errors } from './errors.ts'
import { type CutOff, type Lines, readLines } from './lines.ts'
import type { OpenLines } from './open-lines.ts'
import { appendRight, type Body, prepareAll, readBody, showError } from './requests.ts'
import type { IngestSettings } from './settings.ts'
import { Shown } from './shapes.ts'
import { type ReadyStream, type Streams, withCurrent } from './streams.ts'
import type { Prepared } from './types.ts'

export interface RecordRoutesDeps {
  streams: Pick<Streams, 'getWritable' | 'forget'>
  appending: Appending
  settings: IngestSettings
  openLines: OpenLines
  onRefused: (stream: string, records: number) => void
}

const writes = { access: 'user', scope: 'streams:write' } as const
const tags = ['streams']
const ndjson = 'application/x-ndjson'
const linesTypes = [ndjson, 'application/jsonl']

export function addRecordRoutes(app: HttpApp, deps: RecordRoutesDeps) {
  takeBodiesAsBytes(app, deps.settings.INGEST_ARRAY_BYTES_MAX)
  app.addContentTypeParser(linesTypes, (_request, payload, done) => done(null, payload))
  app.post(
    '/v1/streams/:name/records',
    {
      config: { ...writes, isUnending: bringsLines },
      bodyLimit: deps.settings.INGEST_ARRAY_BYTES_MAX,
      schema: {
        tags,
        summary: 'Add records to a stream',
        description:
          'One JSON object: 201 with its offset, or its error. A JSON array: 200 with an outcome for each, 422 when ' +
          'none could be taken. `application/x-ndjson`: for as long as you send, answered line by line while you do: ' +
          '`{"line","count","offset","route"}` for lines that follow each other and are durable, ' +
          '`{"line","error"}` for one that was not taken.',
        params: Type.Object({ name: Type.String() }),
        response: { 200: Shown.Outcomes, 201: Shown.Accepted },
      },
    },
    async (request, reply) => {
      const find = () => deps.streams.getWritable(callerOf(request), request.params.name)
      if (request.body instanceof Readable) {
        await find()
        return answerLines(deps, { request, reply: reply as unknown as FastifyReply, find })
      }
      const answer = await withCurrent(deps.streams, find, stream => takeBody(deps, { request, stream, find }))
      return reply.status(answer.status as 200).send(answer.body as never)
    },
  )
}

/** JSON is looked at by us, since equal keys and the texts of single records are lost in parsing. */
export function takeBodiesAsBytes(app: HttpApp, bodyLimit: number) {
  app.removeContentTypeParser('application/json')
  app.addContentTypeParser('application/json', { parseAs: 'buffer', bodyLimit }, (_request, body, done) =>
    done(null, body),
  )
}

/** Such a body may take as long as it likes; `open-lines.ts` sees to those that are idle. */
function bringsLines(request: FastifyRequest): boolean {
  const [type = ''] = (request.headers['content-type'] ?? '').split(';', 1)
  return linesTypes.includes(type.trim().toLowerCase())
}

/** The stream as it is declared now: it may be changed, deleted and declared anew while records come. */
type Find = () => Promise<ReadyStream>

interface Given {
  request: FastifyRequest
  stream: ReadyStream
  find: Find
}

/** What a request with a key was answered the first time comes before what is wrong with it by now. */
async function takeBody(deps: RecordRoutesDeps, given: Given): Promise<Answer> {
  const { request, stream } = given
  const key = idempotencyKeyOf(request)
  let body: Body
  try {
    body = readBody(stream.rules, request.body, deps.settings.INGEST_ARRAY_MAX)
  } catch (error) {
    const remembered = key && (await deps.appending.recall(key))
    if (remembered) return remembered
    deps.onRefused(stream.name, 1)
    throw error
  }
  return 'one' in body ? takeOne(deps, stream, body.one, key) : takeSeveral(deps, given, body.several, key)
}

async function takeOne(
  { appending }: RecordRoutesDeps,
  stream: ReadyStream,
  record: Prepared,
  key: IdempotencyKey | undefined,
): Promise<Answer> {
  if (!key) return { status: 201, body: await appending.appendOne(stream, record) }
  return appending.appendOnce({ stream, records: [record], key, show: ([body]) => ({ status: 201, body }) })
}

async function takeSeveral(
  deps: RecordRoutesDeps,
  { stream, find }: Given,
  prepared: Outcome<Prepared>[],
  key: IdempotencyKey | undefined,
): Promise<Answer> {
  const right = prepared.flatMap(each => ('value' in each ? [each.value] : []))
  const remembered = key && right.length === 0 ? await deps.appending.recall(key) : undefined
  if (remembered) return remembered
  if (right.length < prepared.length) deps.onRefused(stream.name, prepared.length - right.length)
  if (!key || right.length === 0) return showOutcomes(await appendRight({ ...deps, stream, find }, prepared))
  return deps.appending.appendOnce({
    stream,
    records: right,
    key,
    show: accepted => {
      let next = 0
      return showOutcomes(prepared.map(each => ('value' in each ? { value: accepted[next++]! } : each)))
    },
  })
}

function showOutcomes(outcomes: readonly Outcome<Accepted>[]): Answer {
  const accepted = outcomes.filter(each => 'value' in each).length
  // When nothing was taken for a reason that is not the records', the request failed as a whole.
  const trouble = outcomes.find(each => 'error' in each && !(isAppError(each.error) && each.error.status < 500))
  if (accepted === 0 && trouble) throw (trouble as { error: unknown }).error
  return {
    status: accepted === 0 ? 422 : 200,
    body: {
      accepted,
      refused: outcomes.length - accepted,
      records: outcomes.map(each => ('value' in each ? each.value : { error: showError(asAppError(each.error)) })),
    },
  }
}

/** Answers while the client sends. */
function answerLines(
  deps: RecordRoutesDeps,
  { request, reply, find }: { request: FastifyRequest; reply: FastifyReply; find: Find },
) {
  const body = deps.openLines.open(request.raw, reply.raw)
  const answers = Readable.from(takeLines(deps, find, body), { objectMode: false })
  return reply.status(200).header('content-type', ndjson).header('cache-control', 'no-store').send(answers)
}

/** So many pieces of a body are under way at once: while one is written, the next is looked at. */
const piecesMax = 4

type Event = { answer: string } | { next: IteratorResult<Lines, CutOff | undefined> }

/** Answers come in the order of the lines, each as soon as it is known, whether more lines come or not. */
async function* takeLines(deps: RecordRoutesDeps, find: Find, body: AsyncIterable<Buffer>): AsyncGenerator<string> {
  const lines = readLines(body, { lineBytesMax: deps.settings.INGEST_RECORD_BYTES_MAX })
  const underWay: Promise<Event>[] = []
  let reading: Promise<Event> | undefined = lines.next().then(next => ({ next }))
  while (reading || underWay.length > 0) {
    const events: Promise<Event>[] = underWay.slice(0, 1)
    if (reading && underWay.length < piecesMax) events.push(reading)
    const event = await Promise.race(events)
    if ('answer' in event) {
      underWay.shift()
      if (event.answer !== '') yield event.answer
    } else if (event.next.done) {
      reading = undefined
      if (event.next.value) underWay.push(Promise.resolve({ answer: tellCutOff(event.next.value) }))
    } else {
      const taken: Promise<Event> = takePiece(deps, find, event.next.value).then(answer => ({ answer }))
      // A failure is seen in its turn.
      taken.catch(() => {})
      underWay.push(taken)
      reading = lines.next().then(next => ({ next }))
    }
  }
}

async function takePiece(deps: RecordRoutesDeps, find: Find, { first, texts }: Lines): Promise<string> {
  const lines = texts.map((text, index) => ({ text, number: first + index })).filter(({ text }) => text.trim() !== '')
  if (lines.length === 0) return ''
  let stream: ReadyStream
  try {
    stream = await find()
  } catch (error) {
    return writeAnswers(
      lines,
      lines.map(() => ({ error })),
    )
  }
  const prepared = prepareAll(
    stream.rules,
    lines.map(line => line.text),
  )
  const refused = prepared.filter(each => 'error' in each).length
  if (refused > 0) deps.onRefused(stream.name, refused)
  const outcomes = await appendRight({ ...deps, stream, find }, prepared)
  return writeAnswers(lines, outcomes)
}

/** A line of answer for each run of lines whose records follow each other, and for each line that was not taken. */
function writeAnswers(lines: readonly { number: number }[], outcomes: readonly Outcome<Accepted>[]): string {
  let text = ''
  let run: { line: number; count: number; offset: string; route: string; next: string } | undefined
  const close = () => {
    if (run) text += `{"line":${run.line},"count":${run.count},"offset":"${run.offset}","route":"${run.route}"}\n`
    run = undefined
  }
  for (const [index, outcome] of outcomes.entries()) {
    const { number } = lines[index]!
    if ('error' in outcome) {
      close()
      text += `${JSON.stringify({ line: number, error: showError(asAppError(outcome.error)) })}\n`
      continue
    }
    const { offset, route } = outcome.value
    if (run && run.route === route && run.next === offset && run.line + run.count === number) run.count++
    else {
      close()
      run = { line: number, count: 1, offset, route, next: '' }
    }
    run.next = following(offset)
  }
  close()
  return text
}

/** The offset of the record behind that one, where it follows it. */
function following(offset: string): string {
  const dot = offset.indexOf('.')
  return `${offset.slice(0, dot + 1)}${Number(offset.slice(dot + 1)) + 1}`
}

function tellCutOff({ number, isEmpty, error: why }: CutOff): string {
  const cutOff = isEmpty
    ? platformErrors.badRequest('The body was cut off behind the last whole line.')
    : errors.recordCutOff()
  const error = isAppError(why) ? why : cutOff
  return `${JSON.stringify({ line: number, error: showError(error) })}\n`
}
