import pg from 'pg'
import { messageOf } from '../errors.ts'
import type { Log } from '../log.ts'

/** A row as the call site names its columns. */
export type Row = object

/** Anything that runs a statement: the pool or an open transaction. */
export interface Queryable {
  /**
   * A statement with values is prepared once a connection. `replan` has it planned anew each time instead: for tables
   * that grow and shrink so fast that a kept plan may fit them no more.
   */
  query<R extends Row = Record<string, unknown>>(
    text: string,
    values?: readonly unknown[],
    options?: { replan?: boolean },
  ): Promise<{ rows: R[]; rowCount: number }>
}

/** For statements on tables that are empty one second and hold a million rows the next: no plan is kept for them. */
export const replan = { replan: true }

/** An open transaction. It ends when the function given to `Database.tx` ends. */
export interface Tx extends Queryable {
  /**
   * A statement whose answer nobody needs: it is not waited for but travels with what comes next, the commit at the
   * latest. When it fails, so does the transaction.
   */
  send(text: string, values: readonly unknown[], options?: { replan?: boolean }): void
  /** Runs after the commit, never after a rollback: the place to wake whoever reads what was written. */
  afterCommit(action: () => void): void
}

export interface TxOptions {
  /** Parameters for this transaction alone, such as planner settings. Names and values are written into SQL as they are. */
  parameters?: Readonly<Record<string, string>>
}

/**
 * For batches that find their rows by ids. A generic plan is made once a connection and kept, so it must be the right
 * one whatever the tables held then: by the index, row after row, in the order of the ids.
 */
export const byIdsParameters = {
  plan_cache_mode: 'force_generic_plan',
  enable_seqscan: 'off',
  enable_bitmapscan: 'off',
  enable_hashjoin: 'off',
  enable_mergejoin: 'off',
} as const

export interface Database extends Queryable {
  /** Commits when `run` resolves, rolls back when it rejects. Deadlocks and serialization failures are tried again. */
  tx<T>(run: (tx: Tx) => Promise<T>, options?: TxOptions): Promise<T>
  /** A connection of one's own, for LISTEN. */
  connect(): Promise<pg.PoolClient>
  readonly pool: pg.Pool
  /** True when the server answers now. */
  ping(): Promise<boolean>
  close(): Promise<void>
}

export interface DatabaseOptions {
  url: string
  poolMax: number
  log: Log
  /** Shown in pg_stat_activity; the embedded server counts who still uses it by this prefix. */
  applicationName: string
  /** Session parameters of every connection, such as planner settings. */
  parameters?: Record<string, string>
  /** Called when a connection is lost or refused; the embedded server is brought back by it. */
  onTrouble?: () => void
}

export const applicationPrefix = 'capstan'

/** Codes with which PostgreSQL asks for the transaction to be tried again. */
const retryCodes = new Set(['40001', '40P01'])
const retriesMax = 4

const types = new pg.TypeOverrides()
// int8 counts rows and milliseconds here. Money, which may pass 2^53, is read with its own cast to text.
types.setTypeParser(pg.types.builtins.INT8, text => {
  const number = Number(text)
  return Number.isSafeInteger(number) ? number : BigInt(text)
})

/** Connects lazily: a pool over a server that is down is made without an error. */
export function makeDatabase(options: DatabaseOptions): Database {
  const pool = new pg.Pool({
    connectionString: options.url,
    max: options.poolMax,
    application_name: options.applicationName,
    options: Object.entries(options.parameters ?? {})
      .map(([name, value]) => `-c ${name}=${value}`)
      .join(' '),
    types,
    connectionTimeoutMillis: 10_000,
    idleTimeoutMillis: 60_000,
    keepAlive: true,
    // Statements of one transaction need not wait for each other's answers: `begin` travels with the first.
    pipeline: true,
  })
  pool.on('error', error => {
    options.log.warn({ err: error }, 'an idle database connection was lost')
    options.onTrouble?.()
  })

  // A connection in use tells its loss twice: to the statement, which rejects, and by an event that must be heard.
  pool.on('connect', client => {
    client.on('error', () => options.onTrouble?.())
  })

  const watch = async <T>(work: Promise<T>): Promise<T> => {
    try {
      return await work
    } catch (error) {
      if (isConnectionLoss(error)) options.onTrouble?.()
      throw error
    }
  }

  return {
    pool,
    query: (text, values, how) => watch(runStatement(pool, text, values, how?.replan)),
    tx: (run, how) => watch(runTransaction(pool, run, how)),
    connect: () => watch(pool.connect()),
    async ping() {
      try {
        await watch(pool.query('select 1'))
        return true
      } catch {
        return false
      }
    },
    close: () => pool.end(),
  }
}

/** True when the server could not be reached or went away: the statement may or may not have been committed. */
export function isConnectionLoss(error: unknown): boolean {
  const { code } = error as { code?: string }
  if (code && (/^(08|57P)/.test(code) || /^E(CONN|PIPE|NOENT|TIMEDOUT)/.test(code))) return true
  return /Connection terminated|timeout exceeded when trying to connect|Client has encountered a connection error|the database system is/.test(
    messageOf(error),
  )
}

/** The SQLSTATE of a database error, for call sites that translate one. */
export function sqlState(error: unknown): string | undefined {
  const code = (error as { code?: unknown }).code
  return typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) ? code : undefined
}

type Runner = Pick<pg.Pool, 'query'> | pg.PoolClient

/** Statements seen so far and the names they are prepared under, so that PostgreSQL parses and plans each once a connection. */
const statementNames = new Map<string, string>()

async function runStatement<R extends Row>(
  runner: Runner,
  text: string,
  values: readonly unknown[] | undefined,
  replan = false,
) {
  const result = await (values === undefined
    ? runner.query(text)
    : runner.query({ ...(replan ? {} : { name: statementName(text) }), text, values: values as unknown[] }))
  return { rows: result.rows as R[], rowCount: result.rowCount ?? 0 }
}

function statementName(text: string): string {
  let name = statementNames.get(text)
  if (name === undefined) {
    name = `s${statementNames.size}`
    statementNames.set(text, name)
  }
  return name
}

async function runTransaction<T>(pool: pg.Pool, run: (tx: Tx) => Promise<T>, options?: TxOptions): Promise<T> {
  const begin = beginWith(options?.parameters)
  for (let attempt = 0; ; attempt++) {
    try {
      return await tryTransaction(pool, run, begin)
    } catch (error) {
      if (attempt >= retriesMax || !retryCodes.has(sqlState(error) ?? '')) throw error
    }
  }
}

function beginWith(parameters: TxOptions['parameters'] = {}): string {
  return ['begin', ...Object.entries(parameters).map(([name, value]) => `set local ${name} = ${value}`)].join('; ')
}

async function tryTransaction<T>(pool: pg.Pool, run: (tx: Tx) => Promise<T>, begin: string): Promise<T> {
  const client = await pool.connect()
  const actions: (() => void)[] = []
  const sent: Promise<unknown>[] = []
  /** Not waited for yet; its failure is seen when it is. */
  const later = (work: Promise<unknown>) => {
    work.catch(() => {})
    sent.push(work)
  }
  const tx: Tx = {
    query: (text, values, how) => runStatement(client, text, values, how?.replan),
    send: (text, values, how) => later(runStatement(client, text, values, how?.replan)),
    afterCommit: action => actions.push(action),
  }
  let broken: Error | undefined
  let result: T
  try {
    // BEGIN is not waited for: it travels in front of the first statement.
    later(client.query(begin))
    result = await run(tx)
    // PostgreSQL rolls back at a commit after a statement that failed, so the commit can travel with the last ones.
    later(client.query('commit'))
    await Promise.all(sent)
  } catch (error) {
    await client.query('rollback').catch(rollbackError => {
      broken = rollbackError
    })
    throw error
  } finally {
    client.release(broken)
  }
  for (const action of actions) action()
  return result
}
