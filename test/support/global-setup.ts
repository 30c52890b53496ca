import pg from 'pg'
import { testServer } from './database.ts'

const server = testServer()
let holder: pg.Client | undefined

/** Starts the tests' PostgreSQL and stays connected, so that it lives from the first file to the last. */
export async function globalSetup() {
  await server.ensureRunning()
  holder = new pg.Client({ connectionString: server.url, application_name: `capstan:${process.pid}` })
  await holder.connect()
}

export async function globalTeardown() {
  await holder?.end()
  await server.stop()
}
