/**
 * NDJSON requests that are open: how many there may be at once, how long each may be idle, and their end when the
 * process stops.
 *
 * States of one: open → ended by us (what has come is still taken and answered, then the answer ends) → closed. Who
 * ends it himself goes from open to closed.
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import { errors as platformErrors } from '#platform/errors.ts'
import { errors } from './errors.ts'

export interface OpenLines {
  /** Answers the body, which throws at its end when we have ended it. @throws overloaded */
  open(request: IncomingMessage, response: ServerResponse): AsyncIterable<Buffer>
  /** Ends them all, and those that come from then on. */
  endAll(): void
  /** Frees the timer. */
  stop(): void
}

interface Open {
  end(error: Error): void
  /** Bytes that have passed, either way. */
  passed(): number
  seen: number
  since: number
}

/** So many looks in the time that one may be idle. */
const looks = 4
/** For the end of the answer to reach the client, who may still be sending. */
const lingerMs = 1000

export function makeOpenLines(settings: { INGEST_IDLE_MS: number; INGEST_OPEN_MAX: number }): OpenLines {
  const idleMs = settings.INGEST_IDLE_MS
  const all = new Set<Open>()
  let isStopping = false
  const timer = setInterval(() => {
    const now = performance.now()
    for (const each of all) {
      const passed = each.passed()
      if (passed !== each.seen) Object.assign(each, { seen: passed, since: now })
      else if (now - each.since >= idleMs) each.end(errors.linesIdle(idleMs))
    }
  }, idleMs / looks).unref()

  return {
    open(request, response) {
      if (all.size >= settings.INGEST_OPEN_MAX) throw platformErrors.overloaded('The room for NDJSON requests')
      const { socket } = request
      const body = makeEndable(request)
      const each: Open = {
        end(error) {
          body.end(error)
          all.delete(each)
          // Who does not read the answers does not read this either.
          closeSoon(response)
        },
        passed: () => socket.bytesRead + socket.bytesWritten,
        seen: 0,
        since: performance.now(),
      }
      all.add(each)
      response.once('close', () => all.delete(each))
      if (isStopping) each.end(stopsNow())
      return body
    },
    endAll() {
      isStopping = true
      for (const each of all) each.end(stopsNow())
    },
    stop: () => clearInterval(timer),
  }
}

const stopsNow = () =>
  platformErrors.unavailable('This process stops just now. Go on behind the last line that was answered.', 1)

/** Node would wait for the rest of the body. */
function closeSoon(response: ServerResponse) {
  const { socket } = response
  if (!socket) return
  response.once('finish', () => socket.end())
  const timer = setTimeout(() => socket.destroy(), lingerMs).unref()
  response.once('finish', () => timer.refresh())
  socket.once('close', () => clearTimeout(timer))
}

/** A body that can be ended from outside: it throws behind what was read of it. */
function makeEndable(body: AsyncIterable<Buffer>): AsyncIterable<Buffer> & { end(error: Error): void } {
  const chunks = body[Symbol.asyncIterator]()
  let ended: Error | undefined
  // Of the chunk that is waited for: a promise that lasts as long as the body would gather what waits for it.
  let giveUp = (_error: Error) => {}
  return {
    end(error) {
      ended ??= error
      giveUp(ended)
    },
    async *[Symbol.asyncIterator]() {
      while (ended === undefined) {
        const next = await new Promise<IteratorResult<Buffer>>((resolve, reject) => {
          giveUp = reject
          chunks.next().then(resolve, reject)
        })
        if (next.done) return
        yield next.value
      }
      throw ended
    },
  }
}
