/** Sends an answer as fast as the client takes it, and no faster. */
import { once } from 'node:events'
import { constants, type OutgoingHttpHeaders, type ServerHttp2Stream } from 'node:http2'
import type { UniversalServerResponse } from '@connectrpc/connect/protocol'

/** @param options.takeMs how long a client may leave unread what was sent before it is cut off */
export async function sendReply(
  stream: ServerHttp2Stream,
  reply: UniversalServerResponse,
  options: { takeMs: number },
) {
  if (stream.destroyed || stream.closed) return
  const { trailer } = reply
  stream.respond({ ':status': reply.status, ...plain(reply.header) }, { waitForTrailers: trailer !== undefined })
  // Looked at when the body has ended: until then the trailers are not what they will be.
  if (trailer) stream.once('wantTrailers', () => sendTrailers(stream, plain(trailer)))
  for await (const chunk of reply.body ?? []) {
    if (stream.destroyed) return
    if (!stream.write(chunk)) await drain(stream, options.takeMs)
  }
  stream.end()
}

function sendTrailers(stream: ServerHttp2Stream, trailers: OutgoingHttpHeaders) {
  if (stream.destroyed) return
  stream.sendTrailers(trailers)
  letGo(stream)
}

/** A client that is still sending learns that nobody reads it any more; what it has sent is thrown away. */
function letGo(stream: ServerHttp2Stream) {
  if (stream.readableEnded) return
  stream.removeAllListeners('readable')
  stream.resume()
  // Not before the answer, which goes out first.
  setImmediate(() => stream.close(constants.NGHTTP2_NO_ERROR))
}

async function drain(stream: ServerHttp2Stream, takeMs: number) {
  const late = setTimeout(() => stream.close(constants.NGHTTP2_ENHANCE_YOUR_CALM), takeMs)
  try {
    await Promise.race([once(stream, 'drain'), once(stream, 'close')])
  } catch {
    // The stream broke; its `close` follows, and the next look sees it.
  } finally {
    clearTimeout(late)
  }
}

/** A call that never reached a handler is answered by trailers alone, as gRPC has it. */
export function refuse(stream: ServerHttp2Stream, status: { code: number; message: string }) {
  stream.respond(
    {
      ':status': constants.HTTP_STATUS_OK,
      'content-type': 'application/grpc',
      'grpc-status': String(status.code),
      'grpc-message': encodeURIComponent(status.message),
    },
    { endStream: true },
  )
  letGo(stream)
}

function plain(headers: Headers | undefined): OutgoingHttpHeaders {
  return Object.fromEntries(headers ?? [])
}
