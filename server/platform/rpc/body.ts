/** What a client sends, read as it is taken: what is not taken, HTTP/2's flow control keeps with the client. */
import type { ServerHttp2Stream } from 'node:http2'
import { Code, ConnectError } from '@connectrpc/connect'

export interface Body extends AsyncIterable<Uint8Array> {
  /** Ends it with an error, once everything that has come is read. */
  fail(error: unknown): void
}

/**
 * @param options.waitMs how long the next bytes may take to come, or all of them where the body is `whole`
 * @param options.late what it fails with when they do not
 */
export function readBody(
  stream: ServerHttp2Stream,
  options: { waitMs: number; whole: boolean; late: () => unknown },
): Body {
  const { waitMs, whole } = options
  let failure: { error: unknown } | undefined
  let wake = () => {}
  const fail = (error: unknown) => {
    failure ??= { error }
    wake()
  }
  for (const event of ['readable', 'end', 'close'] as const) stream.on(event, () => wake())
  stream.on('error', () => fail(gone()))
  const timeUp = () => fail(options.late())
  const total = whole ? setTimeout(timeUp, waitMs) : undefined
  // A call that is refused before its body is looked at leaves it unread.
  stream.once('close', () => clearTimeout(total))

  async function waitForMore() {
    const next = whole ? undefined : setTimeout(timeUp, waitMs)
    await new Promise<void>(resolve => {
      wake = resolve
    })
    wake = () => {}
    clearTimeout(next)
  }

  return {
    fail,
    async *[Symbol.asyncIterator]() {
      for (;;) {
        // Everything that lies there, in one piece.
        const chunk: Buffer | null = stream.read()
        if (chunk !== null) yield chunk
        else if (stream.readableEnded) break
        else if (failure) throw failure.error
        else if (stream.destroyed) throw gone()
        else await waitForMore()
      }
      clearTimeout(total)
    },
  }
}

function gone() {
  return new ConnectError('The client has gone.', Code.Canceled)
}
