/** Makes the days that come and removes what is older than it is kept. */
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import { deleteOldRollups } from './rollup-store.ts'
import { deleteOldSegments, dropDay, findLongestRetention, listOldDays, makeDays } from './segment-store.ts'

const dayMs = 86_400_000
const daysAhead = 3
const deletedMax = 10_000

/** Once every few minutes; a bounded amount at once. */
export async function retain(deps: { db: Database; log: Log; rollupDays: number; clock: () => number }) {
  const { db, log, rollupDays, clock } = deps
  const now = new Date(clock())
  await makeDays(db, { first: now, days: daysAhead })
  const longest = await findLongestRetention(db)
  for (const name of await listOldDays(db, new Date(now.getTime() - longest * dayMs))) {
    await dropDay(db, name)
    log.info({ part: name }, 'a day of records was removed, as no stream keeps it')
  }
  await deleteOldSegments(db, { now, limit: deletedMax })
  await deleteOldRollups(db, { before: new Date(now.getTime() - rollupDays * dayMs), limit: deletedMax })
}
