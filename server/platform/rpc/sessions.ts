/** The connections of the gRPC server: how much each may hold, when a silent one is let go of, how they end. */
import type { Http2Server, ServerHttp2Session, ServerOptions } from 'node:http2'
import type { Socket } from 'node:net'
import type { Log } from '../log.ts'

const sessionsMax = 10_000
const streamsMax = 256
/** What one call may have on the way to us. */
const streamWindowBytes = 256 * 1024
/** What all calls of a connection may. */
const sessionWindowBytes = 4 * 1024 * 1024
const sessionMemoryMb = 32
/** A connection without calls is closed after so long, and one with calls is asked whether anybody is there. */
const silentMs = 5 * 60_000
const pongMs = 20_000

export const serverOptions: ServerOptions = {
  maxSessionMemory: sessionMemoryMb,
  settings: { maxConcurrentStreams: streamsMax, initialWindowSize: streamWindowBytes, enablePush: false },
}

export interface Sessions {
  /** Takes no more, tells every client to go elsewhere, and resolves when their calls are done. */
  close(): Promise<void>
  /** Cuts every connection off. */
  destroy(): void
}

export function trackSessions(server: Http2Server, log: Log): Sessions {
  const sessions = new Map<ServerHttp2Session, { calls: number }>()
  const sockets = new Set<Socket>()
  server.maxConnections = sessionsMax
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
  })
  server.on('session', session => {
    sessions.set(session, { calls: 0 })
    session.setLocalWindowSize(sessionWindowBytes)
    session.on('error', error => log.debug({ err: error }, 'a gRPC connection broke'))
    session.on('close', () => sessions.delete(session))
    session.setTimeout(silentMs, () => checkOn(session))
  })
  server.on('sessionError', error => log.debug({ err: error }, 'a gRPC connection broke'))
  server.on('stream', stream => {
    const state = sessions.get(stream.session as ServerHttp2Session)
    if (!state) return
    state.calls++
    stream.once('close', () => state.calls--)
  })

  function checkOn(session: ServerHttp2Session) {
    if (sessions.get(session)?.calls === 0) return session.close()
    if (session.destroyed || session.closed) return
    const late = setTimeout(() => session.destroy(), pongMs)
    session.ping(() => clearTimeout(late))
  }

  return {
    async close() {
      const closed = new Promise<void>(resolve => server.close(() => resolve()))
      for (const [session, { calls }] of sessions) {
        if (session.destroyed) continue
        const { socket } = session
        session.close()
        // One that has never said a word would be waited for.
        if (calls === 0) socket.destroySoon()
      }
      await closed
    },
    destroy() {
      for (const socket of sockets) socket.destroy()
    },
  }
}
