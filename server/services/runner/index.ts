import type { Bus } from '#platform/bus.ts'
import type { Database } from '#platform/database/pool.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Jobs } from '#platform/jobs/jobs.ts'
import type { Live } from '#platform/live/live.ts'
import type { Log } from '#platform/log.ts'
import { makeWaits } from '#platform/waits.ts'
import { addCompatRoutes } from './compat.ts'
import { endedChannel, makeRunQueue } from './jobs.ts'
import { indexLanguages } from './requests.ts'
import { addRoutes } from './routes.ts'
import { makeRunner, type Runner } from './runner.ts'
import { detectLanguages, makeSandbox, type SandboxFacts } from './sandbox/index.ts'
import type { RunnerSettings } from './settings.ts'
import * as store from './store.ts'

export { type RunnerSettings, runnerSettings } from './settings.ts'
export const runnerScopes = ['runs:read', 'runs:write'] as const

export interface RunnerDeps {
  db: Database
  jobs: Jobs
  live: Live
  bus: Bus
  log: Log
  settings: RunnerSettings
  /** Whether this process works runs; one that does not only accepts and shows them. */
  work: boolean
  clock?: () => number
}

export interface RunnerService extends Pick<Runner, 'submit' | 'waits'> {
  /** Undefined in a process that works no runs. */
  readonly facts: SandboxFacts | undefined
  routes(app: HttpApp): Promise<void>
  compatRoutes(app: HttpApp): Promise<void>
  /** Forgets what is old; call it now and then. */
  maintain(): Promise<void>
  /** Kills what still runs. Call it when the jobs have stopped. */
  stop(): Promise<void>
}

/** Finds the languages of this machine, makes the sandbox where programs are to run, and defines the queue. */
export async function makeRunnerService(deps: RunnerDeps): Promise<RunnerService> {
  const { db, jobs, live, bus, log, settings } = deps
  const found = await detectLanguages()
  const languages = indexLanguages(found)
  const sandbox = deps.work
    ? await makeSandbox({
        runtimes: found.map(language => language.runtime).slice(0, 1),
        warm: settings.RUN_WARM_BOXES,
        warmDiskBytes: settings.RUN_DISK_BYTES,
        boxesMax: settings.RUN_CONCURRENCY + settings.RUN_WARM_BOXES,
        cgroups: settings.RUN_CGROUPS ? 'auto' : 'none',
      })
    : undefined
  if (sandbox) log[sandbox.facts.available ? 'info' : 'warn'](sandbox.facts.sentence)
  const unavailable = sandbox && !sandbox.facts.available ? (sandbox.facts.reason ?? 'there is no sandbox.') : undefined
  const working = unavailable === undefined ? sandbox : undefined

  jobs.define(makeRunQueue({ db, live, bus, log, settings, languages, sandbox: working }))
  const waits = makeWaits({ bus, log, channel: endedChannel, find: ids => store.findEnded(db, ids) })
  const runner = makeRunner({ db, jobs, waits, settings, languages, unavailable, clock: deps.clock ?? Date.now })
  live.addSource(runner.source)
  return {
    facts: sandbox?.facts,
    submit: runner.submit,
    waits,
    async routes(app) {
      addRoutes(app, { runner, languages: found, facts: sandbox?.facts, settings })
    },
    async compatRoutes(app) {
      addCompatRoutes(app, runner)
    },
    maintain: () => runner.forgetOld(),
    async stop() {
      await sandbox?.close()
    },
  }
}
