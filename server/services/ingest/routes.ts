/** Streams over HTTP; adding records is in record-routes.ts. */
import { Type } from 'typebox'
import { callerOf } from '#platform/http/guard.ts'
import type { HttpApp } from '#platform/http/server.ts'
import { drawChart } from './chart.ts'
import type { Counts, CountsQuery } from './counts.ts'
import { errors } from './errors.ts'
import type { Reading } from './reading.ts'
import { Shown, showStream, writeRecord } from './shapes.ts'
import type { ReadyStream, Streams } from './streams.ts'
import type { StreamRow } from './types.ts'

export interface RoutesDeps {
  streams: Streams
  reading: Reading
  counts: { count(stream: StreamRow, query: CountsQuery): Promise<Counts> }
}

const tags = ['streams']
const reads = { access: 'user', scope: 'streams:read' } as const
const declares = { access: 'admin', scope: 'streams:declare' } as const
const params = Type.Object({ name: Type.String() })
const pageMax = 1000

export function addRoutes(app: HttpApp, deps: RoutesDeps) {
  addStreamRoutes(app, deps)
  addReadRoutes(app, deps)
  addCountRoutes(app, deps)
}

function addStreamRoutes(app: HttpApp, { streams }: RoutesDeps) {
  app.put(
    '/v1/streams/:name',
    {
      config: declares,
      schema: {
        tags,
        summary: 'Declare a stream, or change what is declared of it',
        description: 'What is declared holds for the records that come from then on.',
        params,
        body: Shown.Declaration,
        response: { 200: Shown.Stream, 201: Shown.Stream },
      },
    },
    async (request, reply) => {
      const { schema, dimensions, routes, sticky_by: stickyBy = null, ...rest } = request.body
      const { stream, isNew } = await streams.declare(request.params.name, {
        schema: schema as Record<string, unknown>,
        dimensions,
        weights: routes,
        stickyBy,
        retentionDays: rest.retention_days,
        writers: rest.writers,
        readers: rest.readers,
      })
      return reply.status(isNew ? 201 : 200).send(showStream(stream))
    },
  )

  app.get(
    '/v1/streams',
    {
      config: reads,
      schema: {
        tags,
        summary: 'Streams you may read, by name',
        querystring: Type.Object({
          after: Type.String({ default: '', pattern: '^[a-z0-9_-]{0,64}$', description: 'The last name you have.' }),
          limit: Type.Integer({ default: 50, minimum: 1, maximum: 200 }),
        }),
        response: { 200: Type.Object({ streams: Type.Array(Shown.Stream), next: Type.Optional(Type.String()) }) },
      },
    },
    async request => {
      const { after, limit } = request.query
      const found = await streams.list(callerOf(request), { after, limit: limit + 1 })
      const page = found.slice(0, limit)
      return { streams: page.map(showStream), ...(found.length > limit ? { next: page.at(-1)!.name } : {}) }
    },
  )

  app.get(
    '/v1/streams/:name',
    {
      config: reads,
      schema: { tags, summary: 'What is declared of a stream', params, response: { 200: Shown.Stream } },
    },
    async request => showStream(await streams.getReadable(callerOf(request), request.params.name)),
  )

  app.delete(
    '/v1/streams/:name',
    {
      config: declares,
      schema: { tags, summary: 'Delete a stream with its records and counts', params, response: { 204: Type.Null() } },
    },
    async (request, reply) => {
      await streams.remove(request.params.name)
      return reply.status(204).send(null)
    },
  )
}

function addReadRoutes(app: HttpApp, { streams, reading }: RoutesDeps) {
  app.get(
    '/v1/streams/:name/records',
    {
      config: reads,
      schema: {
        tags,
        summary: 'Records above an offset, in their order',
        description:
          '`next` is what to pass as `after` for what comes next; an empty page is the last one. A page ends at 4 MiB of ' +
          'records, whatever its `limit`. To follow a stream as it grows, take the live topic `streams/<name>`.',
        params,
        querystring: Type.Object({
          after: Type.String({
            default: '0',
            maxLength: 32,
            description: 'An offset as it was answered; 0 is the beginning.',
          }),
          limit: Type.Integer({ default: 100, minimum: 1, maximum: pageMax }),
        }),
        response: { 200: { description: '`{"records":[{"offset","at","route","record"}],"next"}`' } },
      },
    },
    async (request, reply) => {
      const stream = await streams.getReadable(callerOf(request), request.params.name)
      const { after, limit } = request.query
      const from = await reading.resolve(stream, after)
      const records = from === undefined ? [] : await reading.read(stream, { after: from, limit })
      const next = String(records.at(-1)?.offset ?? from ?? after)
      // Written by us: the records are JSON already.
      reply.type('application/json; charset=utf-8')
      return reply.send(`{"records":[${records.map(writeRecord).join(',')}],"next":${JSON.stringify(next)}}` as never)
    },
  )
}

const countsQuery = {
  by: Type.String({
    default: '',
    maxLength: 300,
    description: 'Dimensions of the stream, joined by commas, or `route`.',
  }),
  every: Type.Optional(
    Type.String({ pattern: '^[1-9][0-9]{0,4}[mhd]$', description: 'Steps in time, such as `1m`, `15m`, `1h`, `1d`.' }),
  ),
  from: Type.Optional(Type.String({ format: 'date-time', description: 'Rounded down to the minute.' })),
  to: Type.Optional(Type.String({ format: 'date-time', description: 'Rounded up to the minute. Default: now.' })),
}

const unitMs = { m: 60_000, h: 3_600_000, d: 86_400_000 }

function addCountRoutes(app: HttpApp, { streams, counts }: RoutesDeps) {
  app.get(
    '/v1/streams/:name/counts',
    {
      config: reads,
      schema: {
        tags,
        summary: 'How many records, by their dimensions and by time',
        description:
          'Kept by minute, hour and day as records come, so the answer does not read the records. Records of route A ' +
          'are counted by its consumer, a moment after they were accepted. Values beyond the first 10,000 combinations ' +
          'are counted as `(other)`. Without `from`, steps in time go back 60 steps, and totals to the beginning.',
        params,
        querystring: Type.Object(countsQuery),
        response: { 200: Shown.Counts },
      },
    },
    async request => {
      const stream = await streams.getReadable(callerOf(request), request.params.name)
      const query = readQuery(request.query)
      const { from, to, rows } = await counts.count(stream, query)
      return {
        by: [...query.by],
        every: request.query.every ?? null,
        from: from?.toISOString() ?? null,
        to: to.toISOString(),
        total: rows.reduce((sum, row) => sum + row.count, 0),
        rows: rows.map(({ at, values, count }) => ({ ...(at ? { at: at.toISOString() } : {}), values, count })),
      }
    },
  )

  app.get(
    '/v1/streams/:name/chart.svg',
    {
      config: reads,
      schema: {
        tags,
        summary: 'The counts, drawn',
        description: 'Takes what `counts` takes. With `every` a line for each combination of values, else a bar.',
        params,
        querystring: Type.Object(countsQuery),
        response: { 200: { content: { 'image/svg+xml': { schema: Type.String() } } } },
      },
    },
    async (request, reply) => {
      const stream: ReadyStream = await streams.getReadable(callerOf(request), request.params.name)
      const asked = request.query
      const query = readQuery(asked.by === '' ? { ...asked, by: stream.dimensions[0] ?? '' } : asked)
      const svg = drawChart({ title: stream.name, ...query, ...(await counts.count(stream, query)) })
      return reply
        .type('image/svg+xml; charset=utf-8')
        .header('cache-control', 'no-store')
        .header('content-security-policy', "default-src 'none'; style-src 'unsafe-inline'; sandbox")
        .header('x-content-type-options', 'nosniff')
        .send(svg as never)
    },
  )
}

/** @throws bad_counts_query */
function readQuery(query: { by: string; every?: string; from?: string; to?: string }): CountsQuery {
  const { every, from, to } = query
  return {
    by: query.by === '' ? [] : query.by.split(','),
    everyMs: every === undefined ? undefined : Number(every.slice(0, -1)) * unitMs[every.at(-1) as keyof typeof unitMs],
    from: readTime(from),
    to: readTime(to),
  }
}

function readTime(text: string | undefined): Date | undefined {
  if (text === undefined) return undefined
  const time = new Date(text)
  if (Number.isNaN(time.getTime())) throw errors.badCountsQuery(`\`${text.slice(0, 40)}\` is no time.`)
  return time
}
