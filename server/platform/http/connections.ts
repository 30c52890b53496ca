import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

/**
 * Knows which connections have a request in progress. Node closes idle ones when a server closes, but spares those
 * that never carried a request, which browsers open ahead of need, and keeps those that become idle later.
 */
export function trackConnections(server: Server) {
  const requests = new Map<Socket, number>()
  let closing = false

  const change = (socket: Socket, by: number) => {
    const before = requests.get(socket)
    if (before === undefined) return
    requests.set(socket, before + by)
    if (closing && before + by === 0) socket.destroySoon()
  }

  server.on('connection', (socket: Socket) => {
    requests.set(socket, 0)
    socket.once('close', () => requests.delete(socket))
  })
  server.on('request', (request: IncomingMessage, response: ServerResponse) => {
    const { socket } = request
    change(socket, 1)
    response.once('close', () => change(socket, -1))
  })
  // From here on it belongs to whoever speaks WebSocket over it.
  server.on('upgrade', (_request: IncomingMessage, socket: Socket) => requests.delete(socket))

  return {
    /** Closes every connection as soon as it has no request in progress. */
    closeWhenIdle() {
      closing = true
      for (const [socket, count] of requests) if (count === 0) socket.destroySoon()
    },
  }
}
