import { type Static, Type } from 'typebox'
import { decodeCursor, encodeCursor } from '../http/cursor.ts'
import type { Caller } from '../http/guard.ts'
import { callerOf } from '../http/guard.ts'
import { idempotencyKeyOf, idempotently } from '../http/idempotency.ts'
import { isIdCursor, nullable, time } from '../http/schema.ts'
import type { HttpApp } from '../http/server.ts'
import { errors } from './errors.ts'
import type { Jobs } from './jobs.ts'
import * as lists from './list-store.ts'

export const jobScopes = ['jobs:read', 'jobs:write'] as const

const State = Type.Enum(['waiting', 'delayed', 'running', 'succeeded', 'dead', 'cancelled'])
const jobFields = {
  id: Type.String({ format: 'uuid' }),
  queue: Type.String(),
  state: State,
  owner: nullable(Type.String()),
  priority: Type.Integer(),
  key: nullable(Type.String()),
  attempt: Type.Integer(),
  attempts_max: Type.Integer(),
  progress: Type.Unknown(),
  error: nullable(Type.String()),
  request_id: nullable(Type.String()),
  created_at: time,
  run_at: Type.String({ format: 'date-time', description: 'Not begun before.' }),
  started_at: nullable(time),
  finished_at: nullable(time),
}
const Job = Type.Object(jobFields)
const JobWithHistory = Type.Object({
  ...jobFields,
  payload: Type.Unknown(),
  result: Type.Unknown(),
  wait_ms: nullable(Type.Integer({ description: 'From creation to its latest start.' })),
  run_ms: nullable(Type.Integer({ description: 'From its latest start to its end.' })),
  attempts: Type.Array(
    Type.Object({
      attempt: Type.Integer(),
      outcome: Type.String({ description: 'failed, lost (its worker died) or handed_back (its worker was stopped).' }),
      worker: nullable(Type.String()),
      error: nullable(Type.String()),
      started_at: nullable(time),
      ended_at: time,
    }),
    { description: 'The attempts that did not end it.' },
  ),
})
const Queue = Type.Object({
  name: Type.String(),
  depth: Type.Integer({ description: 'Jobs that have not ended.' }),
  running: Type.Integer({ description: 'As of the workers’ last heartbeat.' }),
  delayed: Type.Integer({ description: 'Counted up to 10001.' }),
  oldest_age_ms: nullable(Type.Integer({ description: 'Age of the oldest of the next thousand in line.' })),
  added_per_minute: Type.Integer({ description: 'In the last whole minute.' }),
  ended_per_minute: Type.Integer({ description: 'In the last whole minute.' }),
  totals: Type.Object({
    added: Type.Integer(),
    succeeded: Type.Integer(),
    dead: Type.Integer(),
    cancelled: Type.Integer(),
    retried: Type.Integer(),
  }),
})

/** Users see and steer their own jobs, admins all. Another's job is not found. */
export function addJobRoutes(app: HttpApp, jobs: Jobs) {
  const { db } = jobs
  const tags = ['jobs']
  const params = Type.Object({ id: Type.String({ format: 'uuid' }) })
  const read = { access: 'user', scope: 'jobs:read' } as const
  const write = { access: 'user', scope: 'jobs:write' } as const

  async function getJob(caller: Caller, id: string): Promise<lists.JobRow> {
    const job = await lists.findJob(db, id)
    if (!job || (job.owner !== caller.userId && caller.role !== 'admin')) throw errors.jobNotFound()
    return job
  }

  async function getWithHistory(caller: Caller, id: string): Promise<Static<typeof JobWithHistory>> {
    const job = await getJob(caller, id)
    return showWithHistory(job, await lists.listAttempts(db, id))
  }

  app.get(
    '/v1/jobs',
    {
      config: read,
      schema: {
        tags,
        summary: 'Your jobs, newest first; for admins, everybody’s',
        querystring: Type.Object({
          queue: Type.Optional(Type.String({ maxLength: 100 })),
          state: Type.Optional(State),
          cursor: Type.Optional(Type.String({ maxLength: 200 })),
          limit: Type.Integer({ minimum: 1, maximum: 100, default: 20 }),
        }),
        response: { 200: Type.Object({ jobs: Type.Array(Job), next_cursor: nullable(Type.String()) }) },
      },
    },
    async request => {
      const caller = callerOf(request)
      const { queue, state, cursor, limit } = request.query
      const before = decodeCursor(cursor, isIdCursor)?.[0]
      const owner = caller.role === 'admin' ? undefined : caller.userId
      const rows = await lists.listJobs(db, { owner, queue, state, before, limit })
      return { jobs: rows.map(show), next_cursor: rows.length === limit ? encodeCursor([rows.at(-1)!.id]) : null }
    },
  )

  app.get(
    '/v1/jobs/:id',
    { config: read, schema: { tags, summary: 'A job with its attempts', params, response: { 200: JobWithHistory } } },
    async request => getWithHistory(callerOf(request), request.params.id),
  )

  for (const action of ['retry', 'cancel'] as const) {
    app.post(
      `/v1/jobs/:id/${action}`,
      {
        config: write,
        schema: {
          tags,
          summary:
            action === 'retry'
              ? 'Line a dead or cancelled job up again'
              : 'End a waiting job, or ask a running one to stop',
          params,
          response: { 202: JobWithHistory },
        },
      },
      async (request, reply) => {
        const caller = callerOf(request)
        const { id } = request.params
        await getJob(caller, id)
        const { body } = await idempotently(db, idempotencyKeyOf(request), async tx => {
          if (action === 'retry') await jobs.retry(tx, id)
          else await jobs.cancel(tx, id)
          const job = (await lists.findJob(tx, id))!
          return { status: 202, body: showWithHistory(job, await lists.listAttempts(tx, id)) }
        })
        return reply.status(202).send(body)
      },
    )
  }

  app.get(
    '/v1/queues',
    {
      config: read,
      schema: {
        tags,
        summary: 'How long the lines are and how fast they move',
        response: { 200: Type.Object({ queues: Type.Array(Queue) }) },
      },
    },
    async () => ({ queues: (await lists.listQueues(db)).map(showQueue) }),
  )
}

function show(job: lists.JobRow): Static<typeof Job> {
  return {
    id: job.id,
    queue: job.queue,
    state: job.state,
    owner: job.owner,
    priority: job.priority,
    key: job.key,
    attempt: job.attempt,
    attempts_max: job.attempts_max,
    progress: job.progress,
    error: job.error,
    request_id: job.request_id,
    created_at: job.created_at.toISOString(),
    run_at: job.run_at.toISOString(),
    started_at: job.started_at?.toISOString() ?? null,
    finished_at: job.finished_at?.toISOString() ?? null,
  }
}

function showWithHistory(job: lists.JobRow, attempts: lists.AttemptRow[]): Static<typeof JobWithHistory> {
  const startedMs = job.started_at?.getTime()
  return {
    ...show(job),
    payload: job.payload,
    result: job.result,
    wait_ms: startedMs === undefined ? null : Math.max(0, startedMs - job.created_at.getTime()),
    run_ms: startedMs === undefined || !job.finished_at ? null : Math.max(0, job.finished_at.getTime() - startedMs),
    attempts: attempts.map(row => ({
      attempt: row.attempt,
      outcome: row.outcome,
      worker: row.worker,
      error: row.error,
      started_at: row.started_at?.toISOString() ?? null,
      ended_at: row.ended_at.toISOString(),
    })),
  }
}

function showQueue(row: lists.QueueRow): Static<typeof Queue> {
  return {
    name: row.name,
    depth: Math.max(0, row.added - row.succeeded - row.dead - row.cancelled),
    running: row.running,
    delayed: row.delayed,
    oldest_age_ms: row.oldest_ms === null ? null : Math.round(row.oldest_ms),
    added_per_minute: row.added_per_minute,
    ended_per_minute: row.ended_per_minute,
    totals: {
      added: row.added,
      succeeded: row.succeeded,
      dead: row.dead,
      cancelled: row.cancelled,
      retried: row.retried,
    },
  }
}
