/** One call: what is known of it, and how it ends early. */
import {
  type ConnectError,
  type ContextKey,
  createContextKey,
  type HandlerContext,
  type Interceptor,
} from '@connectrpc/connect'
import { errors } from '../errors.ts'
import type { Caller } from '../http/guard.ts'
import type { Log } from '../log.ts'
import { toStatus } from './status.ts'

export interface Call {
  requestId: string
  /** The client's, as text. */
  address: string
  log: Log
  caller: Caller | undefined
  /** Ends a stream with an error; what the client has sent is done first. */
  end(reason: ConnectError): void
}

export const callKey: ContextKey<Call | undefined> = createContextKey<Call | undefined>(undefined)

export function callOf(context: Pick<HandlerContext, 'values'>): Call {
  const call = context.values.get(callKey)
  if (call === undefined) throw new Error('This is no call of the gRPC server.')
  return call
}

/** The caller of a method whose access is `user` or `admin`. */
export function callerOf(context: Pick<HandlerContext, 'values'>): Caller {
  const { caller } = callOf(context)
  if (caller === undefined) throw errors.unauthenticated()
  return caller
}

/**
 * Translates what implementations throw, and ends a call when its signal says so (its deadline has passed, the client
 * has gone, the process stops), whatever the implementation is doing.
 */
export const settleCalls: Interceptor = next => async request => {
  const log = callOf({ values: request.contextValues }).log
  const { signal } = request
  try {
    const response = await untilAborted(signal, next(request))
    if (!response.stream) return response
    return { ...response, message: settleStream(response.message, { signal, log }) }
  } catch (error) {
    throw toStatus(error, log)
  }
}

function settleStream<T>(messages: AsyncIterable<T>, given: { signal: AbortSignal; log: Log }): AsyncIterable<T> {
  const { signal, log } = given
  return {
    [Symbol.asyncIterator]() {
      const iterator = messages[Symbol.asyncIterator]()
      return {
        async next() {
          try {
            return await untilAborted(signal, iterator.next())
          } catch (error) {
            // Not waited for: a generator that waits for something else goes on to wait.
            iterator.return?.().catch(() => {})
            throw toStatus(error, log)
          }
        },
        async return(value) {
          await iterator.return?.(value)
          return { done: true, value }
        },
      }
    },
  }
}

/** What `work` comes to, or the signal's reason where that is earlier. */
function untilAborted<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason)
    if (signal.aborted) onAbort()
    else signal.addEventListener('abort', onAbort, { once: true })
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}
