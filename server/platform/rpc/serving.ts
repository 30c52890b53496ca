/** From an HTTP/2 stream to a handler and back, with its request id, its limits of time, its log line and its metrics. */
import { constants, type IncomingHttpHeaders, type ServerHttp2Stream } from 'node:http2'
import type { DescMethod } from '@bufbuild/protobuf'
import { Code, ConnectError, createContextValues } from '@connectrpc/connect'
import type { UniversalHandler, UniversalServerResponse } from '@connectrpc/connect/protocol'
import { messageOf } from '../errors.ts'
import { requestIdOf } from '../ids.ts'
import type { Log } from '../log.ts'
import { type Metrics, secondsBuckets } from '../metrics.ts'
import { readBody } from './body.ts'
import { type Call, callKey } from './call.ts'
import { errors } from './errors.ts'
import { refuse, sendReply } from './reply.ts'
import type { MethodRule } from './rpc.ts'
import { statusOf } from './status.ts'

/** A call in progress, as the server's end sees it. */
export interface OpenCall {
  /** Ends what would not end by itself: the client's messages, and a stream to it that is endless. */
  stop(reason: ConnectError): void
}

const ok = 0

export function makeServing(given: {
  log: Log
  metrics: Metrics
  settings: { TRUST_PROXY: boolean }
  idleMs: number
  handlers: ReadonlyMap<string, UniversalHandler>
  ruleOf: (method: DescMethod) => MethodRule
  /** Holds the calls in progress. */
  calls: Set<OpenCall>
}) {
  const { handlers, ruleOf, calls, settings, idleMs } = given
  const observe = makeObserver(given)

  async function serve(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, handler: UniversalHandler) {
    const { method } = handler
    const aborter = new AbortController()
    const isClientStream = method.methodKind === 'client_streaming' || method.methodKind === 'bidi_streaming'
    const body = readBody(stream, {
      waitMs: idleMs,
      whole: !isClientStream,
      late: () => statusOf(errors.streamIdle(idleMs)),
    })
    const end = (reason: ConnectError) => (isClientStream ? body.fail(reason) : aborter.abort(reason))
    const open: OpenCall = {
      stop(reason) {
        if (isClientStream || ruleOf(method).isEndless) end(reason)
      },
    }
    const requestId = requestIdOf(headers['x-request-id'])
    const log = given.log.child({ request_id: requestId })
    const call: Call = { requestId, address: addressOf(stream, headers, settings), log, caller: undefined, end }
    const finish = observe(handler, log)
    let reply: UniversalServerResponse | undefined
    calls.add(open)
    stream.once('close', () => {
      calls.delete(open)
      aborter.abort(new ConnectError('The client has gone.', Code.Canceled))
      finish(statusSent(stream, reply))
    })
    reply = await handler({
      httpVersion: '2.0',
      method: String(headers[':method']),
      url: `http://capstan${headers[':path']}`,
      header: toHeaders(headers),
      body,
      signal: aborter.signal,
      contextValues: createContextValues().set(callKey, call),
    })
    await sendReply(stream, reply, { takeMs: idleMs })
  }

  return (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
    stream.on('error', error => given.log.debug({ reason: error.message }, 'a gRPC call broke'))
    const path = String(headers[':path']).split('?', 1)[0]!
    const handler = handlers.get(path)
    if (handler === undefined) {
      return refuse(stream, { code: Code.Unimplemented, message: 'There is no such method; reflection lists them.' })
    }
    serve(stream, headers, handler).catch(error => {
      // Handlers answer errors; this one came while a client went away, or is a mistake of ours.
      if (!stream.destroyed) stream.close(constants.NGHTTP2_INTERNAL_ERROR)
      given.log[stream.aborted ? 'debug' : 'error']({ reason: messageOf(error), path }, 'a gRPC call was not answered')
    })
  }
}

/** Single answers are timed; streams last as long as they are used, and are counted. */
function makeObserver({ metrics }: { metrics: Metrics }) {
  const labels = ['method', 'code'] as const
  const duration = metrics.histogram('grpc_request_seconds', 'Time to answer a single request.', labels, secondsBuckets)
  const ended = metrics.counter('grpc_streams_total', 'Streams that have ended.', labels)
  const openStreams = metrics.gauge('grpc_open_streams', 'Streams that are open.', ['method'])

  return (handler: UniversalHandler, log: Log) => {
    const { method } = handler
    const name = `${handler.service.typeName}/${method.name}`
    const isStream = method.methodKind !== 'unary'
    const startedAt = performance.now()
    if (isStream) openStreams.inc({ method: name })
    return (status: number) => {
      const ms = performance.now() - startedAt
      const code = nameOf(status)
      if (isStream) {
        openStreams.dec({ method: name })
        ended.inc({ method: name, code })
      } else duration.observe({ method: name, code }, ms / 1000)
      const level = serverFaults.has(status) ? 'error' : status === ok ? 'debug' : 'info'
      log[level]({ rpc: name, code, ms: Math.round(ms * 10) / 10 }, 'answered')
    }
  }
}

const serverFaults = new Set<number>([Code.Internal, Code.Unknown, Code.Unavailable, Code.DataLoss])

/** As in `failed_precondition`. */
function nameOf(status: number): string {
  if (status === ok) return 'ok'
  return (Code[status] ?? 'Unknown').replace(/(?<=[a-z])[A-Z]/g, '_$&').toLowerCase()
}

/** What the client was told, or `canceled` where it did not stay to hear it. */
function statusSent(stream: ServerHttp2Stream, reply: UniversalServerResponse | undefined): number {
  const status = reply?.trailer?.get('grpc-status')
  const wasSent = stream.sentTrailers !== undefined || (stream.headersSent && reply?.trailer === undefined)
  if (!wasSent) return Code.Canceled
  return status == null ? Code.Unknown : Number(status)
}

function addressOf(
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  settings: { TRUST_PROXY: boolean },
): string {
  const forwarded = settings.TRUST_PROXY
    ? String(headers['x-forwarded-for'] ?? '')
        .split(',', 1)[0]!
        .trim()
    : ''
  return forwarded || (stream.session?.socket.remoteAddress ?? '')
}

/** Timers hold no longer times; whoever asks for more means no limit. */
const timeoutMsMax = 2 ** 31 - 1
const unitsMs: Record<string, number> = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 0.001, n: 0.000001 }

function toHeaders(headers: IncomingHttpHeaders): Headers {
  const taken = new Headers()
  for (const [name, value] of Object.entries(headers)) {
    if (name.startsWith(':') || value === undefined) continue
    for (const each of Array.isArray(value) ? value : [value]) taken.append(name, each)
  }
  const [, count, unit] = /^(\d{1,8})([HMSmun])$/.exec(taken.get('grpc-timeout') ?? '') ?? []
  if (unit !== undefined && Number(count) * unitsMs[unit]! > timeoutMsMax) taken.delete('grpc-timeout')
  return taken
}
