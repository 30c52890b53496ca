import type { Socket } from 'node:net'
import type { FastifyReply } from 'fastify'

interface Pace {
  /** Whoever takes nothing of an answer for so long has gone, or wants to hold on to what feeds it. */
  stalledMs: number
  /** Whoever takes fewer bytes than `bytesMin` in it only pretends to read. */
  windowMs: number
  bytesMin: number
}

/**
 * About 1 KiB a second. It is asked of each five minutes, not of the whole answer: what the kernel's buffers swallow at
 * once, some megabytes, would buy hours. What is written is known to be taken when all of a chunk is, so a window is long
 * enough for one of 256 KiB.
 */
const usual: Pace = { stalledMs: 30_000, windowMs: 5 * 60_000, bytesMin: 256 * 1024 }

/**
 * Ends the connection of a client that takes nothing of its answer any more, or next to nothing: a file or a bucket's
 * connection stays open for as long as somebody reads from it, and there are not many.
 */
export function endWhenSlow(reply: FastifyReply, { stalledMs, windowMs, bytesMin }: Pace = usual) {
  const { raw, request } = reply
  const { socket } = request.raw
  // Node begins the time anew with all that the client takes, and leaves it to the next request to undo this.
  raw.setTimeout(stalledMs, () => raw.destroy())
  let before = takenFrom(socket)
  const timer = setInterval(() => {
    const taken = takenFrom(socket)
    if (taken - before < bytesMin) raw.destroy()
    before = taken
  }, windowMs).unref()
  raw.once('close', () => clearInterval(timer))
}

/** Bytes, without those that wait in this process. */
export function takenFrom(socket: Socket): number {
  return socket.bytesWritten - socket.writableLength
}
