import type { Redis } from 'ioredis'
import type { Bus } from '#platform/bus.ts'
import type { Database } from '#platform/database/pool.ts'
import { ensureSecret } from '#platform/database/secrets.ts'
import type { OpenRoutes } from '#platform/http/open-routes.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Live } from '#platform/live/live.ts'
import type { Log } from '#platform/log.ts'
import type { Metrics } from '#platform/metrics.ts'
import type { Rpc } from '#platform/rpc/rpc.ts'
import { makeAppending } from './appending.ts'
import { addCompatRoutes } from './compat.ts'
import { makeConsumer } from './consuming.ts'
import { makeCounts } from './counts.ts'
import { makePostgresLog } from './log-postgres.ts'
import { makeMerger } from './merging.ts'
import { makeOpenLines } from './open-lines.ts'
import { appendedChannel, makeReaders, type ReaderKind } from './readers.ts'
import { makeReading } from './reading.ts'
import { addRecordRoutes } from './record-routes.ts'
import { makeRelay } from './relay.ts'
import { retain } from './retention.ts'
import { addRoutes } from './routes.ts'
import { addIngestRpc } from './rpc.ts'
import { findNow } from './segment-store.ts'
import type { IngestSettings } from './settings.ts'
import { makeStores } from './stores.ts'
import { makeStreams } from './streams.ts'
import type { RecordLog } from './types.ts'
import { makeWaking } from './waking.ts'

export { type CourseRecord, generateCourses } from './courses.ts'
export { type IngestSettings, ingestSettings } from './settings.ts'
export const streamScopes = ['streams:read', 'streams:write', 'streams:declare'] as const

/** What a process does of ingest. */
export interface IngestParts {
  /** Takes records over HTTP. */
  front: boolean
  /** Takes records of route A over gRPC. */
  rpc: boolean
  /** Counts and copies what was taken. */
  consumer: boolean
}

export interface IngestDeps {
  db: Database
  bus: Bus
  live: Pick<Live, 'addSource' | 'wake'>
  log: Log
  metrics: Metrics
  settings: IngestSettings
  redis: Redis | undefined
  openRoutes: OpenRoutes
  parts: IngestParts
  /** Unix milliseconds. */
  clock?: () => number
}

export interface IngestService {
  routes(app: HttpApp): Promise<void>
  rpc(rpc: Pick<Rpc, 'addService'>): void
  start(): Promise<void>
  /** Finishes what is under way. Call it when no more requests come. */
  stop(): Promise<void>
  /** Call it every few minutes. */
  maintain(): Promise<void>
}

export async function makeIngestService(deps: IngestDeps): Promise<IngestService> {
  const { db, bus, live, log, metrics, settings, parts, clock = Date.now } = deps
  const streams = makeStreams({ db, bus, settings, clock, onRemoved: name => live.wake([`streams/${name}`]) })
  const waking = makeWaking(names => {
    live.wake(names.map(name => `streams/${name}`))
    bus.publish(appendedChannel, names)
  })
  const onAppended = waking.appended
  const store = makePostgresLog({
    db,
    metrics,
    onAppended,
    waitingMax: settings.INGEST_WAITING_MAX,
    clock,
  })
  const key = (await ensureSecret(db, { name: 'ingest.relay', bytes: 32 })).toString('hex')
  const relay =
    parts.front && settings.INGEST_RPC_URL !== undefined
      ? makeRelay({ url: settings.INGEST_RPC_URL, key, waitingMax: settings.INGEST_WAITING_MAX, log })
      : undefined
  const stores = makeStores({
    ...deps,
    streams,
    key,
    parts: { ...parts, log: parts.rpc || (parts.front && !relay) },
    onStored: (name, records) => store.count(name, { route: 'a', records }),
    onAppended,
    clock,
  })
  const here: RecordLog = stores.logA ?? {
    append: (stream, bunch) => store.append(stream, { route: 'a', bunch }),
  }
  const appending = makeAppending({ db, store, logA: relay ?? stores.logA })
  const reading = makeReading({ db, streams, onCut: name => live.wake([`streams/${name}`]) })
  const counts = makeCounts({ db, rollupDays: settings.INGEST_ROLLUP_DAYS, clock })
  const refused = metrics.counter('ingest_refused', 'Records refused, by stream.', ['stream'])
  const onRefused = (stream: string, records: number) => refused.inc({ stream }, records)
  const openLines = makeOpenLines(settings)
  live.addSource(reading.source)
  const kinds: ReaderKind[] = []
  if (parts.consumer) kinds.push(makeConsumer({ db, streams }))
  if (parts.consumer || parts.front) kinds.push(makeMerger({ db, clock }))
  kinds.push(...stores.kinds)
  const readers = makeReaders({ db, bus, log, metrics, kinds })

  return {
    async routes(app) {
      if (!parts.front) return
      addRoutes(app, { streams, reading, counts })
      // Nobody else would end them.
      app.addHook('preClose', async () => openLines.endAll())
      await app.register(async scope => {
        addRecordRoutes(scope as HttpApp, { streams, appending, settings, openLines, onRefused })
      })
      await app.register(async scope => {
        const { openRoutes } = deps
        addCompatRoutes(scope as HttpApp, { streams, appending, openRoutes, settings, onRefused })
      })
    },
    rpc(rpc) {
      if (parts.rpc) addIngestRpc(rpc, { streams, log: here, key, onRefused })
    },
    async start() {
      await streams.start()
      readers.start()
      stores.start()
    },
    async stop() {
      openLines.stop()
      await relay?.idle()
      relay?.stop()
      await store.idle()
      await readers.stop()
      await stores.stop()
      waking.stop()
    },
    async maintain() {
      await retain({ db, log, rollupDays: settings.INGEST_ROLLUP_DAYS, now: await findNow(db) })
    },
  }
}
