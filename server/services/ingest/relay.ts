/**
 * The front's end of route A where the ingest server is another process: records that come at the same time share a
 * call. A call that failed is not made again, since what became of it is not known: the caller is told.
 */
import { type Client, Code, ConnectError, createClient } from '@connectrpc/connect'
import { createGrpcTransport, Http2SessionManager } from '@connectrpc/connect-node'
import { type Batcher, makeBatcher, type Outcome } from '#platform/batch.ts'
import { AppError } from '#platform/errors.ts'
import type { Log } from '#platform/log.ts'
import { Ingest, type Place } from '../../proto/capstan/ingest/v1/ingest_pb.js'
import { weighBunch } from './bunch.ts'
import { errors } from './errors.ts'
import { makeOutage, type Outage } from './outage.ts'
import type { Bunch, Placed, RecordLog, StreamRow } from './types.ts'

interface Item {
  stream: Pick<StreamRow, 'id' | 'name'>
  bunch: Bunch
}

/** Of records that share a call, in characters; the server takes 4 MB. */
const callCharsMax = 1024 * 1024
const timeoutMs = 10_000
export const relayHeader = 'capstan-relay'

export interface Relay extends RecordLog {
  idle(): Promise<void>
  stop(): void
}

/** @param key what all processes share, in hexadecimal */
export function makeRelay(deps: { url: string; key: string; waitingMax: number; log: Log }): Relay {
  const sessions = new Http2SessionManager(deps.url)
  const client = createClient(Ingest, createGrpcTransport({ baseUrl: deps.url, sessionManager: sessions }))
  const outage = makeOutage(deps.log, {
    began: 'the ingest server (INGEST_RPC_URL) cannot be reached; the records of route A are answered 503 until it can',
    ended: 'the ingest server can be reached again',
  })
  // One call after the other: what is added first comes first.
  const calls: Batcher<Item, Placed> = makeBatcher<Item, Placed>({
    name: 'route A',
    size: callCharsMax,
    weigh: item => weighBunch(item.bunch),
    waitingMax: deps.waitingMax,
    isCommon: () => true,
    run: items => send({ client, key: deps.key, url: deps.url, outage, items }),
  })
  return {
    append: (stream, bunch) => calls.push({ stream, bunch }),
    idle: () => calls.idle(),
    stop: () => sessions.abort(),
  }
}

async function send(given: {
  client: Client<typeof Ingest>
  key: string
  url: string
  outage: Outage
  items: Item[]
}): Promise<Outcome<Placed>[]> {
  const { client, key, url, outage, items } = given
  try {
    const { places } = await client.relay(
      {
        bunches: items.map(({ stream, bunch }) => ({
          stream: stream.name,
          streamId: stream.id,
          texts: [...bunch.texts],
        })),
      },
      { headers: { [relayHeader]: key }, timeoutMs },
    )
    outage.worked()
    return places.map(toOutcome)
  } catch (error) {
    outage.failed({ err: error, url })
    throw errors.routeUnavailable(explain(error))
  }
}

function toOutcome({ partition, first, code, message, status }: Place): Outcome<Placed> {
  if (code !== '') return { error: new AppError({ code, message, status }) }
  return { value: { partition, first: Number(first) } }
}

function explain(error: unknown): string {
  if (error instanceof ConnectError && error.code === Code.DeadlineExceeded) return 'the ingest server does not answer'
  return 'the ingest server cannot be reached'
}
