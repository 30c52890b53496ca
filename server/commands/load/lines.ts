/** Sends records as NDJSON: a request a connection, in which piece follows piece while answers come back. */
import { once } from 'node:events'
import { type ClientRequest, type IncomingMessage, request as requestOpenly } from 'node:http'
import { request as requestSecurely } from 'node:https'
import { createInterface } from 'node:readline'
import { text as readAll } from 'node:stream/consumers'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { countLost, countReply, explain, type Sending } from './singles.ts'

/** Of one connection: what it sent and what was answered. Every line is answered once, in order. */
interface Lane {
  sent: number
  answered: number
  /** Pieces under way: after how many answered lines each is done, and when it was sent. */
  pieces: { upto: number; begun: number }[]
  /** Called when a piece is done, or nothing more will be. */
  wake: () => void
  error: unknown
}

/** How a line of answer looks. */
interface Told {
  line: number
  count?: number
  error?: { code: string; message: string }
}

const pieceLines = 1000
/** Of a connection under way: enough for the server never to wait. */
const piecesMax = 4

export async function sendLines(sending: Sending) {
  await Promise.all(Array.from({ length: sending.connections }, () => work(sending)))
}

async function work(sending: Sending) {
  const { target, tally, cut } = sending
  const send = target.url.protocol === 'https:' ? requestSecurely : requestOpenly
  const headers = { ...target.headers, 'content-type': 'application/x-ndjson' }
  const request = send(new URL(target.path, target.url), { method: 'POST', headers, signal: cut })
  const lane: Lane = { sent: 0, answered: 0, pieces: [], wake() {}, error: undefined }
  const over = (error: unknown) => {
    lane.error ??= error
    lane.wake()
  }
  request.on('error', over)
  const reading = once(request, 'response')
    .then(([response]) => readAnswers(sending, lane, response as IncomingMessage))
    .catch(over)
  const wake = () => lane.wake()
  sending.stop.addEventListener('abort', wake)
  await writePieces(sending, lane, request)
  sending.stop.removeEventListener('abort', wake)
  request.end()
  await reading
  if (lane.answered < lane.sent) {
    countLost(tally, { error: lane.error ?? new Error('cut off'), records: lane.sent - lane.answered })
  }
}

async function writePieces({ supply, stop }: Sending, lane: Lane, request: ClientRequest) {
  while (!stop.aborted && lane.error === undefined) {
    let piece = ''
    let lines = 0
    for (; lines < pieceLines; lines++) {
      const got = supply.next()
      const text = got instanceof Promise ? await got : got
      if (text === undefined) break
      piece += `${text}\n`
    }
    if (lines === 0) return
    lane.sent += lines
    lane.pieces.push({ upto: lane.sent, begun: performance.now() })
    request.write(piece)
    // The other connections get their share of few records.
    await nextTurn()
    while (lane.pieces.length >= piecesMax && lane.error === undefined && !stop.aborted) {
      await new Promise<void>(resolve => {
        lane.wake = resolve
      })
    }
  }
}

async function readAnswers(sending: Sending, lane: Lane, response: IncomingMessage) {
  if (response.statusCode !== 200) {
    const reply = { status: response.statusCode!, body: await readAll(response) }
    countReply(sending, { reply, records: lane.sent })
    lane.answered = lane.sent
    throw new Error(explain(reply.body))
  }
  for await (const line of createInterface({ input: response })) countLine(sending, lane, JSON.parse(line))
  // The end of the answer before the end of the request: the server has gone.
  throw new Error('the answer ended')
}

function countLine({ tally }: Sending, lane: Lane, { count = 1, error }: Told) {
  if (error) tally.count({ kind: error.code, taken: 0, refused: 1, lost: 0, example: error.message })
  else tally.count({ kind: 'taken', taken: count, refused: 0, lost: 0 })
  lane.answered += count
  while (lane.pieces.length > 0 && lane.pieces[0]!.upto <= lane.answered) {
    tally.time(performance.now() - lane.pieces.shift()!.begun)
  }
  lane.wake()
}
