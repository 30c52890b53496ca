/** Who sends messages: a thread of the benchmark's process, over 128 requests at once or one pipelined WebSocket. */
import { makeHttpClient } from '../support/http-client.ts'
import { connectLive } from '../support/live-client.ts'
import { latencyOf } from '../support/measure.ts'
import { makeLoadThread } from '../support/thread.ts'

export interface Load {
  port: number
  /** A path, or `socket`. */
  target: string
  /** The caller's direct chats, with peer1, peer2, … */
  chatIds: readonly string[]
  milliseconds: number
}

export interface LoadResult {
  sent: number
  refused: number
  /** Of requests, in milliseconds. */
  p50?: number
  p99?: number
}

const connections = 128
/** Unanswered calls on the one WebSocket. */
const pipelined = 512
const text = 'A message as people write it to one another.'

async function sendRequests({ port, target, chatIds, milliseconds }: Load): Promise<LoadResult> {
  const times: number[] = []
  let refused = 0
  const end = performance.now() + milliseconds
  await Promise.all(
    Array.from({ length: connections }, async () => {
      const client = await makeHttpClient(port)
      while (performance.now() < end) {
        const peer = 1 + Math.floor(Math.random() * chatIds.length)
        const begun = performance.now()
        const ok = await client.post(target, `{"chat":"bench:peer${peer}","text":"${text}","sender":"bench"}`)
        if (ok) times.push(performance.now() - begun)
        else refused++
      }
      client.close()
    }),
  )
  return { sent: times.length, refused, ...latencyOf(times) }
}

/** Tops up what is unanswered whenever answers come. */
async function sendOverSocket({ port, chatIds, milliseconds }: Load): Promise<LoadResult> {
  let sent = 0
  let answered = 0
  let refused = 0
  const done = Promise.withResolvers<void>()
  const end = performance.now() + milliseconds
  const topUp = () => {
    if (performance.now() >= end) {
      if (answered === sent) done.resolve()
      return
    }
    const frames: string[] = []
    while (sent - answered < pipelined) {
      const chat = chatIds[Math.floor(Math.random() * chatIds.length)]!
      frames.push(
        `{"type":"call","id":"${sent++}","call":"chats.send","params":{"chat_id":"${chat}","text":"${text}"}}`,
      )
    }
    if (frames.length > 0) client.sendTexts(frames)
  }
  const client = await connectLive({
    port,
    token: 'bench',
    onText(payload) {
      const frame = JSON.parse(payload.toString()) as { type: string; results?: { error?: unknown }[] }
      if (frame.type !== 'results') return
      answered += frame.results!.length
      refused += frame.results!.filter(result => result.error).length
      topUp()
    },
    onClose: reason => done.reject(new Error(`The connection was closed: ${reason}`)),
  })
  topUp()
  await done.promise
  client.close()
  return { sent: answered - refused, refused }
}

export const makeSender = makeLoadThread<Load, LoadResult>(import.meta.url, load =>
  load.target === 'socket' ? sendOverSocket(load) : sendRequests(load),
)
