/**
 * Settings come from the environment, once. Each part declares its variables as a table; `readSettings` checks
 * them all and reports every wrong one at once; `capstan config` prints the same tables.
 */

import { parseBlobUrl } from './blobs/url.ts'

export interface Variable<T> {
  /** What the variable decides, in a sentence; shown by `capstan config`. */
  about: string
  /** What holds when it is not set. */
  fallback: T
  /** Returns the value, or throws an Error whose message says what would be right. */
  parse: (text: string) => T
  /** True for a value that must never be printed. */
  secret?: boolean
}

export type SettingsTable = Record<string, Variable<unknown>>
export type Settings<T extends SettingsTable> = { [K in keyof T]: T[K] extends Variable<infer V> ? V : never }
export type Environment = Record<string, string | undefined>

export class SettingsError extends Error {
  constructor(problems: string[]) {
    super(problems.join('\n'))
    this.name = 'SettingsError'
  }
}

/** Reads one table. @throws SettingsError naming every wrong variable, a line each. */
export function readSettings<T extends SettingsTable>(table: T, environment: Environment): Settings<T> {
  const problems: string[] = []
  const values: Record<string, unknown> = {}
  for (const [name, variable] of Object.entries(table)) {
    const text = environment[name]
    if (text === undefined || text === '') {
      values[name] = variable.fallback
      continue
    }
    try {
      values[name] = variable.parse(text)
    } catch (error) {
      const shown = variable.secret ? '(hidden)' : `"${text}"`
      problems.push(`${name} is ${shown}, but ${(error as Error).message}`)
    }
  }
  if (problems.length > 0) throw new SettingsError(problems)
  return values as Settings<T>
}

export function text(fallback: string, about: string): Variable<string> {
  return { about, fallback, parse: value => value }
}

export function optionalText(about: string, options: { secret?: boolean } = {}): Variable<string | undefined> {
  return { about, fallback: undefined, parse: value => value, secret: options.secret ?? false }
}

export function integer(fallback: number, range: { min: number; max: number }, about: string): Variable<number> {
  return {
    about,
    fallback,
    parse: value => {
      const number = Number(value)
      if (!/^-?\d+$/.test(value) || number < range.min || number > range.max) {
        throw new Error(`it must be a whole number from ${range.min} to ${range.max}.`)
      }
      return number
    },
  }
}

export function oneOf<const T extends string>(choices: readonly T[], fallback: T, about: string): Variable<T> {
  return {
    about,
    fallback,
    parse: value => {
      if (!choices.includes(value as T)) throw new Error(`it must be one of: ${choices.join(', ')}.`)
      return value as T
    },
  }
}

export function flag(fallback: boolean, about: string): Variable<boolean> {
  return {
    about,
    fallback,
    parse: value => {
      if (value === 'true' || value === '1') return true
      if (value === 'false' || value === '0') return false
      throw new Error('it must be true or false.')
    },
  }
}

export function url(protocols: readonly string[], about: string): Variable<string | undefined> {
  return {
    about,
    fallback: undefined,
    // A connection string carries a password.
    secret: true,
    parse: value => {
      const protocol = /^([a-z0-9+.-]+):/i.exec(value)?.[1]?.toLowerCase()
      // libpq's form without a host, `postgres://user@/database?host=/socket`, is no URL to anybody else.
      const parses = protocol?.startsWith('postgres') ? value.includes('://') : URL.canParse(value)
      if (protocol === undefined || !protocols.includes(protocol) || !parses) {
        throw new Error(`it must be a URL that starts with ${protocols.map(each => `${each}:`).join(' or ')}.`)
      }
      return value
    },
  }
}

const portRange = { min: 0, max: 65_535 }

/** Several processes on one machine need not think of it: the first takes the usual one. */
const grpcPort: Variable<number | 'off' | undefined> = {
  about: 'gRPC port; 0 takes a free one, `off` none. Unless set: 8081, or none where another process has that.',
  fallback: undefined,
  parse: value => {
    if (value === 'off') return 'off'
    if (!/^\d{1,5}$/.test(value) || Number(value) > portRange.max) {
      throw new Error(`it must be a whole number from ${portRange.min} to ${portRange.max}, or off.`)
    }
    return Number(value)
  },
}

/** Texts joined by commas; `none` is an empty list. */
export function list(item: RegExp, about: string): Variable<readonly string[] | undefined> {
  return {
    about,
    fallback: undefined,
    parse: value => {
      const items = value === 'none' ? [] : value.split(',').map(each => each.trim())
      const wrong = items.find(each => !item.test(each))
      if (wrong !== undefined) throw new Error(`"${wrong}" cannot stand there.`)
      return items
    },
  }
}

const blobUrl: Variable<string | undefined> = {
  about:
    'Where images are kept: `file:/folder`, or `s3://bucket/prefix`, with `?endpoint=https://host`, `&region=` and ' +
    '`&path_style=` for a server that is not Amazon’s. Several machines need s3:, or a disk they share. ' +
    'Default: the folder blobs in DATA_DIR.',
  fallback: undefined,
  // It carries no keys, but one that is wrong may.
  secret: true,
  parse: value => {
    parseBlobUrl(value)
    return value
  },
}

/** What every process needs, whichever services it runs. */
export const platformSettings = {
  NODE_ENV: oneOf(['development', 'test', 'production'], 'development', 'Production closes what eases development.'),
  HOST: text('127.0.0.1', 'Address to listen on.'),
  PORT: integer(8080, portRange, 'HTTP port; 0 takes a free one.'),
  GRPC_PORT: grpcPort,
  PUBLIC_URL: url(['http', 'https'], 'The address users see; needed behind a proxy. Default: http://HOST:PORT.'),
  TRUST_PROXY: flag(false, 'Believe X-Forwarded-For and -Proto from the proxy in front.'),
  DATA_DIR: text(
    './data',
    'Where the embedded PostgreSQL, the secrets and, unless BLOB_URL says otherwise, the images live.',
  ),
  DATABASE_URL: url(['postgres', 'postgresql'], 'Your PostgreSQL (16 or newer). Without it Capstan starts its own.'),
  DATABASE_POOL_MAX: integer(20, { min: 2, max: 500 }, 'Connections to PostgreSQL a process may open.'),
  REDIS_URL: url(
    ['redis', 'rediss'],
    'Carries wake-ups and rate limits between processes. Without it PostgreSQL does.',
  ),
  BLOB_URL: blobUrl,
  S3_ACCESS_KEY_ID: optionalText(
    'The key of an s3: store. Without it the keys are looked for where every AWS program does: AWS_ACCESS_KEY_ID, ' +
      '~/.aws, the role of the pod or machine, which is best where there is one.',
    { secret: true },
  ),
  S3_SECRET_ACCESS_KEY: optionalText('The secret that belongs to S3_ACCESS_KEY_ID.', { secret: true }),
  LOG_LEVEL: oneOf(
    ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'],
    'info',
    'Least severe log line kept.',
  ),
  BODY_LIMIT_BYTES: integer(
    1_048_576,
    { min: 1024, max: 1_073_741_824 },
    'Largest JSON body, unless a route says less.',
  ),
  RATE_LIMIT_PER_MINUTE: integer(
    6000,
    { min: 0, max: 100_000_000 },
    'Requests a caller may make a minute; 0 is no limit.',
  ),
  OPEN_ROUTES: list(
    /^\/[\w/:-]+$/,
    'Routes of old contracts that take requests without a token, such as `/api/send,/api/pull`, or `none`. ' +
      'Default: all of them, in production none.',
  ),
  SHUTDOWN_GRACE_MS: integer(15_000, { min: 100, max: 600_000 }, 'How long SIGTERM waits for what runs, in ms.'),
  IDEMPOTENCY_HOURS: integer(24, { min: 1, max: 8760 }, 'How long an Idempotency-Key is remembered, in hours.'),
  LIVE_BUFFER_BYTES: integer(
    1_048_576,
    { min: 4096, max: 1_073_741_824 },
    'Unsent bytes after which a slow live client is cut off.',
  ),
  LIVE_TOPICS_MAX: integer(100, { min: 1, max: 100_000 }, 'Topics one live connection may follow.'),
  LIVE_CONNECTIONS_MAX: integer(20_000, { min: 1, max: 1_000_000 }, 'Live connections a process holds.'),
  JOBS_KEEP_DAYS: integer(30, { min: 1, max: 3650 }, 'How long finished jobs are kept, in days.'),
} satisfies SettingsTable

export type PlatformSettings = Settings<typeof platformSettings>
