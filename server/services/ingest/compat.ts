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
import { type Streams, withCurrent } from './streams.ts'

export interface CompatDeps {
  streams: Pick<Streams, 'get' | 'getWritable' | 'forget'>
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
      const find = () => (caller ? streams.getWritable(caller, coursesName) : streams.get(coursesName))
      const accepted = await withCurrent(streams, find, async stream => {
        let record: ReturnType<typeof prepareRecord>
        try {
          record = prepareRecord(stream.rules, decodeBody(request.body))
        } catch (error) {
          onRefused(stream.name, 1)
          throw error
        }
        return appending.appendOne(stream, record)
      })
      return reply.status(201).send(accepted)
    },
  )
}
