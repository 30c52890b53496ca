/**
 * `make demo`: starts Capstan in an empty folder, does real work through its public API, prints what happened, and
 * leaves nothing behind but the pictures it made, whether it comes to its end, fails, or is stopped by Ctrl-C.
 */
import { type Context, type Language, type Stop, TourError } from './stop.ts'
import { account, passwordOf } from './stops/account.ts'
import { crash } from './stops/crash.ts'
import { hostile } from './stops/hostile.ts'
import { hundred } from './stops/hundred.ts'
import { languages } from './stops/languages.ts'
import { live } from './stops/live.ts'
import { money } from './stops/money.ts'
import { picture, picturesFolder } from './stops/picture.ts'
import { records } from './stops/records.ts'
import { repeat } from './stops/repeat.ts'
import { talk } from './stops/talk.ts'
import { type Api, makeApi, type Problem } from './support/api.ts'
import { type Capstan, makeCapstan } from './support/capstan.ts'
import { paint, print, printTable, type Row, seconds } from './support/terminal.ts'

const stops: Stop[] = [account, languages, live, hostile, hundred, crash, repeat, money, talk, picture, records]

const interruption = new AbortController()
const stopped = new TourError('Stopped.')
const rows: Row[] = []
process.exitCode = await main()

async function main(): Promise<number> {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, interrupt)
  // Whoever reads along may leave, as `head` does.
  process.stdout.on('error', interrupt)
  process.on('unhandledRejection', error => interruption.abort(error))
  const begun = performance.now()
  const capstan = await makeCapstan()
  let exitCode: number
  try {
    await tour(capstan)
    exitCode = 0
  } catch (error) {
    exitCode = await explain(error, capstan)
  } finally {
    await capstan.remove()
  }
  if (wasStopped()) return exitCode
  printTable(rows)
  print()
  if (exitCode === 0)
    print(
      `${paint('bold', `Done in ${seconds(performance.now() - begun)}.`)} Nothing was left behind but ${picturesFolder}/. \`make start\` runs it for you.`,
    )
  return exitCode
}

function interrupt() {
  if (interruption.signal.aborted) return
  if (process.stdout.writable) print(`\n${paint('dim', 'Stopping.')}`)
  interruption.abort(stopped)
}

function wasStopped(): boolean {
  return interruption.signal.reason === stopped
}

async function tour(capstan: Capstan) {
  const { signal } = interruption
  print(paint('bold', 'A tour of Capstan: a server of its own, real requests.'))
  await step('Start', say => {
    say('from an empty folder, with a PostgreSQL of its own')
    return capstan.start(signal).then(() => `ready at ${capstan.url}`)
  })
  const offer = await makeApi({ base: () => capstan.url, signal }).get<Offer>('/v1/languages')
  const unavailable = await whyNoPrograms(capstan, offer.languages)
  if (unavailable) print(paint('yellow', `\n${unavailable}`))
  for (const stop of stops) {
    if (stop.needsSandbox && unavailable) {
      rows.push({ title: stop.title, outcome: 'left out: programs cannot be run here', tookMs: 0, mark: 'skipped' })
    } else {
      await step(stop.title, say => stop.run(contextOf(capstan, offer.languages, say)))
    }
  }
  await step('Stop', async say => {
    say('with SIGTERM: it finishes what runs and ends')
    if (!(await capstan.stop())) throw new TourError('Capstan did not end in good order.')
    return 'in good order'
  })
}

interface Offer {
  languages: Language[]
}

async function step(title: string, action: (say: Context['say']) => Promise<string>) {
  interruption.signal.throwIfAborted()
  print(`\n${paint('bold', title)}`)
  const begun = performance.now()
  const row: Row = { title, outcome: 'failed', tookMs: 0, mark: 'failed' }
  rows.push(row)
  try {
    row.outcome = await action(line => print(`  ${line}`))
    row.mark = 'done'
  } finally {
    row.tookMs = performance.now() - begun
  }
}

function contextOf(capstan: Capstan, languages: Language[], say: Context['say']): Context {
  return { capstan, signal: interruption.signal, languages, say, makeUser: name => makeUser(capstan, name) }
}

async function makeUser(capstan: Capstan, username: string): Promise<Api> {
  const { signal } = interruption
  const base = () => capstan.url
  const registration = { username, password: passwordOf(username) }
  const made = await makeApi({ base, signal }).post<{ access_token: string }>('/v1/auth/register', registration)
  return makeApi({ base, signal, token: made.access_token })
}

/** A sentence for somebody whose machine has no sandbox. */
async function whyNoPrograms(capstan: Capstan, languages: Language[]): Promise<string | undefined> {
  if (languages.length === 0) return 'This machine has no language that Capstan knows: install python3, and try again.'
  const prober = await makeUser(capstan, 'prober')
  const { body } = await prober.send<Problem>('POST', '/v1/runs', { language: languages[0]!.id, source: ' ' })
  if (body.code !== 'sandbox_unavailable') return undefined
  const missing = body.detail.includes('not installed')
  const advice = missing ? 'Install the package `bubblewrap` (Linux only) to see' : 'So the tour leaves out'
  return `${body.detail.replace(/\.?$/, '.')} ${advice} what they do.`
}

/** Prints why the tour ended early; answers the exit code. */
async function explain(error: unknown, capstan: Capstan): Promise<number> {
  if (wasStopped()) return 130
  const sentence = error instanceof TourError ? error.message : String((error as Error)?.stack ?? error)
  print(`\n${paint('red', sentence)}`)
  print(`\nThe end of Capstan's log:\n${await capstan.readLog()}`)
  return 1
}
