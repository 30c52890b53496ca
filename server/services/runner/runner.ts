import { makeBatcher, type Outcome } from '#platform/batch.ts'
import { type Database, isConnectionLoss, type Tx } from '#platform/database/pool.ts'
import { assertScope, type Caller } from '#platform/http/guard.ts'
import { type Claim, claimKeys, type IdempotencyKey, idempotently } from '#platform/http/idempotency.ts'
import { isUuid, uuidv7, uuidv7Floor } from '#platform/ids.ts'
import type { Jobs } from '#platform/jobs/jobs.ts'
import type { LiveEvent, TopicSource } from '#platform/live/live.ts'
import type { Waits } from '#platform/waits.ts'
import { errors } from './errors.ts'
import { runsQueue } from './jobs.ts'
import { checkRun, type Languages, type RunInput } from './requests.ts'
import type { RunnerSettings } from './settings.ts'
import * as store from './store.ts'
import type { RunRequest } from './types.ts'

export type RunOwner = Pick<Caller, 'userId' | 'name' | 'role'>

/** An accepted run: what was answered, now or, for a repeated request, the first time. */
export interface Accepted {
  id: string
  createdAt: Date
  request: RunRequest
  /** False where an earlier request with the same key made it. */
  isNew: boolean
}

export interface Runner {
  /** Checks the run and accepts it; it is durable when this resolves. Concurrent calls share a commit. */
  submit(given: { owner: RunOwner; input: RunInput; key?: IdempotencyKey; requestId?: string }): Promise<Accepted>
  readonly waits: Waits
  /** @throws run_not_found for another's too */
  getRun(caller: RunOwner, id: string): Promise<store.RunRow>
  getLatestRun(caller: RunOwner): Promise<store.RunRow>
  listRuns(filter: store.RunFilter): Promise<store.RunSummaryRow[]>
  listHistory(caller: RunOwner, limit: number): ReturnType<typeof store.listHistory>
  /** @throws run_not_found, job_ended */
  cancel(given: { caller: RunOwner; id: string; key?: IdempotencyKey }): Promise<void>
  /** Forgets old runs. */
  forgetOld(): Promise<void>
  readonly source: TopicSource
}

export interface RunnerDeps {
  db: Database
  jobs: Jobs
  waits: Waits
  settings: RunnerSettings
  languages: Languages
  /** Why no program can be run, where that is so. */
  unavailable: string | undefined
  clock: () => number
}

interface Submission {
  owner: RunOwner
  accepted: Accepted
  key: IdempotencyKey | undefined
  requestId: string | undefined
}

const submissionsMax = 500
const submissionsWaitingMax = 20_000
const forgetMax = 1000

export function makeRunner(deps: RunnerDeps): Runner {
  const { db, jobs, settings } = deps

  const submissions = makeBatcher<Submission, Accepted>({
    name: 'new runs',
    size: submissionsMax,
    waitingMax: submissionsWaitingMax,
    isCommon: isConnectionLoss,
    run: items => db.tx(tx => acceptAll(tx, items)),
  })

  async function submit(given: Parameters<Runner['submit']>[0]): Promise<Accepted> {
    if (deps.unavailable !== undefined) throw errors.sandboxUnavailable(deps.unavailable)
    const request = checkRun(given.input, deps.languages, settings)
    if (jobs.depth(runsQueue) >= settings.RUN_WAITING_MAX) throw errors.queueFull()
    const accepted = { id: uuidv7(deps.clock()), createdAt: new Date(deps.clock()), request, isNew: true }
    return submissions.push({ owner: given.owner, accepted, key: given.key, requestId: given.requestId })
  }

  /** Inserts runs and their jobs in one transaction; a refused one costs the others nothing. */
  async function acceptAll(tx: Tx, items: Submission[]): Promise<Outcome<Accepted>[]> {
    const claims = await claimKeys<AcceptedJson>(
      tx,
      items.map(item => ({ key: item.key, answer: { status: 202, body: toJson(item.accepted) } })),
    )
    const counts = await jobs.countOwned(tx, {
      queue: runsQueue,
      owners: [...new Set(items.map(item => item.owner.userId))],
    })
    const outcomes = items.map((item, index) => judge(item, claims[index]!, counts))
    const fresh = items.filter((_, index) => claims[index] === 'fresh' && 'value' in outcomes[index]!)
    if (fresh.length > 0) await insertAll(tx, fresh)
    return outcomes
  }

  function judge(item: Submission, claim: Claim<AcceptedJson>, counts: Map<string, number>): Outcome<Accepted> {
    if (claim === 'fresh') {
      const owned = counts.get(item.owner.userId) ?? 0
      // A key whose request is refused must stay free: the whole batch is rolled back and tried item by item.
      if (owned >= settings.RUN_WAITING_PER_USER) {
        if (item.key) throw errors.tooManyRuns(settings.RUN_WAITING_PER_USER)
        return { error: errors.tooManyRuns(settings.RUN_WAITING_PER_USER) }
      }
      counts.set(item.owner.userId, owned + 1)
      return { value: item.accepted }
    }
    if ('error' in claim) return claim
    return { value: fromJson(claim.answer.body) }
  }

  async function insertAll(tx: Tx, items: Submission[]) {
    await store.insertRuns(
      tx,
      items.map(({ owner, accepted }) => ({
        id: accepted.id,
        owner: owner.userId,
        ownerName: owner.name,
        request: accepted.request,
        createdAt: accepted.createdAt,
      })),
    )
    await jobs.add(
      tx,
      items.map(({ owner, accepted, requestId }) => ({
        id: accepted.id,
        queue: runsQueue,
        payload: { language: accepted.request.language },
        owner: owner.userId,
        requestId,
      })),
    )
  }

  async function assertMayRead(caller: RunOwner, id: string) {
    // A topic's id may be any word.
    const owner = isUuid(id) ? await store.findOwner(db, id) : undefined
    if (owner === undefined || (owner !== caller.userId && caller.role !== 'admin')) throw errors.runNotFound()
  }

  return {
    submit,
    waits: deps.waits,
    async getRun(caller, id) {
      const run = await store.findRun(db, id)
      if (!run || (run.owner !== caller.userId && caller.role !== 'admin')) throw errors.runNotFound()
      return run
    },
    async getLatestRun(caller) {
      const run = await store.findLatestRun(db, caller.userId)
      if (!run) throw errors.runNotFound()
      return run
    },
    listRuns: filter => store.listRuns(db, filter),
    listHistory: (caller, limit) => store.listHistory(db, caller.userId, limit),
    async cancel({ caller, id, key }) {
      await assertMayRead(caller, id)
      await idempotently(db, key, async tx => {
        await jobs.cancel(tx, id)
        return { status: 202, body: { id } }
      })
    },
    async forgetOld() {
      const floor = uuidv7Floor(new Date(deps.clock() - settings.RUN_KEEP_DAYS * 86_400_000))
      while ((await db.tx(tx => store.deleteOldRuns(tx, { floor, limit: forgetMax }))) === forgetMax);
    },
    source: {
      kind: 'runs',
      async authorize(caller, id) {
        assertScope(caller, 'runs:read')
        await assertMayRead(caller, id)
      },
      read: async (id, after, limit) => (await store.listEvents(db, { runId: id, after, limit })).map(toLiveEvent),
      heads: ids => store.listHeads(db, ids),
    },
  }
}

function toLiveEvent(row: store.EventRow): LiveEvent {
  if (row.type === 'output') {
    return { seq: row.seq, type: 'output', data: { stream: row.stream, text: row.chunk?.toString('utf8') ?? '' } }
  }
  const status = row.data?.status
  return { seq: row.seq, type: 'status', data: row.data, final: status !== 'queued' && status !== 'running' }
}

type AcceptedJson = Omit<Accepted, 'createdAt' | 'isNew'> & { createdAt: string }

function toJson(accepted: Accepted): AcceptedJson {
  const { id, createdAt, request } = accepted
  return { id, createdAt: createdAt.toISOString(), request }
}

function fromJson(json: AcceptedJson): Accepted {
  return { ...json, createdAt: new Date(json.createdAt), isNew: false }
}
