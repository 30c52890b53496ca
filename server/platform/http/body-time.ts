/** Ends requests whose bodies take too long to come. */
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { HttpApp } from './server.ts'

/** So often is looked; what is late is ended by so much later. */
const lookMs = 2000

/** All requests but those a route calls unending (`isUnending`): who sends a body slower than that is cut off. */
export function limitBodyTime(app: HttpApp, bodyMs: number) {
  const open = new Map<IncomingMessage, { since: number; response: ServerResponse }>()
  app.addHook('onRequest', async (request, reply) => {
    const { raw } = request
    const hasBody = raw.headers['content-length'] !== undefined || raw.headers['transfer-encoding'] !== undefined
    if (!hasBody || raw.complete || request.routeOptions.config.isUnending?.(request)) return
    open.set(raw, { since: performance.now(), response: reply.raw })
    const forget = () => open.delete(raw)
    raw.once('end', forget)
    raw.once('close', forget)
  })
  const timer = setInterval(() => {
    const oldest = performance.now() - bodyMs
    // In the order of their beginning.
    for (const [raw, { since, response }] of open) {
      if (since > oldest) break
      open.delete(raw)
      endLate(raw, response)
    }
  }, lookMs).unref()
  app.addHook('onClose', async () => clearInterval(timer))
}

/** As Node does it: an answer where none has begun, and no more of the connection. */
function endLate({ socket }: IncomingMessage, response: ServerResponse) {
  if (socket.writable && !response.headersSent) {
    socket.write('HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n')
  }
  socket.destroySoon()
}
