import { pino } from 'pino'

export type Log = pino.Logger

/** Names of fields that are never printed, wherever they stand. */
const secretFields = ['password', 'token', 'access_token', 'refresh_token', 'secret', 'authorization', 'cookie', 'key']

/** One JSON line an event, on standard output. */
export function makeLog(level: string, destination?: pino.DestinationStream): Log {
  const options: pino.LoggerOptions = {
    level,
    base: { pid: process.pid },
    timestamp: () => `,"time":"${new Date().toISOString()}"`,
    formatters: { level: label => ({ level: label }) },
    redact: {
      paths: secretFields.flatMap(field => [field, `*.${field}`, `req.headers.${field}`]),
      censor: '(hidden)',
    },
  }
  return destination ? pino(options, destination) : pino(options)
}

export const silentLog: Log = pino({ level: 'silent' })
