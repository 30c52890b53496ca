import { isAppError } from '#platform/errors.ts'
import type { NewJob, QueueDefinition } from '#platform/jobs/types.ts'
import type { Ledger } from './ledger.ts'
import type { Hold } from './types.ts'

const expiryQueue = 'ledger.holds'

interface ExpiryPayload {
  hold_id: number
}

/** Added in the transaction that makes the hold. */
export function expiryJob(hold: Hold): NewJob {
  const payload: ExpiryPayload = { hold_id: hold.id }
  return { queue: expiryQueue, payload, runAt: hold.expiresAt }
}

const concurrency = 200
/** Settled in time, or by this job when it ran before and died before its end was written. */
const settledCodes = new Set(['hold_already_posted', 'hold_already_voided', 'hold_expired'])

/** A hold is let go of under its lock, once, however often its job begins. */
export function makeExpiryQueue(ledger: Pick<Ledger, 'submit'>, work: boolean): QueueDefinition {
  return {
    name: expiryQueue,
    concurrency,
    // A database that is away for an hour must not leave money set aside.
    attemptsMax: 1000,
    backoffMs: 200,
    backoffMaxMs: 60_000,
    ...(work && {
      async handle(job) {
        const { hold_id: holdId } = job.payload as ExpiryPayload
        try {
          await ledger.submit({ type: 'expire', holdId, key: null })
          return { outcome: 'expired' }
        } catch (error) {
          if (!isAppError(error) || !settledCodes.has(error.code)) throw error
          return { outcome: 'was settled' }
        }
      },
    }),
  }
}
