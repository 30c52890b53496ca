/** What answers: ingest behind HTTP and gRPC, and an insert a record in the same server. */
import { Type } from 'typebox'
import { readSettings } from '../../server/platform/config.ts'
import type { Database } from '../../server/platform/database/pool.ts'
import type { HttpApp } from '../../server/platform/http/server.ts'
import { silentLog } from '../../server/platform/log.ts'
import { makeRpc } from '../../server/platform/rpc/rpc.ts'
import { ingestSettings, makeIngestService } from '../../server/services/ingest/index.ts'
import { caller, makePlatform, noLimit } from '../support/platform.ts'

export type IngestServer = Awaited<ReturnType<typeof makeServer>>

export async function makeServer(url: string) {
  const platform = await makePlatform(url)
  const { db, bus, live, metrics, http } = platform
  const ingest = await makeIngestService({
    db,
    bus,
    live,
    metrics,
    log: silentLog,
    settings: readSettings(ingestSettings, {}),
    redis: undefined,
    openRoutes: { has: () => true },
    parts: { front: true, rpc: true, consumer: true },
  })
  await ingest.routes(http)
  await addUsualRoutes(http, db)
  const rpc = makeRpc({
    settings: { HOST: '127.0.0.1', TRUST_PROXY: false },
    log: silentLog,
    metrics,
    authenticate: async () => caller,
    rateLimiter: noLimit,
    isServing: async () => true,
  })
  ingest.rpc(rpc)
  const port = await platform.start()
  const grpcPort = await rpc.start(0)
  await ingest.start()
  return {
    db,
    port,
    grpcPort,
    async close() {
      await rpc.stop(0)
      await platform.stop()
      await ingest.stop()
      await db.close()
    },
  }
}

const Body = Type.Object({
  curso: Type.String(),
  facultad: Type.String(),
  carrera: Type.String(),
  region: Type.String(),
})

/**
 * One insert a record, which commits by itself, into the table that psql copies into, too; and a route that does
 * nothing but take a record and answer, which is what the server can do at most.
 */
async function addUsualRoutes(http: HttpApp, db: Database) {
  await db.query('create schema usual')
  await db.query(`create table usual.records (id bigserial primary key, at timestamptz not null default now(),
    data json not null)`)
  http.post('/usual/nothing', { config: { access: 'public' }, schema: { body: Body } }, async (_request, reply) =>
    reply.status(201).send({ offset: '1' }),
  )
  http.post('/usual/course', { config: { access: 'public' }, schema: { body: Body } }, async (request, reply) => {
    const { rows } = await db.query<{ id: number }>('insert into usual.records (data) values ($1) returning id', [
      JSON.stringify(request.body),
    ])
    return reply.status(201).send({ offset: String(rows[0]!.id) })
  })
}
