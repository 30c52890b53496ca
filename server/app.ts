/** Joins the platform and the chosen services into one process. Only this file and main.ts know every service. */
import { mkdir } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { Redis } from 'ioredis'
import { makeBlobs } from '#platform/blobs/blobs.ts'
import { makeBus } from '#platform/bus.ts'
import { type Environment, platformSettings, readSettings, type Settings } from '#platform/config.ts'
import { type EmbeddedServer, makeEmbeddedServer } from '#platform/database/embedded.ts'
import { type MigrationSet, migrate } from '#platform/database/migrate.ts'
import { applicationPrefix, type Database, makeDatabase } from '#platform/database/pool.ts'
import { errors } from '#platform/errors.ts'
import { trackConnections } from '#platform/http/connections.ts'
import { asBearer } from '#platform/http/guard.ts'
import { forgetOldKeys } from '#platform/http/idempotency.ts'
import { makeOpenRoutes } from '#platform/http/open-routes.ts'
import { addOperationRoutes, metricsScope } from '#platform/http/operations.ts'
import { makeRateLimiter } from '#platform/http/rate-limit.ts'
import { type HttpApp, makeHttp } from '#platform/http/server.ts'
import { jobsParameters, makeJobs } from '#platform/jobs/jobs.ts'
import { addJobRoutes, jobScopes } from '#platform/jobs/routes.ts'
import { makeLive } from '#platform/live/live.ts'
import type { Log } from '#platform/log.ts'
import { makeMetrics } from '#platform/metrics.ts'
import { listenOn } from '#platform/rpc/port.ts'
import { makeRpc } from '#platform/rpc/rpc.ts'
import { chatScopes, chatSettings, makeChatService } from '#services/chat/index.ts'
import { type IdentityService, identitySettings, makeIdentity } from '#services/identity/index.ts'
import { imageScopes, imagesSettings, makeImagesService } from '#services/images/index.ts'
import { ingestSettings, makeIngestService, streamScopes } from '#services/ingest/index.ts'
import { ledgerScopes, ledgerSettings, makeLedgerService } from '#services/ledger/index.ts'
import { makeRunnerService, runnerScopes, runnerSettings } from '#services/runner/index.ts'

const here = import.meta.dirname

/** Every part that has tables, in the order in which they are made. */
export const migrationSets: readonly MigrationSet[] = [
  { name: 'platform', folder: path.join(here, 'platform/database/migrations') },
  { name: 'jobs', folder: path.join(here, 'platform/jobs/migrations') },
  { name: 'identity', folder: path.join(here, 'services/identity/migrations') },
  { name: 'chat', folder: path.join(here, 'services/chat/migrations') },
  { name: 'images', folder: path.join(here, 'services/images/migrations') },
  { name: 'ingest', folder: path.join(here, 'services/ingest/migrations') },
  { name: 'ledger', folder: path.join(here, 'services/ledger/migrations') },
  { name: 'runner', folder: path.join(here, 'services/runner/migrations') },
]

/** Every variable Capstan reads, by the part that reads it. */
export const settingsTables = {
  platform: platformSettings,
  identity: identitySettings,
  chat: chatSettings,
  images: imagesSettings,
  ingest: ingestSettings,
  ledger: ledgerSettings,
  runner: runnerSettings,
} as const
const allSettings = {
  ...platformSettings,
  ...identitySettings,
  ...chatSettings,
  ...imagesSettings,
  ...ingestSettings,
  ...ledgerSettings,
  ...runnerSettings,
}
export type AllSettings = Settings<typeof allSettings>

/** @throws SettingsError naming every wrong variable */
export function readAllSettings(environment: Environment): AllSettings {
  return readSettings(allSettings, environment)
}

export const version = '0.1.0'
/**
 * What a process may do. `api` and `worker` have the parts of ingest in them; alone, each can be a Deployment of its
 * own.
 */
export const roles = ['api', 'worker', 'ingest-front', 'ingest-rpc', 'ingest-consumer'] as const
export type Role = (typeof roles)[number]
/** identity is part of every process: the others need to know who calls. */
export const services = ['runner', 'chat', 'ledger', 'images', 'ingest'] as const
export type ServiceName = (typeof services)[number]

export interface Opened {
  db: Database
  /** For what must not wait behind requests: migrations, tools. */
  url: string
  embedded: EmbeddedServer | undefined
  /** Closes the pool and, when nobody else uses it, the embedded server. */
  close(): Promise<void>
}

/** Connects to DATABASE_URL, or starts the embedded server, which is brought back whenever it goes away. */
export async function openDatabase(settings: AllSettings, log: Log): Promise<Opened> {
  const embedded =
    settings.DATABASE_URL === undefined
      ? makeEmbeddedServer({ dataDir: path.resolve(settings.DATA_DIR), log })
      : undefined
  await embedded?.ensureRunning()
  const url = settings.DATABASE_URL ?? embedded!.url
  const db = makeDatabase({ ...databaseOptions(log, embedded), url, poolMax: settings.DATABASE_POOL_MAX })
  return {
    db,
    url,
    embedded,
    async close() {
      await db.close()
      await embedded?.stop()
    },
  }
}

function databaseOptions(log: Log, embedded: EmbeddedServer | undefined) {
  return {
    log,
    applicationName: `${applicationPrefix}:${process.pid}`,
    onTrouble: () => {
      embedded?.ensureRunning().catch(error => log.error({ err: error }, 'the embedded PostgreSQL does not come back'))
    },
  }
}

export function makeIdentityOf(
  opened: Opened,
  settings: AllSettings,
  log: Log,
  bus = makeBus({ db: opened.db, redisUrl: undefined, log }),
) {
  return makeIdentity({
    db: opened.db,
    bus,
    log,
    settings,
    platform: settings,
    scopes: [
      ...jobScopes,
      ...runnerScopes,
      ...chatScopes,
      ...ledgerScopes,
      ...imageScopes,
      ...streamScopes,
      metricsScope,
    ],
    secretsDir: path.resolve(settings.DATA_DIR),
  })
}

export interface App {
  http: HttpApp
  identity: IdentityService
  /** Where gRPC is answered, once it has started; undefined where it is not. */
  readonly grpcPort: number | undefined
  /** Why programs cannot be run here, where that is so. */
  runsUnavailable: string | undefined
  /** Starts to work and, in the role api, to listen. Answers the address. */
  start(): Promise<string | undefined>
  /** Not ready, no more connections, finish what runs, hand back the rest. */
  stop(): Promise<void>
}

const maintainEveryMs = 5 * 60_000
const forgetKeysMax = 10_000
const jobsPoolMax = 6
/** For answers to reach who waited until the grace was over. */
const answerMs = 1000

/** @param roles what this process does; @param chosen which services it has */
export async function makeApp(given: {
  settings: AllSettings
  log: Log
  roles: readonly Role[]
  chosen: readonly ServiceName[]
}): Promise<App> {
  const { settings, log } = given
  const serves = given.roles.includes('api')
  const works = given.roles.includes('worker')
  await mkdir(path.resolve(settings.DATA_DIR), { recursive: true, mode: 0o700 })
  const opened = await openDatabase(settings, log)
  const { db, url, embedded } = opened
  await migrate({ url, sets: migrationSets, direction: 'up', log })

  const metrics = makeMetrics()
  const bus = makeBus({ db, redisUrl: settings.REDIS_URL, log })
  const limitRedis = settings.REDIS_URL
    ? new Redis(settings.REDIS_URL, { enableOfflineQueue: false, maxRetriesPerRequest: 1 }).on('error', () => {})
    : undefined
  const jobsDb = makeDatabase({
    ...databaseOptions(log, embedded),
    url,
    poolMax: jobsPoolMax,
    parameters: jobsParameters,
  })
  const jobs = makeJobs({ db: jobsDb, bus, log, metrics, keepDays: settings.JOBS_KEEP_DAYS })
  const identity = makeIdentityOf(opened, settings, log, bus)
  const rateLimiter = makeRateLimiter({
    name: 'requests',
    points: settings.RATE_LIMIT_PER_MINUTE,
    windowSeconds: 60,
    redis: limitRedis,
  })
  const live = makeLive({
    bus,
    log,
    metrics,
    settings,
    authenticate: token => identity.authenticate(asBearer(`Bearer ${token}`)),
    reauthenticate: identity.authenticate,
    rateLimiter,
  })
  const runner = given.chosen.includes('runner')
    ? await makeRunnerService({
        db,
        jobs,
        live,
        bus,
        log,
        settings,
        work: works,
      })
    : undefined

  const chat = given.chosen.includes('chat')
    ? makeChatService({
        db,
        live,
        log,
        metrics,
        settings,
        identity,
        redis: limitRedis,
        openRoutes: makeOpenRoutes(settings),
        work: works,
      })
    : undefined

  const ledger = given.chosen.includes('ledger')
    ? makeLedgerService({ db, jobs, live, log, settings, identity, work: works })
    : undefined

  const blobs = given.chosen.includes('images') ? await makeBlobs({ settings, log }) : undefined
  const images = blobs
    ? await makeImagesService({
        db,
        jobs,
        live,
        bus,
        blobs,
        log,
        settings,
        openRoutes: makeOpenRoutes(settings),
        work: works,
      })
    : undefined

  const ingest = given.chosen.includes('ingest')
    ? await makeIngestService({
        db,
        bus,
        live,
        log,
        metrics,
        settings,
        redis: limitRedis,
        openRoutes: makeOpenRoutes(settings),
        parts: {
          front: serves || given.roles.includes('ingest-front'),
          rpc: serves || given.roles.includes('ingest-rpc'),
          consumer: works || given.roles.includes('ingest-consumer'),
        },
      })
    : undefined

  let ready = false
  let stopping = false
  const http = await makeHttp({
    settings,
    log,
    metrics,
    authenticate: identity.authenticate,
    rateLimiter,
    version,
  })
  addOperationRoutes(http, {
    metrics,
    db,
    isReady: () => ready,
    production: settings.NODE_ENV === 'production',
    version,
  })
  http.addHook('onRequest', async (request, reply) => {
    if (!stopping || request.routeOptions.config.isOperation) return
    reply.header('connection', 'close')
    throw errors.unavailable('This process stops just now. Try again; another one will answer.', 1)
  })
  const rpc = makeRpc({
    settings,
    log,
    metrics,
    authenticate: identity.authenticate,
    rateLimiter,
    isServing: async () => ready && (await db.ping()),
  })
  let grpcPort: number | undefined
  const connections = trackConnections(http.server)
  if (serves) {
    await identity.routes(http)
    await identity.compatRoutes(http)
    await live.routes(http)
    addJobRoutes(http, jobs)
    await runner?.routes(http)
    await runner?.compatRoutes(http)
    await chat?.routes(http)
    await chat?.compatRoutes(http)
    await ledger?.routes(http)
    await ledger?.compatRoutes(http)
    await images?.routes(http)
    await images?.compatRoutes(http)
    chat?.rpc(rpc)
    ledger?.rpc(rpc)
  }
  await ingest?.routes(http)
  ingest?.rpc(rpc)

  let maintenance: NodeJS.Timeout | undefined
  async function maintain() {
    try {
      await forgetOldKeys(db, { hours: settings.IDEMPOTENCY_HOURS, limit: forgetKeysMax })
      await identity.maintain()
      await runner?.maintain()
      await chat?.maintain()
      await images?.maintain()
      await ingest?.maintain()
    } catch (error) {
      log.warn({ err: error }, 'could not clean up')
    }
  }

  return {
    http,
    identity,
    get grpcPort() {
      return grpcPort
    },
    runsUnavailable: runner?.facts?.available === false ? runner.facts.sentence : undefined,
    async start() {
      await bus.start()
      await identity.start()
      await live.start()
      await jobs.start({ work: works })
      chat?.start()
      ledger?.start()
      await ingest?.start()
      await http.listen({ host: settings.HOST, port: settings.PORT })
      if (serves || given.roles.includes('ingest-rpc'))
        grpcPort = await listenOn(rpc, { port: settings.GRPC_PORT, log })
      ready = true
      maintenance = setInterval(() => void maintain(), maintainEveryMs)
      void maintain()
      const { port } = http.server.address() as AddressInfo
      return (
        settings.PUBLIC_URL ?? `http://${settings.HOST.includes(':') ? `[${settings.HOST}]` : settings.HOST}:${port}`
      )
    },
    async stop() {
      ready = false
      stopping = true
      clearInterval(maintenance)
      // Whoever waits for a run gets it while the workers finish, and who comes meanwhile is told to come back; live
      // clients go last, so that they see the ends.
      const graceMs = settings.SHUTDOWN_GRACE_MS
      // Who has not sent a whole request when the grace is over, or does not read the answer, is not waited for.
      const late = setTimeout(() => http.server.closeAllConnections(), graceMs + answerMs)
      await Promise.all([jobs.stop(graceMs), runner?.waits.end(graceMs), images?.endWaits(graceMs), rpc.stop(graceMs)])
      const closed = http.close()
      await live.stop()
      connections.closeWhenIdle()
      await closed
      clearTimeout(late)
      await chat?.stop()
      await ledger?.stop()
      await ingest?.stop()
      await runner?.stop()
      await images?.stop()
      await blobs?.close()
      await identity.stop()
      await bus.stop()
      limitRedis?.disconnect()
      await jobsDb.close()
      await opened.close()
    },
  }
}
