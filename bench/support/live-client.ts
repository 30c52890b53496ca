/**
 * One WebSocket connection to `/v1/live`, with only as much of the protocol as a benchmark needs, so that it takes
 * little of the machine.
 */
import { randomBytes } from 'node:crypto'
import { connect, type Socket } from 'node:net'

export interface LiveClient {
  send(frame: object): void
  /** Sends texts of frames in one write. */
  sendTexts(texts: readonly string[]): void
  close(): void
  readonly socket: Socket
}

const text = 0x1
const ping = 0x9
const pong = 0xa
const closing = 0x8
const final = 0x80
const masked = 0x80

/**
 * Resolves when the handshake is done.
 * @param onText is given each text frame's bytes; they are good only until it returns
 * @param onClose is called when the server closed it
 */
export async function connectLive(given: {
  port: number
  token: string
  onText: (payload: Buffer) => void
  onClose?: (reason: string) => void
}): Promise<LiveClient> {
  const socket = connect(given.port, '127.0.0.1').setNoDelay(true)
  const opened = Promise.withResolvers<void>()
  let isOpen = false
  const end = (reason: string) => {
    opened.reject(new Error(`A live connection was not opened: ${reason}`))
    if (isOpen) given.onClose?.(reason)
    isOpen = false
    socket.destroy()
  }
  const onHead = (head: string) => {
    if (!head.includes(' 101 ')) return end(head)
    isOpen = true
    opened.resolve()
  }
  const onFrame = (opcode: number, payload: Buffer) => {
    if (opcode === text) given.onText(payload)
    else if (opcode === ping) socket.write(maskedFrame(pong, payload))
    else if (opcode === closing) end(`${payload.readUInt16BE(0)} ${payload.subarray(2)}`)
  }
  socket.on('error', error => end(error.message))
  socket.on('close', () => end('the connection was lost'))
  socket.on('data', makeReader(onHead, onFrame))
  socket.write(handshake(given))
  await opened.promise
  return {
    socket,
    send: frame => socket.write(maskedFrame(text, Buffer.from(JSON.stringify(frame)))),
    sendTexts: texts => socket.write(Buffer.concat(texts.map(each => maskedFrame(text, Buffer.from(each))))),
    close() {
      isOpen = false
      socket.destroy()
    },
  }
}

function handshake({ port, token }: { port: number; token: string }): string {
  const key = randomBytes(16).toString('base64')
  return (
    `GET /v1/live HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
    `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\nAuthorization: Bearer ${token}\r\n\r\n`
  )
}

type OnFrame = (opcode: number, payload: Buffer) => void

/** Reads the head of the answer to the handshake, then frames, in whatever pieces they come. */
function makeReader(onHead: (head: string) => void, onFrame: OnFrame): (chunk: Buffer) => void {
  let rest: Buffer | undefined
  let hasHead = false
  return chunk => {
    let bytes = rest ? Buffer.concat([rest, chunk]) : chunk
    rest = undefined
    if (!hasHead) {
      const end = bytes.indexOf('\r\n\r\n')
      if (end < 0) {
        rest = bytes
        return
      }
      hasHead = true
      onHead(bytes.toString('latin1', 0, end))
      bytes = bytes.subarray(end + 4)
    }
    rest = readFrames(bytes, onFrame)
  }
}

/** Answers what is left: the beginning of a frame that is still to come. */
function readFrames(bytes: Buffer, onFrame: OnFrame): Buffer | undefined {
  let at = 0
  while (bytes.length - at >= 2) {
    let size = bytes[at + 1]! & 0x7f
    let head = 2
    if (size === 126) head = 4
    else if (size === 127) head = 10
    if (bytes.length - at < head) break
    if (size === 126) size = bytes.readUInt16BE(at + 2)
    else if (size === 127) size = Number(bytes.readBigUInt64BE(at + 2))
    if (bytes.length - at < head + size) break
    onFrame(bytes[at]! & 0x0f, bytes.subarray(at + head, at + head + size))
    at += head + size
  }
  return at < bytes.length ? Buffer.from(bytes.subarray(at)) : undefined
}

/** A client must mask its frames; with a mask of zeros the bytes stay as they are. */
function maskedFrame(opcode: number, payload: Buffer): Buffer {
  const isLong = payload.length > 125
  const head = Buffer.alloc(isLong ? 8 : 6)
  head[0] = final | opcode
  head[1] = masked | (isLong ? 126 : payload.length)
  if (isLong) head.writeUInt16BE(payload.length, 2)
  return Buffer.concat([head, payload])
}
