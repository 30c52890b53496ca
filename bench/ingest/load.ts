/** Who sends records: a thread of the benchmark's process. */
import { request } from 'node:http'
import { createClient } from '@connectrpc/connect'
import { createGrpcTransport } from '@connectrpc/connect-node'
import { Ingest } from '../../server/proto/capstan/ingest/v1/ingest_pb.js'
import { generateCourses } from '../../server/services/ingest/courses.ts'
import { makeHttpClient } from '../support/http-client.ts'
import { latencyOf } from '../support/measure.ts'
import { makeLoadThread } from '../support/thread.ts'

export interface Load {
  port: number
  /** A path takes one record a request; `ndjson` and `grpc` are streams of them. */
  target: string
  /** Requests go on for so long. */
  milliseconds?: number
  /** Streams send so many. */
  records?: number
}

export interface LoadResult {
  taken: number
  refused: number
  tookMs: number
  p50?: number
  p99?: number
}

const connections = 128
const streams = 2
const distinct = 10_000
const linesInChunk = 1000
const texts = [...generateCourses({ count: distinct, seed: 1 })].map(record => JSON.stringify(record))

async function sendRequests({ port, target, milliseconds = 0 }: Load): Promise<LoadResult> {
  const times: number[] = []
  let refused = 0
  let next = 0
  const begun = performance.now()
  await Promise.all(
    Array.from({ length: connections }, async () => {
      const client = await makeHttpClient(port)
      while (performance.now() < begun + milliseconds) {
        const sent = performance.now()
        if (await client.post(target, texts[next++ % distinct]!)) times.push(performance.now() - sent)
        else refused++
      }
      client.close()
    }),
  )
  return { taken: times.length, refused, tookMs: performance.now() - begun, ...latencyOf(times) }
}

/** Each stream sends its part of the records, and has them answered while it does. */
async function sendStreams(load: Load): Promise<LoadResult> {
  const each = load.records! / streams
  const begun = performance.now()
  const send = load.target === 'grpc' ? sendCalls : sendLines
  const taken = await Promise.all(Array.from({ length: streams }, () => send(load.port, each)))
  const sum = taken.reduce((total, count) => total + count, 0)
  return { taken: sum, refused: load.records! - sum, tookMs: performance.now() - begun }
}

async function sendLines(port: number, records: number): Promise<number> {
  const path = '/v1/streams/courses/records'
  const headers = { 'content-type': 'application/x-ndjson' }
  const sender = request({ port, host: '127.0.0.1', path, method: 'POST', headers })
  const answered = new Promise<number>((resolve, reject) => {
    sender.once('error', reject)
    sender.once('response', async response => {
      let text = ''
      let taken = 0
      for await (const chunk of response.setEncoding('utf8')) {
        const lines = (text + chunk).split('\n')
        text = lines.pop()!
        for (const line of lines) taken += (JSON.parse(line) as { count?: number }).count ?? 0
      }
      resolve(taken)
    })
  })
  const chunk = `${texts.slice(0, linesInChunk).join('\n')}\n`
  for (let sent = 0; sent < records; sent += linesInChunk) {
    if (!sender.write(chunk)) await new Promise(resolve => sender.once('drain', resolve))
  }
  sender.end()
  return answered
}

async function sendCalls(port: number, records: number): Promise<number> {
  const client = createClient(Ingest, createGrpcTransport({ baseUrl: `http://127.0.0.1:${port}` }))
  async function* messages() {
    const some = texts.slice(0, linesInChunk)
    for (let sent = 0; sent < records; sent += linesInChunk) yield { stream: 'courses', records: some }
  }
  const { taken } = await client.appendStream(messages(), { headers: { authorization: 'Bearer bench' } })
  return Number(taken)
}

export const makeSender = makeLoadThread<Load, LoadResult>(import.meta.url, load =>
  load.target.startsWith('/') ? sendRequests(load) : sendStreams(load),
)
