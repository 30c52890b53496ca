/** The old course pipeline's door: CONTRACTS say what it takes. */
import { callerUnlessOpen, type OpenRoutes } from '#platform/http/open-routes.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Appending } from './appending.ts'
import { coursesName } from './courses.ts'
import { prepareRecord } from './record.ts'
import { takeBodiesAsBytes } from './record-routes.ts'
import { decodeBody } from './requests.ts'
import type { IngestSettings } from './settings.ts'
import { Shown } from './shapes.ts'
import type { Streams } from './streams.ts'

export interface CompatDeps {
  streams: Pick<Streams, 'get' | 'getWritable'>
  appending: Pick<Appending, 'appendOne'>
  openRoutes: OpenRoutes
  settings: Pick<IngestSettings, 'INGEST_ARRAY_BYTES_MAX'>
  onRefused: (stream: string, records: number) => void
}

export function addCompatRoutes(app: HttpApp, { streams, appending, openRoutes, settings, onRefused }: CompatDeps) {
  takeBodiesAsBytes(app, settings.INGEST_ARRAY_BYTES_MAX)
  app.post(
    '/course',
    {
      config: { access: 'optional', scope: 'streams:write', errorShape: 'legacy' },
      schema: { tags: ['old contract: courses'], summary: 'Add a course record', response: { 201: Shown.Accepted } },
    },
    async (request, reply) => {
      const caller = callerUnlessOpen(request, openRoutes)
      const stream = caller ? await streams.getWritable(caller, coursesName) : await streams.get(coursesName)
      let record: ReturnType<typeof prepareRecord>
      try {
        record = prepareRecord(stream.rules, decodeBody(request.body))
      } catch (error) {
        onRefused(stream.name, 1)
        throw error
      }
      return reply.status(201).send(await appending.appendOne(stream, record))
    },
  )
}
