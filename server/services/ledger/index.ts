import type { Database } from '#platform/database/pool.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Jobs } from '#platform/jobs/jobs.ts'
import type { Live } from '#platform/live/live.ts'
import type { Log } from '#platform/log.ts'
import type { Rpc } from '#platform/rpc/rpc.ts'
import { makeCalls } from './calls.ts'
import { extendChain, makeChainer } from './chain.ts'
import { addCompatRoutes, type CompatDeps } from './compat.ts'
import { makeExpiryQueue } from './jobs.ts'
import { type Ledger, makeLedger } from './ledger.ts'
import { makeCurrencies } from './money.ts'
import { addRoutes } from './routes.ts'
import { addLedgerRpc } from './rpc.ts'
import type { LedgerSettings } from './settings.ts'
import { type Verification, verify } from './verify.ts'

export { type LedgerSettings, ledgerSettings } from './settings.ts'
export { type Verification, verify as verifyLedger } from './verify.ts'
export const ledgerScopes = ['ledger:read', 'ledger:write', 'ledger:bank'] as const

export interface LedgerServiceDeps {
  db: Database
  jobs: Pick<Jobs, 'add' | 'define'>
  live: Pick<Live, 'addSource' | 'wake'>
  log: Log
  settings: LedgerSettings
  /** For the old contract's users and tokens. */
  identity: CompatDeps['identity']
  /** Whether this process lets go of expired holds and makes the hash chain. */
  work: boolean
  /** Unix milliseconds. */
  clock?: () => number
}

export interface LedgerService extends Pick<Ledger, 'submit' | 'submitMany' | 'idle'> {
  routes(app: HttpApp): Promise<void>
  compatRoutes(app: HttpApp): Promise<void>
  rpc(rpc: Pick<Rpc, 'addService'>): void
  /** Recomputes every balance from its entries and checks the hash chain. Reads everything: it takes its time. */
  verify(): Promise<Verification>
  /** Adds to the hash chain what was committed. Done by itself every second after `start`. */
  extendChain(): Promise<number>
  start(): void
  /** Finishes what is under way. Call it when no more requests come and the jobs have stopped. */
  stop(): Promise<void>
}

export function makeLedgerService(deps: LedgerServiceDeps): LedgerService {
  const { db, jobs, live, log, settings } = deps
  const currencies = makeCurrencies(settings.LEDGER_UNITS)
  const ledger = makeLedger({ db, jobs, live, currencies, clock: deps.clock ?? Date.now })
  const calls = makeCalls({ ledger, currencies, settings })
  const chainer = makeChainer({ db, log })
  jobs.define(makeExpiryQueue(ledger, deps.work))
  live.addSource(ledger.source)
  return {
    submit: ledger.submit,
    submitMany: ledger.submitMany,
    idle: ledger.idle,
    async routes(app) {
      addRoutes(app, { calls, ledger })
    },
    async compatRoutes(app) {
      addCompatRoutes(app, { ledger, currencies, settings, identity: deps.identity })
    },
    rpc: rpc => addLedgerRpc(rpc, { calls, ledger }),
    verify: () => verify(db),
    extendChain: () => extendChain(db),
    start() {
      if (deps.work) chainer.start()
    },
    async stop() {
      await chainer.stop()
      await ledger.idle()
    },
  }
}
