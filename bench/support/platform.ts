/** What a service stands on, in the benchmark's own process, for one caller who is let in without a question. */
import type { AddressInfo } from 'node:net'
import { migrationSets } from '../../server/app.ts'
import { makeBus } from '../../server/platform/bus.ts'
import { migrate } from '../../server/platform/database/migrate.ts'
import { makeDatabase } from '../../server/platform/database/pool.ts'
import type { Caller } from '../../server/platform/http/guard.ts'
import type { RateLimiter } from '../../server/platform/http/rate-limit.ts'
import { makeHttp } from '../../server/platform/http/server.ts'
import { makeLive } from '../../server/platform/live/live.ts'
import { silentLog } from '../../server/platform/log.ts'
import { makeMetrics } from '../../server/platform/metrics.ts'

/** Of the server that Capstan starts without configuration. */
const poolMax = 10

export const caller: Caller = { userId: 'bench', name: 'bench', role: 'user', by: 'session', credentialId: '' }
export const noLimit: RateLimiter = { take: async () => {}, reset: async () => {} }

export async function makePlatform(url: string) {
  await migrate({ url, sets: migrationSets, direction: 'up', log: silentLog })
  const db = makeDatabase({ url, poolMax, log: silentLog, applicationName: `capstan:${process.pid}` })
  const metrics = makeMetrics({ processMetrics: false })
  const bus = makeBus({ db, redisUrl: undefined, log: silentLog })
  const live = makeLive({
    bus,
    log: silentLog,
    metrics,
    settings: {
      LIVE_BUFFER_BYTES: 1_048_576,
      LIVE_TOPICS_MAX: 100,
      LIVE_CONNECTIONS_MAX: 100_000,
      PUBLIC_URL: undefined,
    },
    authenticate: async () => caller,
    reauthenticate: async () => caller,
    rateLimiter: noLimit,
  })
  const http = await makeHttp({
    settings: { BODY_LIMIT_BYTES: 1_000_000, TRUST_PROXY: false, NODE_ENV: 'production', PUBLIC_URL: undefined },
    log: silentLog,
    metrics,
    authenticate: async () => caller,
    rateLimiter: noLimit,
    version: 'bench',
  })
  return {
    db,
    bus,
    metrics,
    live,
    http,
    /** Answers the port. */
    async start(): Promise<number> {
      await bus.start()
      await live.start()
      await http.listen({ host: '127.0.0.1', port: 0 })
      return (http.server.address() as AddressInfo).port
    },
    async stop() {
      await Promise.all([live.stop(), http.close()])
      await bus.stop()
    },
  }
}
