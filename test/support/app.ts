import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { type App, roles as allRoles, makeApp, type Role, readAllSettings, services } from '../../server/app.ts'
import type { Database } from '../../server/platform/database/pool.ts'
import { makeLog } from '../../server/platform/log.ts'
import { atEnd } from './at-end.ts'
import { makeTestDatabase } from './database.ts'

export interface TestApp {
  app: App
  url: string
  db: Database
  /** Log lines of the level error: what nobody foresaw is among them. */
  complaints: string[]
}

/** All of Capstan in this process, on a database and a port of its own, stopped when the file's tests are done. */
export async function makeTestApp(
  options: { env?: Record<string, string>; roles?: readonly Role[] } = {},
): Promise<TestApp> {
  const database = await makeTestDatabase({ poolMax: 4 })
  const dataDir = mkdtempSync(path.join(tmpdir(), 'capstan-app-'))
  const env = {
    NODE_ENV: 'test',
    PORT: '0',
    GRPC_PORT: '0',
    DATA_DIR: dataDir,
    RATE_LIMIT_PER_MINUTE: '0',
    SHUTDOWN_GRACE_MS: '100',
  }
  const complaints: string[] = []
  const app = await makeApp({
    settings: { ...readAllSettings({ ...env, ...options.env }), DATABASE_URL: database.url },
    log: makeLog('error', { write: line => void complaints.push(line) }),
    roles: options.roles ?? allRoles,
    chosen: [...services],
  })
  const url = (await app.start())!
  atEnd(async () => {
    await app.stop()
    rmSync(dataDir, { recursive: true, force: true })
  })
  return { app, url, db: database.db, complaints }
}
