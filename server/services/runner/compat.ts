/** The old code runner's routes: CONTRACTS say what they take and answer; the runs are the same runs. */
import { Type } from 'typebox'
import { closedSignal } from '#platform/http/closed-signal.ts'
import { callerOf } from '#platform/http/guard.ts'
import type { HttpApp } from '#platform/http/server.ts'
import { errors } from './errors.ts'
import type { Runner } from './runner.ts'
import type { RunStatus } from './types.ts'

/** Below the time-outs of common proxies. */
const waitMs = 55_000
const historyMax = 1000

export function addCompatRoutes(app: HttpApp, runner: Runner) {
  const tags = ['old contract: code runs']

  app.post(
    '/api/run_code',
    {
      config: { access: 'user', scope: 'runs:write', errorShape: 'legacy' },
      schema: {
        tags,
        summary: 'Run a program and wait for its end',
        body: Type.Object({ language: Type.String(), content: Type.String() }),
      },
    },
    async (request, reply) => {
      const caller = callerOf(request)
      const { language, content } = request.body
      const begun = performance.now()
      const { id, isNew } = await runner.submit({
        owner: caller,
        input: { language, source: content },
        requestId: request.id,
      })
      const ended = await runner.waits.waitFor({ id, waitMs, signal: closedSignal(reply), isNew })
      if (!ended) throw errors.stillQueued(id)
      const seconds = (performance.now() - begun) / 1000
      const lines = [
        `UUID is ${id}`,
        '',
        `User is ${caller.name}`,
        '',
        'Code executed is:',
        '',
        content,
        `Time between instanciation and result is ${seconds} seconds`,
      ]
      return reply.type('text/plain; charset=utf-8').send(lines.join('\n'))
    },
  )

  app.get(
    '/api/get_history',
    {
      config: { access: 'user', scope: 'runs:read', errorShape: 'legacy' },
      schema: {
        tags,
        summary: 'Your newest runs, oldest of them first',
        querystring: Type.Object({ limit: Type.Integer({ minimum: 1, maximum: historyMax, default: historyMax }) }),
      },
    },
    async request => {
      const caller = callerOf(request)
      const runs = await runner.listHistory(caller, request.query.limit)
      return {
        data: runs.map(run => {
          const ended = run.status !== 'queued' && run.status !== 'running'
          return {
            UserID: caller.number ?? 0,
            // The old server's times had microseconds.
            InstanciationTS: run.created_at.toISOString().replace('Z', '000Z'),
            RequestUUID: run.id,
            CodeContent: run.files[0]?.content ?? '',
            WorkerStatus: nullString(ended, oldStatus(run.status)),
            OutputResult: nullString(ended, `${run.stdout ?? ''}${run.stderr ?? ''}`),
          }
        }),
      }
    },
  )
}

/** A text that may be null, as Go's database/sql shows it. */
function nullString(valid: boolean, text: string) {
  return valid ? { String: text, Valid: true } : { String: '', Valid: false }
}

function oldStatus(status: RunStatus): string {
  return status === 'succeeded' ? 'success' : status
}
