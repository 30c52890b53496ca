#!/usr/bin/env node
/** The `capstan` command. */
import { createInterface } from 'node:readline/promises'
import { SettingsError, type SettingsTable } from '#platform/config.ts'
import { EmbeddedError } from '#platform/database/embedded.ts'
import { migrate, pendingMigrations } from '#platform/database/migrate.ts'
import { isAppError } from '#platform/errors.ts'
import { type UserRole, userRoles } from '#platform/http/guard.ts'
import { makeLog } from '#platform/log.ts'
import { generateCourses } from '#services/ingest/index.ts'
import { verifyLedger } from '#services/ledger/index.ts'
import {
  type AllSettings,
  makeApp,
  makeIdentityOf,
  migrationSets,
  openDatabase,
  type Role,
  readAllSettings,
  roles,
  type ServiceName,
  services,
  settingsTables,
  version,
} from './app.ts'
import { generate } from './commands/generate.ts'
import { load } from './commands/load.ts'
import { parse, UsageError } from './commands/usage.ts'

const usage = `capstan ${version}: one back end for accounts, strangers' code, chat, money, images and jobs

  capstan start [--roles api,worker] [--services runner,chat,ledger,images,ingest]
                              run Capstan; Ctrl-C stops it in good order
  capstan migrate [up|down|status] [--only NAME] [--count N]
                              bring the tables to the newest state, or take steps back
  capstan user create NAME [--role user|banker|admin] [--email ADDRESS] [--password-stdin]
                              make a user; asks for the password
  capstan user role NAME user|banker|admin
                              change a user's role
  capstan ledger verify       recompute every balance and check the hash chain; 1 when something is wrong
  capstan generate courses COUNT [--seed N] [--format json|ndjson] [--output FILE]
                              write records to try streams with, the same ones for the same seed
  capstan load [URL] [--route course|records|ndjson] [--records FILE | --count N --seed N] [--seconds N]
               [--connections N] [--stream NAME] [--token TOKEN] [--plot FILE.svg]
                              send records at a running Capstan; 1 when any was not taken
  capstan config              list every variable, its value and what it decides
  capstan version

Settings come from the environment; \`capstan config\` lists them.`

const commands: Record<string, (settings: AllSettings, args: string[]) => Promise<void>> = {
  start,
  migrate: migrateTables,
  user,
  ledger,
  generate: (_settings, args) => generate(args, generateCourses),
  load: (settings, args) => load(args, { settings, generateCourses }),
  config: showConfig,
}

async function main(args: string[]) {
  const [name = 'help', ...rest] = args
  if (['help', '--help', '-h'].includes(name)) return console.log(usage)
  if (['version', '--version'].includes(name)) return console.log(version)
  const command = commands[name]
  if (!command) throw new UsageError(`There is no command \`${name}\`.\n\n${usage}`)
  await command(readAllSettings(process.env), rest)
}

async function start(settings: AllSettings, args: string[]) {
  const { values } = parse(args, { roles: { type: 'string' }, services: { type: 'string' } })
  const app = await makeApp({
    settings,
    log: makeLog(logLevel(settings)),
    roles: chosen<Role>('--roles', values.roles, roles),
    chosen: chosen<ServiceName>('--services', values.services, services),
  })
  let stopping = false
  const stop = async () => {
    // A second Ctrl-C means it.
    if (stopping) process.exit(130)
    stopping = true
    await app.stop()
    process.exit(0)
  }
  process.on('SIGTERM', () => void stop())
  process.on('SIGINT', () => void stop())
  const address = await app.start()
  if (settings.NODE_ENV === 'development') console.error(welcome(address!, app.runsUnavailable))
}

/** Somebody who looks at a terminal wants to see what is wrong, and the welcome. */
function logLevel(settings: AllSettings): string {
  const isWatched = settings.NODE_ENV === 'development' && process.stdout.isTTY && !process.env.LOG_LEVEL
  return isWatched ? 'warn' : settings.LOG_LEVEL
}

function welcome(address: string, runsUnavailable: string | undefined): string {
  // A name that is free, so that the lines work as often as they are tried.
  const name = `ada${Date.now() % 1_000_000}`
  return `
Capstan runs at ${address}   (API: ${address}/docs)
${runsUnavailable ? `${runsUnavailable}\n` : ''}
Try it in another terminal:

  curl -s -c jar -H 'content-type: application/json' ${address}/v1/auth/register -d '{"username":"${name}","password":"lovelace"}'
  curl -s -b jar -H 'content-type: application/json' '${address}/v1/runs?wait=10' -d '{"language":"python","source":"print(6*7)"}'

\`make demo\` shows more. Ctrl-C stops Capstan; what it accepted stays in DATA_DIR.
`
}

async function migrateTables(settings: AllSettings, args: string[]) {
  const { values, positionals } = parse(args, { only: { type: 'string' }, count: { type: 'string' } })
  const [direction = 'up'] = positionals
  const sets = values.only === undefined ? migrationSets : migrationSets.filter(set => set.name === values.only)
  if (sets.length === 0) {
    throw new UsageError(`--only takes one of: ${migrationSets.map(set => set.name).join(', ')}.`)
  }
  if (!['up', 'down', 'status'].includes(direction)) throw new UsageError('capstan migrate takes up, down or status.')
  if (values.count !== undefined && !/^[1-9]\d{0,5}$/.test(values.count)) {
    throw new UsageError('--count takes a whole number from 1.')
  }
  const log = makeLog('warn')
  const opened = await openDatabase(settings, log)
  try {
    if (direction === 'status') {
      const pending = await pendingMigrations({ url: opened.url, sets })
      for (const step of pending) console.log(`pending  ${step.set}/${step.name}`)
      if (pending.length === 0) console.log('Nothing is pending.')
      return
    }
    const steps = await migrate({
      url: opened.url,
      sets,
      direction: direction as 'up' | 'down',
      ...(values.count === undefined ? {} : { count: Number(values.count) }),
      log,
    })
    for (const step of steps) console.log(`${direction === 'up' ? 'applied' : 'taken back'}  ${step.set}/${step.name}`)
    if (steps.length === 0) console.log('There was nothing to do.')
  } finally {
    await opened.close()
  }
}

async function user(settings: AllSettings, args: string[]) {
  const [action, name, ...rest] = args
  if (name === undefined || name.startsWith('-'))
    throw new UsageError(`Say whom: capstan user ${action ?? 'create'} NAME`)
  const log = makeLog('warn')
  const opened = await openDatabase(settings, log)
  try {
    await migrate({ url: opened.url, sets: migrationSets, direction: 'up', log })
    const identity = makeIdentityOf(opened, settings, log)
    try {
      if (action === 'create') await createUser(identity, name, rest)
      else if (action === 'role') await setRole(identity, name, rest[0])
      else throw new UsageError('capstan user takes create or role.')
    } finally {
      await identity.stop()
    }
  } finally {
    await opened.close()
  }
}

async function createUser(identity: ReturnType<typeof makeIdentityOf>, username: string, args: string[]) {
  const { values } = parse(args, {
    role: { type: 'string', default: 'user' },
    admin: { type: 'boolean' },
    email: { type: 'string' },
    'password-stdin': { type: 'boolean' },
  })
  const role = values.admin ? 'admin' : asRole(values.role)
  const password = await readPassword(values['password-stdin'] === true)
  const made = await identity.createUser({
    username,
    password,
    ...(values.email === undefined ? {} : { email: values.email }),
    role,
  })
  console.log(`Made the ${made.role} ${made.username} (${made.id}).`)
}

async function setRole(identity: ReturnType<typeof makeIdentityOf>, name: string, role: string | undefined) {
  const found = await identity.findUserByName(name)
  if (!found) throw new UsageError(`There is no user ${name}.`)
  const wanted = asRole(role)
  await identity.setRole({ userId: found.id, role: wanted })
  console.log(`${name} is now ${wanted}.`)
}

function asRole(text: string | undefined): UserRole {
  const role = userRoles.find(known => known === text)
  if (!role) throw new UsageError(`A role is one of ${userRoles.join(', ')}.`)
  return role
}

/** Never from an argument: those stand in the process list and in the shell's history. */
async function readPassword(piped: boolean): Promise<string> {
  if (piped || !process.stdin.isTTY) {
    const chunks: Buffer[] = []
    for await (const chunk of process.stdin) chunks.push(chunk as Buffer)
    const password = Buffer.concat(chunks)
      .toString()
      .replace(/\r?\n$/, '')
    if (password === '') throw new UsageError('Pipe the password in: printf %s "$PASSWORD" | capstan user create …')
    return password
  }
  const reader = createInterface({ input: process.stdin, output: process.stderr })
  // readline echoes what is typed through this; nothing but the question shall be seen.
  const mutable = reader as unknown as { _writeToOutput: (text: string) => void }
  process.stderr.write('Password: ')
  mutable._writeToOutput = () => {}
  const password = await reader.question('')
  reader.close()
  process.stderr.write('\n')
  return password
}

async function ledger(settings: AllSettings, args: string[]) {
  if (args[0] !== 'verify') throw new UsageError('capstan ledger takes verify.')
  const opened = await openDatabase(settings, makeLog('warn'))
  try {
    const { findings, accounts, transfers, links, head } = await verifyLedger(opened.db)
    for (const finding of findings) console.log(finding)
    console.log(`${accounts} accounts, ${transfers} transfers, ${links} links of the hash chain, its head ${head}`)
    console.log(findings.length === 0 ? 'The ledger is right.' : `The ledger is wrong in ${findings.length} places.`)
    if (findings.length > 0) process.exitCode = 1
  } finally {
    await opened.close()
  }
}

async function showConfig(settings: AllSettings) {
  for (const [part, table] of Object.entries(settingsTables)) {
    console.log(`# ${part}`)
    for (const [name, variable] of Object.entries(table as SettingsTable)) {
      const value = (settings as Record<string, unknown>)[name]
      const shown = value === undefined ? '(not set)' : variable.secret ? '(hidden)' : String(value)
      const changed = value === variable.fallback ? '' : `   (default: ${variable.fallback ?? 'not set'})`
      console.log(`${name}=${shown}${changed}\n    ${variable.about}`)
    }
    console.log()
  }
}

function chosen<T extends string>(option: string, text: string | undefined, known: readonly T[]): T[] {
  if (text === undefined) return [...known]
  const names = text.split(',').map(name => name.trim())
  const wrong = names.find(name => !known.includes(name as T))
  if (wrong !== undefined) throw new UsageError(`${option} knows no \`${wrong}\`; it takes ${known.join(', ')}.`)
  return names as T[]
}

main(process.argv.slice(2)).catch(error => {
  const forPeople =
    error instanceof UsageError || error instanceof SettingsError || error instanceof EmbeddedError || isAppError(error)
  console.error(forPeople ? error.message : error)
  process.exit(1)
})
