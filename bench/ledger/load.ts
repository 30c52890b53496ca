/**
 * Who sends transfers: a thread of the benchmark's process, on sockets of its own, so that it takes little of the
 * machine.
 */
import { randomUUID } from 'node:crypto'
import { createClient } from '@connectrpc/connect'
import { createGrpcTransport } from '@connectrpc/connect-node'
import { Ledger } from '../../server/proto/capstan/ledger/v1/ledger_pb.js'
import { makeHttpClient } from '../support/http-client.ts'
import { latencyOf } from '../support/measure.ts'
import { makeLoadThread } from '../support/thread.ts'

export interface Choice {
  name: string
  accounts: number
  /** How accounts are chosen; `hot` has one on one side of every transfer. */
  by: 'uniform' | 'zipf' | 'hot'
}

export const choices: Choice[] = [
  { name: '1,000 accounts, uniform', accounts: 1000, by: 'uniform' },
  { name: '1,000 accounts, Zipf 1.0', accounts: 1000, by: 'zipf' },
  { name: '100,000 accounts, uniform', accounts: 100_000, by: 'uniform' },
  { name: '100,000 accounts, Zipf 1.0', accounts: 100_000, by: 'zipf' },
  { name: 'one hot account of 1,000', accounts: 1000, by: 'hot' },
]

export interface Way {
  door: 'http' | 'grpc'
  /** A path, or a method of the gRPC service. */
  target: string
  connections: number
  /** Transfers in a request or a stream; 0 for one that is the body itself. */
  lines: number
}

export interface Load {
  port: number
  way: Way
  choice: Choice
  milliseconds: number
}

interface LoadResult {
  transfers: number
  refused: number
  /** Of requests, in milliseconds; a stream has none. */
  p50?: number
  p99?: number
}

/** Sends for a while and answers what came of it. Runs in a thread. */
function sendLoad(load: Load): Promise<LoadResult> {
  return load.way.door === 'grpc' ? sendStreams(load) : sendRequests(load)
}

/** A stream a connection, with as much in flight as the server takes. */
async function sendStreams(load: Load): Promise<LoadResult> {
  const pick = makePicker(load.choice)
  const { connections, lines } = load.way
  const end = performance.now() + load.milliseconds
  async function* messages() {
    while (performance.now() < end) {
      yield {
        lines: Array.from({ length: lines }, () => {
          const [from, to] = pick()
          const amount = BigInt(1 + Math.floor(Math.random() * 100))
          const value = { from: BigInt(from), to: BigInt(to), amount, currency: 'USD' }
          return { what: { case: 'transfer' as const, value }, idempotencyKey: randomUUID() }
        }),
      }
    }
  }
  const answers = await Promise.all(
    Array.from({ length: connections }, () => {
      const transport = createGrpcTransport({ baseUrl: `http://127.0.0.1:${load.port}` })
      return createClient(Ledger, transport).streamTransfers(messages(), {
        headers: { authorization: 'Bearer bench' },
      })
    }),
  )
  const sum = (field: 'done' | 'refused') => answers.reduce((total, answer) => total + Number(answer[field]), 0)
  return { transfers: sum('done'), refused: sum('refused') }
}

async function sendRequests(load: Load): Promise<LoadResult> {
  const pick = makePicker(load.choice)
  const { target, lines, connections } = load.way
  const times: number[] = []
  let transfers = 0
  let refused = 0
  const end = performance.now() + load.milliseconds
  await Promise.all(
    Array.from({ length: connections }, async () => {
      const client = await makeHttpClient(load.port)
      while (performance.now() < end) {
        const begun = performance.now()
        const ok = await client.post(target, writeBody(pick, lines), { 'idempotency-key': randomUUID() })
        times.push(performance.now() - begun)
        if (ok) transfers += lines || 1
        else refused++
      }
      client.close()
    }),
  )
  return { transfers, refused, ...latencyOf(times) }
}

type Picker = () => [from: number, to: number]

function makePicker({ accounts, by }: Choice): Picker {
  const uniform = () => 1 + Math.floor(Math.random() * accounts)
  const one = by === 'zipf' ? makeZipf(accounts) : uniform
  return () => {
    const first = by === 'hot' ? 1 : one()
    let second = by === 'hot' ? uniform() : one()
    if (second === first) second = (first % accounts) + 1
    return Math.random() < 0.5 ? [first, second] : [second, first]
  }
}

/** The k-th account is chosen in proportion to 1/k. */
function makeZipf(count: number): () => number {
  const sums = new Float64Array(count)
  let sum = 0
  for (let k = 0; k < count; k++) {
    sum += 1 / (k + 1)
    sums[k] = sum
  }
  return () => {
    const wanted = Math.random() * sum
    let [low, high] = [0, count - 1]
    while (low < high) {
      const middle = (low + high) >> 1
      if (sums[middle]! < wanted) low = middle + 1
      else high = middle
    }
    return low + 1
  }
}

function writeBody(pick: Picker, lines: number): string {
  const line = () => {
    const [from, to] = pick()
    return `{"from":"${from}","to":"${to}","amount":"${1 + Math.floor(Math.random() * 100)}","currency":"USD"}`
  }
  return lines === 0 ? line() : `{"transfers":[${Array.from({ length: lines }, line).join(',')}]}`
}

export const makeSender = makeLoadThread<Load, LoadResult>(import.meta.url, sendLoad)
