import { type Static, Type } from 'typebox'
import { closedSignal } from '#platform/http/closed-signal.ts'
import { decodeCursor, encodeCursor } from '#platform/http/cursor.ts'
import { callerOf } from '#platform/http/guard.ts'
import { idempotencyKeyOf } from '#platform/http/idempotency.ts'
import { isIdCursor, nullable, time } from '#platform/http/schema.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Accepted, Runner } from './runner.ts'
import type { Language, SandboxFacts } from './sandbox/index.ts'
import type { RunnerSettings } from './settings.ts'
import type { RunRow, RunSummaryRow } from './store.ts'
import { type RunRequest, runStatuses } from './types.ts'

const waitSecondsMax = 60
const idParams = Type.Object({ id: Type.String({ format: 'uuid' }) })

const Status = Type.Enum(runStatuses)
const limitFields = {
  cpu_ms: Type.Integer({ minimum: 1, description: 'CPU time of all its processes together, in ms.' }),
  wall_ms: Type.Integer({ minimum: 1, description: 'Time from start to end, in ms.' }),
  memory_bytes: Type.Integer({ minimum: 8 * 1024 * 1024, description: 'Memory, its disk included, in bytes.' }),
  processes: Type.Integer({ minimum: 1, description: 'Processes and threads.' }),
  output_bytes: Type.Integer({ minimum: 0, description: 'Bytes kept of stdout and of stderr; the rest is cut.' }),
}
const File = Type.Object(
  { name: Type.String({ minLength: 1, maxLength: 200 }), content: Type.String() },
  { additionalProperties: false },
)

const RunBody = Type.Object(
  {
    language: Type.String({ minLength: 1, maxLength: 40, description: 'An id or alias from /v1/languages.' }),
    source: Type.Optional(Type.String({ description: 'The program, where it is one file.' })),
    files: Type.Optional(
      Type.Array(File, { maxItems: 100, description: 'The program, where it is several; the first is run.' }),
    ),
    stdin: Type.Optional(Type.String()),
    args: Type.Optional(Type.Array(Type.String({ maxLength: 4096 }), { maxItems: 100 })),
    limits: Type.Optional(Type.Partial(Type.Object(limitFields), { additionalProperties: false })),
  },
  { additionalProperties: false },
)

const Limits = Type.Object(limitFields)
const summaryFields = {
  id: Type.String({ format: 'uuid' }),
  status: Status,
  language: Type.String(),
  language_version: nullable(Type.String()),
  args: Type.Array(Type.String()),
  limits: Limits,
  attempt: Type.Integer({ description: 'How often it was begun; more than 1 where a worker was lost.' }),
  exit_code: nullable(Type.Integer()),
  signal: nullable(Type.String()),
  cpu_ms: nullable(Type.Integer()),
  wall_ms: nullable(Type.Integer()),
  memory_bytes: nullable(Type.Integer({ description: 'The most it had at once.' })),
  queue_ms: nullable(Type.Integer({ description: 'From acceptance to start.' })),
  stdout_truncated: Type.Boolean(),
  stderr_truncated: Type.Boolean(),
  error: nullable(Type.String({ description: 'Why we could not run it, where the status is `error`.' })),
  created_at: time,
  started_at: nullable(time),
  finished_at: nullable(time),
}
const Summary = Type.Object(summaryFields)
const Run = Type.Object({
  ...summaryFields,
  files: Type.Array(File),
  stdin: Type.String(),
  stdout: Type.String({
    description: 'Bytes that are not UTF-8 are shown as U+FFFD; ask with `encoding=base64` for all of them.',
  }),
  stderr: Type.String(),
})
const RunList = Type.Object({ runs: Type.Array(Summary), next_cursor: nullable(Type.String()) })
const encodingQuery = { encoding: Type.Optional(Type.Enum(['utf8', 'base64'])) }

export interface RunnerRoutesDeps {
  runner: Runner
  languages: readonly Language[]
  facts: SandboxFacts | undefined
  settings: RunnerSettings
}

export function addRoutes(app: HttpApp, { runner, languages, facts, settings }: RunnerRoutesDeps) {
  const tags = ['runs']
  const read = { access: 'user', scope: 'runs:read' } as const
  const write = { access: 'user', scope: 'runs:write' } as const

  app.post(
    '/v1/runs',
    {
      config: write,
      schema: {
        tags,
        summary: 'Run a program',
        description:
          'Answers 202 once the run is durable; with `wait`, 200 and the result when it ends in that many seconds.',
        querystring: Type.Object({
          wait: Type.Optional(Type.Number({ minimum: 0, maximum: waitSecondsMax })),
          ...encodingQuery,
        }),
        body: RunBody,
        response: { 200: Run, 202: Run },
      },
    },
    async (request, reply) => {
      const caller = callerOf(request)
      const key = idempotencyKeyOf(request)
      const accepted = await runner.submit({
        owner: caller,
        input: request.body,
        ...(key ? { key } : {}),
        requestId: request.id,
      })
      reply.header('location', `/v1/runs/${accepted.id}`)
      const { wait, encoding } = request.query
      const { id, isNew } = accepted
      if (wait && (await runner.waits.waitFor({ id, waitMs: wait * 1000, signal: closedSignal(reply), isNew }))) {
        return reply.status(200).send(showRun(await runner.getRun(caller, accepted.id), encoding))
      }
      return reply.status(202).send(showAccepted(accepted))
    },
  )

  app.get(
    '/v1/runs/:id',
    {
      config: read,
      schema: {
        tags,
        summary: 'A run',
        params: idParams,
        querystring: Type.Object(encodingQuery),
        response: { 200: Run },
      },
    },
    async request => showRun(await runner.getRun(callerOf(request), request.params.id), request.query.encoding),
  )

  app.get(
    '/v1/runs/latest',
    {
      config: read,
      schema: { tags, summary: 'Your newest run', querystring: Type.Object(encodingQuery), response: { 200: Run } },
    },
    async request => showRun(await runner.getLatestRun(callerOf(request)), request.query.encoding),
  )

  app.get(
    '/v1/runs',
    {
      config: read,
      schema: {
        tags,
        summary: 'Your runs, newest first',
        querystring: Type.Object({
          cursor: Type.Optional(Type.String({ maxLength: 200 })),
          limit: Type.Integer({ minimum: 1, maximum: 100, default: 20 }),
          language: Type.Optional(Type.String({ maxLength: 40 })),
          status: Type.Optional(Status),
        }),
        response: { 200: RunList },
      },
    },
    async request => {
      const { cursor, limit, language, status } = request.query
      const before = decodeCursor(cursor, isIdCursor)?.[0]
      const runs = await runner.listRuns({ owner: callerOf(request).userId, language, status, before, limit })
      return {
        runs: runs.map(showSummary),
        next_cursor: runs.length === limit ? encodeCursor([runs.at(-1)!.id]) : null,
      }
    },
  )

  app.post(
    '/v1/runs/:id/cancel',
    {
      config: write,
      schema: {
        tags,
        summary: 'Stop a run',
        description: 'A waiting run ends at once; a running one is killed and ends within moments.',
        params: idParams,
        response: { 202: Run },
      },
    },
    async (request, reply) => {
      const caller = callerOf(request)
      const key = idempotencyKeyOf(request)
      await runner.cancel({ caller, id: request.params.id, ...(key ? { key } : {}) })
      return reply.status(202).send(showRun(await runner.getRun(caller, request.params.id), 'utf8'))
    },
  )

  app.get(
    '/v1/languages',
    {
      config: { access: 'public' },
      schema: {
        tags,
        summary: 'What can be run here, and within which limits',
        response: {
          200: Type.Object({
            languages: Type.Array(
              Type.Object({
                id: Type.String(),
                name: Type.String(),
                version: Type.String(),
                aliases: Type.Array(Type.String()),
                source_file: Type.String(),
              }),
            ),
            limits: Type.Object({
              default: Limits,
              max: Limits,
              source_bytes: Type.Integer(),
              stdin_bytes: Type.Integer(),
            }),
            sandbox: Type.String({ description: 'How programs are kept apart here.' }),
          }),
        },
      },
    },
    async () => ({
      languages: languages.map(({ id, name, version, aliases, sourceFile }) => ({
        id,
        name,
        version,
        aliases,
        source_file: sourceFile,
      })),
      limits: {
        default: showLimits({
          cpuMs: settings.RUN_CPU_MS,
          wallMs: settings.RUN_WALL_MS,
          memoryBytes: settings.RUN_MEMORY_BYTES,
          processes: settings.RUN_PROCESSES,
          outputBytes: settings.RUN_OUTPUT_BYTES,
        }),
        max: showLimits({
          cpuMs: settings.RUN_CPU_MS_MAX,
          wallMs: settings.RUN_WALL_MS_MAX,
          memoryBytes: settings.RUN_MEMORY_BYTES_MAX,
          processes: settings.RUN_PROCESSES_MAX,
          outputBytes: settings.RUN_OUTPUT_BYTES_MAX,
        }),
        source_bytes: settings.RUN_SOURCE_BYTES,
        stdin_bytes: settings.RUN_STDIN_BYTES,
      },
      sandbox: facts?.sentence ?? 'Programs are run by other processes.',
    }),
  )
}

function showLimits(limits: RunRequest['limits']): Static<typeof Limits> {
  return {
    cpu_ms: limits.cpuMs,
    wall_ms: limits.wallMs,
    memory_bytes: limits.memoryBytes,
    processes: limits.processes,
    output_bytes: limits.outputBytes,
  }
}

function showSummary(run: RunSummaryRow): Static<typeof Summary> {
  return {
    id: run.id,
    status: run.status,
    language: run.language,
    language_version: run.language_version,
    args: run.args,
    limits: showLimits(run.limits),
    attempt: run.attempt,
    exit_code: run.exit_code,
    signal: run.signal,
    cpu_ms: run.cpu_ms,
    wall_ms: run.wall_ms,
    memory_bytes: run.memory_bytes,
    queue_ms: run.started_at ? Math.max(0, run.started_at.getTime() - run.created_at.getTime()) : null,
    stdout_truncated: run.stdout_truncated,
    stderr_truncated: run.stderr_truncated,
    error: run.error,
    created_at: run.created_at.toISOString(),
    started_at: run.started_at?.toISOString() ?? null,
    finished_at: run.finished_at?.toISOString() ?? null,
  }
}

function showRun(run: RunRow, encoding: 'utf8' | 'base64' = 'utf8'): Static<typeof Run> {
  return {
    ...showSummary(run),
    files: run.files,
    stdin: run.stdin,
    stdout: run.stdout?.toString(encoding) ?? '',
    stderr: run.stderr?.toString(encoding) ?? '',
  }
}

/** A run just accepted, as its row is, without reading it. */
function showAccepted({ id, createdAt, request }: Accepted): Static<typeof Run> {
  return {
    id,
    status: 'queued',
    language: request.language,
    language_version: null,
    args: request.args,
    limits: showLimits(request.limits),
    attempt: 0,
    exit_code: null,
    signal: null,
    cpu_ms: null,
    wall_ms: null,
    memory_bytes: null,
    queue_ms: null,
    stdout_truncated: false,
    stderr_truncated: false,
    error: null,
    created_at: createdAt.toISOString(),
    started_at: null,
    finished_at: null,
    files: request.files,
    stdin: request.stdin,
    stdout: '',
    stderr: '',
  }
}
