/**
 * The hash chain: link after link of SHA-256, each over the hash before it and the digest of one batch's transfers, so
 * that whoever noted a hash can tell later that nothing before it was changed. It is made after the commits, as a chain
 * in their path would let one batch through at a time.
 */
import { createHash } from 'node:crypto'
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import * as store from './audit-store.ts'

export const genesis = Buffer.alloc(32)

export function hashLink(before: Buffer, digest: Buffer): Buffer {
  return createHash('sha256').update(before).update(digest).digest()
}

const linksMax = 500

/** Adds links for what was committed, a bounded number at once. Answers how many. */
export async function extendChain(db: Database): Promise<number> {
  return db.tx(async tx => {
    if (!(await store.lockChain(tx))) return 0
    const last = await store.findLastLink(tx)
    const waiting = await store.takeUnchained(tx, linksMax)
    let { seq, hash } = last ?? { seq: 0, hash: genesis }
    const links = waiting.map(link => {
      hash = hashLink(hash, link.digest)
      return { ...link, seq: ++seq, hash }
    })
    if (links.length > 0) await store.insertLinks(tx, links)
    return links.length
  })
}

export interface Chainer {
  start(): void
  /** Resolves when nothing is under way. */
  stop(): Promise<void>
}

const everyMs = 1000

/** Extends the chain every second, until nothing waits. */
export function makeChainer(deps: { db: Database; log: Log }): Chainer {
  let timer: NodeJS.Timeout | undefined
  let running: Promise<void> = Promise.resolve()
  let stopped = true

  async function run() {
    try {
      while (!stopped && (await extendChain(deps.db)) === linksMax);
    } catch (error) {
      if (!stopped) deps.log.warn({ err: error }, 'could not extend the hash chain')
    }
    if (!stopped) schedule()
  }

  function schedule() {
    timer = setTimeout(() => {
      running = run()
    }, everyMs)
    timer.unref()
  }

  return {
    start() {
      stopped = false
      schedule()
    },
    async stop() {
      stopped = true
      clearTimeout(timer)
      await running
    },
  }
}
