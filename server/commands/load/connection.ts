/**
 * A connection that posts one body after another. Only as much HTTP/1.1 as that takes, so that the load takes little of
 * the machine that it loads. A connection that was lost is made anew by the next post.
 */
import { connect, type Socket } from 'node:net'
import { connect as connectSecurely } from 'node:tls'

export interface Target {
  /** The server, without a path. */
  url: URL
  path: string
  headers: Record<string, string>
}

export interface Reply {
  status: number
  body: string
}

export interface Connection {
  /** @throws the error of the socket, whose `code` is shown to people */
  post(body: string): Promise<Reply>
  close(): void
}

/** For an answer. */
const answerMs = 30_000
const headEnd = Buffer.from('\r\n\r\n')

export function makeConnection(target: Target): Connection {
  const head = headOf(target)
  let socket: Socket | undefined
  let waiting: PromiseWithResolvers<Reply> | undefined
  let received: Buffer | undefined

  function fail(error: Error) {
    waiting?.reject(error)
    waiting = undefined
  }

  function open(): Socket {
    const made = openSocket(target.url).setNoDelay(true)
    made.setTimeout(answerMs, () => made.destroy(withCode('ETIMEDOUT')))
    made.on('data', take)
    made.on('error', error => socket === made && fail(error))
    made.on('close', () => {
      if (socket !== made) return
      socket = undefined
      received = undefined
      fail(withCode('ECONNRESET'))
    })
    return made
  }

  function take(chunk: Buffer) {
    received = received === undefined ? chunk : Buffer.concat([received, chunk])
    const found = readReply(received)
    if (!found) return
    received = undefined
    const { closes, ...reply } = found
    if (closes) leave()
    waiting?.resolve(reply)
    waiting = undefined
  }

  function leave() {
    socket?.destroy()
    socket = undefined
  }

  return {
    post(body) {
      waiting = Promise.withResolvers()
      socket ??= open()
      socket.write(`${head}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`)
      return waiting.promise
    },
    close() {
      leave()
      fail(withCode('ECONNABORTED'))
    },
  }
}

function headOf({ url, path, headers }: Target): string {
  const lines = Object.entries({ host: url.host, 'content-type': 'application/json', ...headers })
  return `POST ${path} HTTP/1.1\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join('')}`
}

function openSocket(url: URL): Socket {
  const host = url.hostname.replace(/^\[|\]$/g, '')
  if (url.protocol === 'https:') return connectSecurely({ host, port: Number(url.port || 443), servername: host })
  return connect({ host, port: Number(url.port || 80) })
}

function withCode(code: string): Error {
  return Object.assign(new Error(code), { code })
}

/** Undefined while it has not come as a whole. */
export function readReply(bytes: Buffer): (Reply & { closes: boolean }) | undefined {
  const end = bytes.indexOf(headEnd)
  if (end < 0) return undefined
  const head = bytes.toString('latin1', 0, end)
  const from = end + headEnd.length
  const length = /\r\ncontent-length: *(\d+)/i.exec(head)
  const body = length
    ? readLength(bytes, from, Number(length[1]))
    : /\r\ntransfer-encoding: *chunked/i.test(head)
      ? readChunks(bytes, from)
      : ''
  if (body === undefined) return undefined
  return { status: Number(head.slice(9, 12)), body, closes: /\r\nconnection: *close/i.test(head) }
}

function readLength(bytes: Buffer, from: number, length: number): string | undefined {
  return bytes.length < from + length ? undefined : bytes.toString('utf8', from, from + length)
}

function readChunks(bytes: Buffer, from: number): string | undefined {
  const chunks: Buffer[] = []
  for (let at = from; ; ) {
    const line = bytes.indexOf('\r\n', at)
    if (line < 0) return undefined
    const size = Number.parseInt(bytes.toString('latin1', at, line), 16)
    const next = line + 2 + size + 2
    if (bytes.length < next) return undefined
    if (size === 0) return Buffer.concat(chunks).toString()
    chunks.push(bytes.subarray(line + 2, line + 2 + size))
    at = next
  }
}
