import type { Redis } from 'ioredis'
import { RateLimiterMemory, RateLimiterRedis, RateLimiterRes } from 'rate-limiter-flexible'
import { errors } from '../errors.ts'

export interface RateLimiter {
  /** Takes one (or `points`) from the key's allowance. @throws rate_limited when it is used up. */
  take(key: string, points?: number): Promise<void>
  /** Gives the key its whole allowance back. */
  reset(key: string): Promise<void>
}

/**
 * Counts in Redis where there is one, so that all processes share the count; else, and while Redis is away, in this
 * process's memory.
 * @param points 0 means no limit.
 */
export function makeRateLimiter(given: {
  name: string
  points: number
  windowSeconds: number
  redis: Redis | undefined
}): RateLimiter {
  if (given.points === 0) return { take: async () => {}, reset: async () => {} }
  const options = { keyPrefix: `capstan:limit:${given.name}`, points: given.points, duration: given.windowSeconds }
  const memory = new RateLimiterMemory(options)
  const limiter = given.redis
    ? new RateLimiterRedis({
        ...options,
        storeClient: given.redis,
        insuranceLimiter: memory,
        rejectIfRedisNotReady: true,
      })
    : memory
  return {
    async take(key, points = 1) {
      try {
        await limiter.consume(key, points)
      } catch (refusal) {
        if (!(refusal instanceof RateLimiterRes)) throw refusal
        throw errors.rateLimited(Math.max(1, Math.ceil(refusal.msBeforeNext / 1000)))
      }
    },
    async reset(key) {
      await limiter.delete(key)
    },
  }
}
