import { availableParallelism } from 'node:os'
import { hash, verify } from '@node-rs/argon2'
import { errors } from './errors.ts'
import { makeGate } from './gate.ts'

export interface Passwords {
  /** @throws weak_password */
  assertFit(password: string, username: string): void
  /** Argon2id, as a PHC string. @throws overloaded */
  hash(password: string): Promise<string>
  verify(given: { hash: string; password: string }): Promise<boolean>
  readonly length: { min: number; max: number }
  /** Passwords worked on at once. */
  readonly concurrency: number
}

/** OWASP's second choice for Argon2id: 19 MiB, two passes, one lane. 2 is Argon2id in an enum that does not strip. */
const strong = { algorithm: 2, memoryCost: 19_456, timeCost: 2, parallelism: 1 }
const light = { algorithm: 2, memoryCost: 256, timeCost: 1, parallelism: 1 }

/** Hashing takes 19 MiB and a thread each: as many at once as there are cores, the rest waits in a bounded queue. */
export function makePasswords(options: { mode: 'development' | 'test' | 'production'; queueMax: number }): Passwords {
  const parameters = options.mode === 'test' ? light : strong
  const length = { min: options.mode === 'production' ? 8 : 5, max: 256 }
  const concurrency = hashesAtOnce()
  const gate = makeGate({ name: 'password checks', concurrency, waitingMax: options.queueMax })
  return {
    length,
    concurrency,
    assertFit(password, username) {
      const characters = [...password].length
      const fits = characters >= length.min && characters <= length.max && password.isWellFormed()
      // The old walkthroughs use `test1` for both, which only development lets through.
      const echoes = options.mode === 'production' && password.toLowerCase() === username.toLowerCase()
      if (!fits || echoes) throw errors.weakPassword(length)
    },
    hash: password => gate.run(() => hash(normalise(password), parameters)),
    verify: given => gate.run(() => verify(given.hash, normalise(given.password))),
  }
}

/** The same password typed on two keyboards may come in two encodings (RFC 8265 asks for one). */
function normalise(password: string): string {
  return password.normalize('NFKC')
}

/** Hashes run on libuv's threads; one of those stays free for files and names. */
function hashesAtOnce(): number {
  const threads = Number(process.env.UV_THREADPOOL_SIZE) || 4
  return Math.max(1, Math.min(availableParallelism(), threads - 1))
}
