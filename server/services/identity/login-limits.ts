import { createHash } from 'node:crypto'
import { isIPv4, isIPv6 } from 'node:net'
import type { Database } from '#platform/database/pool.ts'
import { isAppError } from '#platform/errors.ts'
import { errors } from './errors.ts'
import * as store from './store.ts'

const windowSeconds = 15 * 60

export interface Attempt {
  /** The user's id, or what was typed where there is no such user: both are limited alike. */
  account: string
  address: string
}

/** Counts tried passwords in the database, so that all processes share the count. */
export interface LoginLimits {
  /**
   * Counts an attempt, then checks the password: many guesses at once cannot overtake the count. A right password
   * gives the account its allowance back; a check that came to no answer, as when the queue is full, costs nothing.
   * @throws too_many_attempts
   */
  count<T>(attempt: Attempt, check: () => Promise<T>): Promise<T>
}

const wrongCodes = new Set(['invalid_credentials', 'wrong_password'])

export function makeLoginLimits(options: { db: Database; perAccount: number; perAddress: number }): LoginLimits {
  const { db, perAccount, perAddress } = options
  if (perAccount === 0 && perAddress === 0) return { count: (_attempt, check) => check() }

  async function take({ account, address }: Attempt) {
    const limits = new Map<string, number>()
    if (perAccount > 0) limits.set(account, perAccount)
    if (perAddress > 0) limits.set(address, perAddress)
    for (const row of await store.countAttempts(db, { subjects: [...limits.keys()], windowSeconds })) {
      if (row.attempts <= limits.get(row.subject)!) continue
      throw errors.tooManyAttempts(Math.min(windowSeconds, Math.max(1, Math.ceil(row.resets_in))))
    }
  }

  return {
    async count(attempt, check) {
      const subjects = subjectsOf(attempt)
      await take(subjects)
      try {
        const result = await check()
        await store.giveBackAttempts(db, { ...subjects, all: true })
        return result
      } catch (error) {
        const wasWrong = isAppError(error) && wrongCodes.has(error.code)
        if (!wasWrong) await store.giveBackAttempts(db, { ...subjects, all: false }).catch(() => {})
        throw error
      }
    },
  }
}

function subjectsOf(attempt: Attempt): Attempt {
  // Hashed, because people type passwords into the name field.
  const account = createHash('sha256').update(attempt.account.toLowerCase()).digest('base64url')
  return { account: `account:${account}`, address: `address:${network(attempt.address)}` }
}

/** An IPv6 user has a whole /64 to himself. */
function network(address: string): string {
  const mapped = /^::ffff:([\d.]+)$/i.exec(address)?.[1]
  if (mapped && isIPv4(mapped)) return mapped
  if (!isIPv6(address)) return address
  const [head = '', tail = ''] = address.split('%')[0]!.split('::')
  const before = head.split(':').filter(Boolean)
  const after = tail.split(':').filter(Boolean)
  const zeros = Array.from({ length: Math.max(0, 8 - before.length - after.length) }, () => '0')
  const groups = [...before, ...zeros, ...after].slice(0, 4)
  return `${groups.map(group => Number.parseInt(group, 16).toString(16)).join(':')}::/64`
}
