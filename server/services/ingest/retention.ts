/** Makes the days that come and removes what is older than it is kept. */
import { type Database, sqlState, type Tx } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import { forgetLeftovers } from './leftover-store.ts'
import { deleteOldRollups } from './rollup-store.ts'
import { deleteOldSegments, dropDay, findLongestRetention, listOldDays, lockDays, makeDays } from './segment-store.ts'

const dayMs = 86_400_000
const daysAhead = 3
/** How long a store that is not there may come back and be rid of what it has of deleted streams. */
const leftoverDays = 90
/** Of one statement, and so many of those. */
const deletedMax = 10_000
const roundsMax = 100
const lockMs = 500
const lockNotAvailable = '55P03'

/**
 * Once every few minutes; a bounded amount at once, but more than a busy stream adds meanwhile.
 * @param deps now: by the database's clock; a process whose own is ahead must not remove what is not old yet
 */
export async function retain(deps: { db: Database; log: Log; rollupDays: number; now: Date }) {
  const { db, log, rollupDays, now } = deps
  await changeDays(deps, tx => makeDays(tx, { first: now, days: daysAhead }))
  const longest = await findLongestRetention(db)
  for (const name of await listOldDays(db, new Date(now.getTime() - longest * dayMs))) {
    const isDone = await changeDays(deps, tx => dropDay(tx, name))
    if (!isDone) break
    log.info({ part: name }, 'a day of records was removed, as no stream keeps it')
  }
  await untilFew(() => deleteOldSegments(db, { now, limit: deletedMax }))
  const before = new Date(now.getTime() - rollupDays * dayMs)
  await untilFew(() => deleteOldRollups(db, { before, limit: deletedMax }))
  await forgetLeftovers(db, leftoverDays)
}

/**
 * Answers whether it was done. It needs the table for itself for a moment: who reads it for long is not waited for, as
 * everybody who adds would wait behind. There is time to try again.
 */
async function changeDays({ db, log }: { db: Database; log: Log }, change: (tx: Tx) => Promise<void>) {
  try {
    return await db.tx(
      async tx => {
        if (!(await lockDays(tx))) return false
        await change(tx)
        return true
      },
      { parameters: { lock_timeout: String(lockMs) } },
    )
  } catch (error) {
    if (sqlState(error) !== lockNotAvailable) throw error
    log.info('somebody reads records for long; the days that have a part are changed later')
    return false
  }
}

async function untilFew(remove: () => Promise<number>) {
  for (let rounds = 0; rounds < roundsMax; rounds++) if ((await remove()) < deletedMax) return
}
