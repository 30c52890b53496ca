import type { FastifyReply } from 'fastify'

/** Aborted when the client has gone, be it before this is called. */
export function closedSignal(reply: FastifyReply): AbortSignal {
  const controller = new AbortController()
  if (reply.raw.destroyed) controller.abort()
  reply.raw.once('close', () => controller.abort())
  return controller.signal
}
