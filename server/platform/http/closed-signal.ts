import type { FastifyReply } from 'fastify'

/** One for all: each of its own would gather a stack, which takes ten times as long as the rest, whatever came of a request. */
const gone = new DOMException('The client has gone.', 'AbortError')

/** Aborted when the client has gone, be it before this is called. */
export function closedSignal(reply: FastifyReply): AbortSignal {
  const controller = new AbortController()
  if (reply.raw.destroyed) controller.abort(gone)
  reply.raw.once('close', () => controller.abort(gone))
  return controller.signal
}
