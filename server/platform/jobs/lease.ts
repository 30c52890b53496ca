/**
 * One heartbeat for all jobs a process holds. Whoever is not heard of for `leaseMs` is declared dead by the others,
 * and its jobs are theirs; when it lives after all, it drops them and goes on under a new name.
 */
import { readlinkSync } from 'node:fs'
import { hostname } from 'node:os'
import type { Database } from '../database/pool.ts'
import { uuidv7 } from '../ids.ts'
import type { Log } from '../log.ts'
import { isAlive } from '../processes.ts'
import * as leases from './lease-store.ts'
import type { Worker } from './worker.ts'

export interface Lease {
  /** Under which this process holds jobs now. */
  readonly id: string
  /** False while it cannot be sure that nobody has declared it dead. */
  readonly holds: boolean
  /** How long heartbeats have gone through without a break, in ms. Who is just back from an outage declares nobody dead. */
  readonly steadyMs: number
  register(): Promise<void>
  beat(): Promise<void>
  signOff(): Promise<void>
}

export function makeLease(given: {
  db: Database
  log: Log
  leaseMs: number
  workers: ReadonlyMap<string, Worker>
}): Lease {
  const { db, log, leaseMs, workers } = given
  let id = uuidv7()
  let lastBeat = 0
  let beatingSince = 0

  async function register() {
    const sentAt = Date.now()
    await leases.insertWorker(db, { id, host: place, pid: process.pid, queues: [...workers.keys()] })
    lastBeat = sentAt
    beatingSince = sentAt
  }

  async function startAnew() {
    log.warn({ worker: id }, 'this worker was declared dead; its jobs are others’ now')
    for (const worker of workers.values()) worker.abortAll('lease_lost')
    id = uuidv7()
    await register()
    for (const worker of workers.values()) worker.wake()
  }

  /** A worker of this very place whose process is gone need not be waited for. */
  async function buryNeighbours() {
    const neighbours = await leases.listNeighbours(db, place)
    const gone = neighbours.filter(({ pid }) => !isAlive(pid)).map(neighbour => neighbour.id)
    if (gone.length > 0) await leases.declareDead(db, gone)
  }

  return {
    get id() {
      return id
    },
    get holds() {
      return Date.now() - lastBeat < leaseMs * 0.75
    },
    get steadyMs() {
      return Date.now() - beatingSince
    },
    async register() {
      await buryNeighbours()
      await register()
    },
    async beat() {
      const sentAt = Date.now()
      const running = Object.fromEntries([...workers].map(([queue, worker]) => [queue, worker.running]))
      if (!(await leases.beat(db, { id, running }))) return startAnew()
      if (sentAt - lastBeat > leaseMs) beatingSince = sentAt
      lastBeat = sentAt
    },
    signOff: () => leases.deleteWorker(db, id),
  }
}

/** Where process numbers mean the same: the host, and on Linux its process namespace, which a container has of its own. */
const place = `${hostname()}/${processNamespace()}`

function processNamespace(): string {
  try {
    return readlinkSync('/proc/self/ns/pid')
  } catch {
    return 'host'
  }
}
