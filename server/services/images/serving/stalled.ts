import type { FastifyReply } from 'fastify'

/** Whoever takes nothing of an answer for so long has gone, or wants to hold on to what feeds it. */
const stalledMs = 30_000

/**
 * Ends the connection of a client that takes nothing any more: a file or a bucket's connection stays open for as long as
 * somebody reads from it, and there are not many.
 */
export function endWhenStalled(reply: FastifyReply, ms = stalledMs) {
  // Node begins the time anew with all that the client takes, and leaves it to the next request to undo this.
  reply.raw.setTimeout(ms, () => reply.raw.destroy())
}
