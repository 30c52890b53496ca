import { randomFillSync } from 'node:crypto'

const pool = Buffer.alloc(8 * 1024)
let poolAt = pool.length
let lastMs = 0
let sequence = 0

/**
 * A UUIDv7 (RFC 9562, method 1 of section 6.2): 48 bits of Unix milliseconds, a 12-bit counter that keeps ids of one
 * process in order inside a millisecond, 62 random bits.
 */
export function uuidv7(nowMs: number = Date.now()): string {
  if (nowMs > lastMs) {
    lastMs = nowMs
    sequence = takeRandom(2).readUInt16BE() & 0x7ff
  } else if (++sequence > 0xfff) {
    // The counter ran over: borrow the next millisecond rather than go back.
    lastMs += 1
    sequence = 0
  }
  const random = takeRandom(8).toString('hex')
  const time = lastMs.toString(16).padStart(12, '0')
  const variant = ((Number.parseInt(random[0]!, 16) & 0x3) | 0x8).toString(16)
  return `${time.slice(0, 8)}-${time.slice(8)}-7${sequence.toString(16).padStart(3, '0')}-${variant}${random.slice(1, 4)}-${random.slice(4)}`
}

function takeRandom(length: number): Buffer {
  if (poolAt + length > pool.length) {
    randomFillSync(pool)
    poolAt = 0
  }
  poolAt += length
  return pool.subarray(poolAt - length, poolAt)
}

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i

export function isUuid(value: string): boolean {
  return uuidPattern.test(value)
}

/** The smallest UUIDv7 of an instant; ids made from then on sort at or after it. */
export function uuidv7Floor(at: Date): string {
  const time = at.getTime().toString(16).padStart(12, '0')
  return `${time.slice(0, 8)}-${time.slice(8)}-7000-8000-000000000000`
}

/** When a UUIDv7 was made, to the millisecond. */
export function uuidv7Time(id: string): Date {
  return new Date(Number.parseInt(id.slice(0, 8) + id.slice(9, 13), 16))
}

/** A request id that came with the request, where it cannot harm a log or a header, or else a new one. */
export function requestIdOf(given: unknown): string {
  return typeof given === 'string' && /^[\w.:-]{1,128}$/.test(given) ? given : uuidv7()
}
