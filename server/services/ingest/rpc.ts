/** The ingest server: proto/capstan/ingest/v1. What comes here goes by route A, into its log. */
import { timingSafeEqual } from 'node:crypto'
import type { MessageInitShape } from '@bufbuild/protobuf'
import type { HandlerContext } from '@connectrpc/connect'
import { type AppError, isAppError } from '#platform/errors.ts'
import type { Caller } from '#platform/http/guard.ts'
import { callerOf } from '#platform/rpc/call.ts'
import type { Rpc } from '#platform/rpc/rpc.ts'
import {
  Ingest,
  type PlaceSchema,
  type RefusedSchema,
  type TakenSchema,
} from '../../proto/capstan/ingest/v1/ingest_pb.js'
import { errors } from './errors.ts'
import { prepareRecord } from './record.ts'
import { relayHeader } from './relay.ts'
import { type ReadyStream, type Streams, withCurrent } from './streams.ts'
import { type RecordLog, writeOffset } from './types.ts'

const writes = { access: 'user', scope: 'streams:write' } as const
/** Its key is looked at by the method itself. */
const relays = { access: 'optional', isOperation: true } as const
const refusedMax = 1000

export interface IngestRpcDeps {
  streams: Pick<Streams, 'get' | 'getWritable' | 'forget'>
  /** Route A's. */
  log: RecordLog
  /** What fronts show, in hexadecimal. */
  key: string
  onRefused: (stream: string, records: number) => void
}

interface Appended {
  taken: MessageInitShape<typeof TakenSchema>[]
  refused: MessageInitShape<typeof RefusedSchema>[]
}

export function addIngestRpc(rpc: Pick<Rpc, 'addService'>, deps: IngestRpcDeps) {
  const { streams, log } = deps

  /** @param from the index of the first of the records among all that the call brings */
  async function append(given: {
    caller: Caller
    name: string
    records: readonly string[]
    from: number
  }): Promise<Appended> {
    const find = () => streams.getWritable(given.caller, given.name)
    return withCurrent(streams, find, stream => appendTo(stream, given))
  }

  async function appendTo(stream: ReadyStream, given: { records: readonly string[]; from: number }): Promise<Appended> {
    const { runs, refused } = prepareRuns(stream, given)
    const taken = await Promise.all(
      runs.map(async ({ index, texts, keys }) => {
        const placed = await log.append(stream, { texts, keys })
        return { index: BigInt(index), count: BigInt(texts.length), firstOffset: writeOffset(placed) }
      }),
    )
    if (refused.length > 0) deps.onRefused(stream.name, refused.length)
    return { taken, refused }
  }

  /** @throws stream_not_found; stream_changed when the front means an older one of that name */
  async function getSame({ stream: name, streamId }: { stream: string; streamId: number }): Promise<ReadyStream> {
    const known = await streams.get(name)
    if (known.id === streamId) return known
    // It may be this process that knows an older one.
    streams.forget(known)
    const stream = await streams.get(name)
    if (stream.id !== streamId) throw errors.streamChanged(name)
    return stream
  }

  rpc.addService(Ingest, {
    rules: { append: writes, appendStream: writes, relay: relays },
    implementation: {
      append: ({ stream, records }, context) => append({ caller: callerOf(context), name: stream, records, from: 0 }),
      async appendStream(messages, context) {
        const caller = callerOf(context)
        const sum = { taken: 0, refused: 0, from: 0 }
        const firstRefused: Appended['refused'] = []
        /** One is written while the next is read and looked at. */
        let writing: Promise<void> = Promise.resolve()
        for await (const { stream: name, records } of messages) {
          const appended = append({ caller, name, records, from: sum.from })
          sum.from += records.length
          await writing
          writing = appended.then(({ taken, refused }) => {
            for (const { count } of taken) sum.taken += Number(count)
            sum.refused += refused.length
            firstRefused.push(...refused.slice(0, refusedMax - firstRefused.length))
          })
          // It is waited for in the next turn; a failure must not be called unheard until then.
          writing.catch(() => {})
        }
        await writing
        return { taken: BigInt(sum.taken), refused: BigInt(sum.refused), firstRefused }
      },
      async relay({ bunches }, context) {
        assertRelay(context, deps.key)
        const places = bunches.map(async (bunch): Promise<MessageInitShape<typeof PlaceSchema>> => {
          try {
            const { partition, first } = await log.append(await getSame(bunch), { texts: bunch.texts, keys: [] })
            return { ...(partition === undefined ? {} : { partition }), first: BigInt(first) }
          } catch (error) {
            if (!isAppError(error)) throw error
            return { code: error.code, message: error.message, status: error.status }
          }
        })
        return { places: await Promise.all(places) }
      },
    },
  })
}

interface Run {
  index: number
  texts: string[]
  keys: string[]
}

/** Records that are right and follow each other, so that their places do; and what is wrong with the others. */
function prepareRuns(stream: ReadyStream, given: { records: readonly string[]; from: number }) {
  const runs: Run[] = []
  const refused: Appended['refused'] = []
  let open: Run | undefined
  for (const [place, text] of given.records.entries()) {
    const index = given.from + place
    try {
      const record = prepareRecord(stream.rules, text)
      if (!open) {
        open = { index, texts: [], keys: [] }
        runs.push(open)
      }
      open.texts.push(record.text)
      open.keys.push(record.key)
    } catch (error) {
      if (!isAppError(error)) throw error
      refused.push(toRefused(index, error))
      open = undefined
    }
  }
  return { runs, refused }
}

function toRefused(index: number, { code, message }: AppError) {
  return { index: BigInt(index), code, message }
}

/** @throws relay_refused */
function assertRelay(context: HandlerContext, key: string) {
  const given = Buffer.from(context.requestHeader.get(relayHeader) ?? '')
  const wanted = Buffer.from(key)
  if (given.length !== wanted.length || !timingSafeEqual(given, wanted)) throw errors.relayRefused()
}
