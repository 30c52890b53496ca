/**
 * Those who read a stream after the fact: the consumer that counts route A, the merging of counts, the copies in other
 * stores. Each has a cursor a stream, kept with what it writes where that is the same database. A reader is woken by
 * whoever appends, polls behind it, and takes the streams that are behind one step at a time.
 *
 * States of a reader: idle → working (a step of each stream that is behind, until none is) → idle. A step that fails
 * is taken again later, and the other streams go on.
 */
import type { Bus } from '#platform/bus.ts'
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import type { Metrics } from '#platform/metrics.ts'
import { type Behind, type Counted, listBehind, listLags } from './cursor-store.ts'

export interface ReaderKind {
  name: string
  counted: Counted
  /** Least time between two rounds, in ms: what comes more often is done together. */
  restMs?: number
  /** Called before it is looked at which streams are behind. */
  prepare?(): Promise<void>
  /** Does a bounded piece of work. Answers whether it got on. */
  step(behind: Behind): Promise<boolean>
}

export interface Readers {
  start(): void
  /** Finishes the steps under way. */
  stop(): Promise<void>
}

export const appendedChannel = 'ingest:appended'
const pollMs = 1000
const failedMs = 500
const failedMsMax = 10_000
const streamsMax = 100
/** In one look at the metrics. */
const lagsMax = 5000

export function makeReaders(deps: {
  db: Database
  bus: Bus
  log: Log
  metrics: Metrics
  kinds: readonly ReaderKind[]
}): Readers {
  measureLag(deps)
  const loops = deps.kinds.map(kind => makeLoop(deps, kind))
  const unsubscribe: (() => void)[] = []
  const wakeAll = () => {
    for (const loop of loops) loop.wake()
  }
  return {
    start() {
      unsubscribe.push(deps.bus.subscribe(appendedChannel, wakeAll), deps.bus.onGap(wakeAll))
      wakeAll()
    },
    async stop() {
      for (const each of unsubscribe) each()
      await Promise.all(loops.map(loop => loop.stop()))
    },
  }
}

/** Looked up when it is asked for. */
function measureLag({ db, log, metrics, kinds }: Parameters<typeof makeReaders>[0]) {
  const help = 'What a reader of a stream has before it: records, or batches of counts.'
  metrics.gauge('ingest_lag', help, ['stream', 'reader'], async gauge => {
    try {
      const lags = await listLags(db, { readers: kinds, limit: lagsMax })
      gauge.reset()
      for (const { stream, reader, lag } of lags) gauge.set({ stream, reader }, lag)
    } catch (error) {
      log.debug({ err: error }, 'the lag of readers cannot be looked up just now')
    }
  })
}

function makeLoop({ db, log }: { db: Database; log: Log }, kind: ReaderKind) {
  let timer: NodeJS.Timeout | undefined
  let working: Promise<void> | undefined
  let woken = false
  let stopped = false
  let failures = 0
  /** By a clock that nobody sets back. */
  let lastAt = Number.NEGATIVE_INFINITY

  function wake() {
    woken = true
    if (working || stopped || failures > 0) return
    const restMs = (kind.restMs ?? 0) - (performance.now() - lastAt)
    if (restMs > 0) return later(restMs)
    begin()
  }

  function begin() {
    clearTimeout(timer)
    working = work().finally(() => {
      working = undefined
      lastAt = performance.now()
      if (!stopped) later(failures > 0 ? waitAfter(failures) : woken ? (kind.restMs ?? 0) : pollMs)
    })
  }

  function later(ms: number) {
    clearTimeout(timer)
    timer = setTimeout(begin, ms)
  }

  async function work() {
    woken = false
    try {
      await kind.prepare?.()
      for (let more = true; more && !stopped; ) more = await round()
      failures = 0
    } catch (error) {
      failures++
      log.warn({ err: error, reader: kind.name }, 'a reader of streams could not go on; it tries again')
    }
  }

  /** One step of each stream that is behind. Answers whether any got on. */
  async function round(): Promise<boolean> {
    const behind = await listBehind(db, { reader: kind.name, counted: kind.counted, limit: streamsMax })
    let failure: unknown
    let gotOn = false
    for (const each of behind) {
      if (stopped) break
      try {
        gotOn = (await kind.step(each)) || gotOn
      } catch (error) {
        failure ??= error
      }
    }
    if (failure !== undefined && !gotOn) throw failure
    return gotOn
  }

  return {
    wake,
    async stop() {
      stopped = true
      clearTimeout(timer)
      await working
    },
  }
}

function waitAfter(failures: number): number {
  return Math.min(failedMs * 2 ** (failures - 1), failedMsMax)
}
