import { Type } from 'typebox'
import type { Database } from '../database/pool.ts'
import { errors } from '../errors.ts'
import type { Metrics } from '../metrics.ts'
import type { HttpApp } from './server.ts'

/** An admin's API key for a scraper has it. */
export const metricsScope = 'metrics:read'

/** What probes and scrapers call, in every role. */
export function addOperationRoutes(
  app: HttpApp,
  given: { metrics: Metrics; db: Database; isReady: () => boolean; production: boolean; version: string },
) {
  const tags = ['operations']
  const Health = Type.Object({ status: Type.Literal('ok'), version: Type.String() })

  app.get(
    '/healthz',
    {
      config: { access: 'public', isOperation: true },
      schema: { tags, summary: 'The process lives', response: { 200: Health } },
    },
    async () => ({ status: 'ok' as const, version: given.version }),
  )

  app.get(
    '/readyz',
    {
      config: { access: 'public', isOperation: true },
      schema: { tags, summary: 'It takes requests and reaches its database', response: { 200: Health } },
    },
    async () => {
      if (!given.isReady()) throw errors.unavailable('This process starts or stops just now.')
      if (!(await given.db.ping())) throw errors.unavailable('The database is not reachable just now.')
      return { status: 'ok' as const, version: given.version }
    },
  )

  // Counts tell a stranger much about a business: in production they take an admin's token or key.
  app.get(
    '/metrics',
    {
      config: { access: given.production ? 'admin' : 'public', scope: metricsScope, isOperation: true },
      schema: { tags, summary: 'Prometheus metrics; in production for admins' },
    },
    async (_request, reply) =>
      reply.type(given.metrics.registry.contentType).send(await given.metrics.registry.metrics()),
  )
}
