/**
 * Calls over a WebSocket.
 *
 * States of a call: waiting (it has come) → begun → answered. A connection's calls are begun in the order in which
 * they came, without waiting for each other's answers; at most `begunMax` are begun and their answers not sent. When
 * that many are there the socket is not read until half of them are answered. What one read of the socket brought may
 * wait beyond that, and no more. Answers that are ready in the same turn of the event loop ride in one frame.
 */
import { type AppError, isAppError, errors as platformErrors } from '../errors.ts'
import { assertScope, type Caller } from '../http/guard.ts'
import type { RateLimiter } from '../http/rate-limit.ts'
import type { Log } from '../log.ts'
import { splitItems } from './batch.ts'
import { errors } from './errors.ts'
import type { ClientFrame } from './protocol.ts'
import type { LiveCall } from './source.ts'

export type CallFrame = ClientFrame & { type: 'call' }

export interface Calls {
  add(call: LiveCall): void
  /** Begins a call before it returns. */
  run(caller: Caller, frame: CallFrame): Promise<unknown>
  /** Takes one from the caller's requests. @throws rate_limited */
  take(caller: Caller): Promise<void>
  /** Counts what came of a call: `ok` or an error's code. */
  onAnswered(name: string, outcome: string): void
  readonly log: Log
}

/** One connection's calls. */
export interface CallLine {
  push(frame: CallFrame): void
  /** Begins no more; calls back when all are answered. */
  end(onIdle: () => void): void
}

/** The connection, as its calls see it. */
export interface CallClient {
  /** As the credential stands now; undefined when there is none, or the connection is gone. */
  caller(): Caller | undefined
  send(frame: string): void
  /** What to wait for before sending more. */
  drained(): Promise<void> | undefined
  pause(): void
  resume(): void
}

const begunMax = 256
const resumeAt = begunMax / 2

export function makeCalls(options: {
  limiter: RateLimiter | undefined
  log: Log
  onAnswered: (name: string, outcome: string) => void
}): Calls {
  const { limiter, log, onAnswered } = options
  const known = new Map<string, LiveCall>()
  return {
    log,
    add(call) {
      if (known.has(call.name)) throw new Error(`There are two live calls named ${call.name}.`)
      known.set(call.name, call)
    },
    async run(caller, { call: name, params }) {
      const call = known.get(name)
      if (!call) throw errors.unknownCall(name)
      if (call.scope !== undefined) assertScope(caller, call.scope)
      return call.run(caller, params)
    },
    take: async caller => limiter?.take(caller.userId),
    onAnswered: (name, outcome) => onAnswered(known.has(name) ? name : 'unknown', outcome),
  }
}

export function makeCallLine(calls: Calls, client: CallClient): CallLine {
  const waiting: CallFrame[] = []
  let answers: { json: string }[] = []
  let begun = 0
  let beginning = false
  let flushing = false
  let paused = false
  let onIdle: (() => void) | undefined

  /** The limiter is asked for all that came together; each is begun when those before it are. */
  async function begin() {
    if (beginning) return
    beginning = true
    while (waiting.length > 0 && begun < begunMax) {
      const frames = waiting.splice(0, begunMax - begun)
      begun += frames.length
      const admissions = frames.map(admit)
      for (const [at, admission] of admissions.entries()) void answer(frames[at]!, await admission)
    }
    beginning = false
  }

  /** The reason for which a call is not made, or who makes it. */
  async function admit(): Promise<{ caller: Caller } | { refusal: unknown }> {
    try {
      const caller = client.caller()
      if (!caller) throw platformErrors.unauthenticated('Send an `auth` frame with a token first.')
      if (onIdle) throw errors.stopping()
      await calls.take(caller)
      // A fresh token may have come meanwhile.
      return { caller: client.caller() ?? caller }
    } catch (refusal) {
      return { refusal }
    }
  }

  async function answer(frame: CallFrame, admitted: Awaited<ReturnType<typeof admit>>) {
    let outcome = 'ok'
    let body: string
    try {
      if ('refusal' in admitted) throw admitted.refusal
      body = `"result":${JSON.stringify(await calls.run(admitted.caller, frame)) ?? 'null'}`
    } catch (thrown) {
      if (!isAppError(thrown)) calls.log.error({ err: thrown, call: frame.call }, 'a live call could not be answered')
      const error = isAppError(thrown) ? thrown : platformErrors.internal()
      body = `"error":${JSON.stringify(errorOf(error))}`
      outcome = error.code
    }
    finish(`{"id":${JSON.stringify(frame.id)},${body}}`)
    calls.onAnswered(frame.call, outcome)
  }

  function finish(json: string) {
    answers.push({ json })
    if (flushing) return
    flushing = true
    setImmediate(() => void flush())
  }

  /** A client that reads slowly is waited for, as it cannot ask for more meanwhile. */
  async function flush() {
    while (answers.length > 0) {
      const ready = answers
      answers = []
      for (const part of splitItems(ready)) {
        await client.drained()
        client.send(`{"type":"results","results":[${part.map(({ json }) => json).join(',')}]}`)
        begun -= part.length
      }
      if (waiting.length > 0) void begin()
      resumeWhenFew()
    }
    flushing = false
    if (isIdle()) onIdle?.()
  }

  function resumeWhenFew() {
    if (!paused || begun + waiting.length > resumeAt) return
    paused = false
    client.resume()
  }

  const isIdle = () => begun + waiting.length === 0

  return {
    push(frame) {
      waiting.push(frame)
      if (!paused && begun + waiting.length >= begunMax) {
        paused = true
        client.pause()
      }
      // One read of the socket brings many: let the others come first.
      queueMicrotask(() => void begin())
    },
    end(callback) {
      onIdle = callback
      if (isIdle()) callback()
    },
  }
}

function errorOf({ code, message, details, retryAfterSeconds }: AppError) {
  return { code, message, details, retry_after: retryAfterSeconds }
}
