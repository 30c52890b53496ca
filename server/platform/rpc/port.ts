import type { Log } from '../log.ts'
import type { Rpc } from './rpc.ts'

/** Where it listens unless GRPC_PORT says otherwise. */
const usualPort = 8081

/**
 * Listens where GRPC_PORT says. Where it says nothing and the usual port is another process's, this one does without.
 * Answers the port.
 */
export async function listenOn(
  rpc: Pick<Rpc, 'start'>,
  { port, log }: { port: number | 'off' | undefined; log: Log },
): Promise<number | undefined> {
  if (port === 'off') return undefined
  try {
    const listening = await rpc.start(port ?? usualPort)
    log.info({ port: listening }, 'gRPC is answered')
    return listening
  } catch (error) {
    if (port !== undefined || (error as { code?: unknown }).code !== 'EADDRINUSE') throw error
    log.warn({ port: usualPort }, 'no gRPC here: another process has the port; GRPC_PORT=0 takes a free one')
    return undefined
  }
}
