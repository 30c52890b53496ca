/**
 * Knows which sessions ended before their time. A process serves nobody on knowledge older than three seconds: it
 * follows the table once a second, hears of new rows at once by the bus, and where its knowledge is older none the
 * less, whoever asks waits for a look at the table. Without the database the answer is 503, not a guess.
 */
import type { Bus } from '#platform/bus.ts'
import type { Database } from '#platform/database/pool.ts'
import { errors } from '#platform/errors.ts'
import type { Log } from '#platform/log.ts'
import * as store from './store.ts'

export interface Revocations {
  has(sessionId: string): boolean
  isFresh(): boolean
  /** Looks at the table until what is known is fresh. @throws unavailable */
  catchUp(): Promise<void>
  /** Tells this process and the others. Call it after the commit that deleted the sessions. */
  announce(sessionIds: readonly string[]): void
  maintain(): Promise<void>
  start(): void
  stop(): Promise<void>
}

const channel = 'identity.sessions'
const pollEveryMs = 1000
const freshForMs = 3000
/** A row's time is taken shortly before its commit; what commits later than this after it would be overlooked. */
const overlapSeconds = 30
const pageSize = 5000
/** Longer than any token is remembered without another look at its session, which is an hour at most. */
const keepMinutes = 70

export function makeRevocations(options: { db: Database; bus: Bus; log: Log }): Revocations {
  const { db, bus, log } = options
  /** When each was first heard of; in that order. */
  const revoked = new Map<string, number>()
  let newest: store.Revocation | undefined
  let freshAtMs = Number.NEGATIVE_INFINITY
  let polling: Promise<void> | undefined
  let timer: NodeJS.Timeout | undefined
  let unsubscribe: (() => void)[] = []
  let isAway = false

  function add(sessionId: string) {
    if (!revoked.has(sessionId)) revoked.set(sessionId, performance.now())
  }

  const isFresh = () => performance.now() - freshAtMs < freshForMs

  /** One look at a time, which all who ask meanwhile share. */
  function look(): Promise<void> {
    polling ??= poll().finally(() => {
      polling = undefined
    })
    return polling
  }

  async function poll() {
    const askedAtMs = performance.now()
    try {
      await readNew()
      // What was committed before the question was asked is known now.
      freshAtMs = askedAtMs
      isAway = false
      forgetOld()
    } catch (error) {
      if (!isAway) log.warn({ err: error }, 'cannot read which sessions ended; nobody is let in until that works again')
      isAway = true
    }
  }

  async function catchUp() {
    // The look under way may have begun too long ago to be of use.
    for (let looks = 0; looks < 2 && !isFresh(); looks++) await look()
    if (!isFresh()) throw errors.unavailable('Sessions cannot be checked just now; the database is away or busy.')
  }

  async function readNew() {
    let overlap = overlapSeconds
    for (;;) {
      const rows = await store.listRevocations(db, { after: newest, overlapSeconds: overlap, limit: pageSize })
      for (const row of rows) add(row.session_id)
      newest = rows.at(-1) ?? newest
      if (rows.length < pageSize) return
      overlap = 0
    }
  }

  function forgetOld() {
    const before = performance.now() - keepMinutes * 60_000
    for (const [sessionId, heardAtMs] of revoked) {
      if (heardAtMs >= before) return
      revoked.delete(sessionId)
    }
  }

  const lookSoon = () => void look()

  return {
    has: sessionId => revoked.has(sessionId),
    isFresh,
    catchUp,
    announce(sessionIds) {
      for (const sessionId of sessionIds) add(sessionId)
      bus.publish(channel, sessionIds)
    },
    async maintain() {
      await store.deleteOldRevocations(db, { minutes: keepMinutes, limit: 10_000 })
    },
    start() {
      unsubscribe = [
        bus.subscribe(channel, sessionIds => {
          for (const sessionId of sessionIds) add(sessionId)
        }),
        bus.onGap(lookSoon),
      ]
      timer = setInterval(lookSoon, pollEveryMs)
      timer.unref()
    },
    async stop() {
      clearInterval(timer)
      for (const each of unsubscribe) each()
      unsubscribe = []
      await polling
    },
  }
}
