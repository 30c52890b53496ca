/** `capstan load`: sends records at a running Capstan and tells how long it took and what was answered. */
import { writeFile } from 'node:fs/promises'
import { countBounds, defaultSeed, type GenerateCourses, seedBounds } from './generate.ts'
import type { Reply, Target } from './load/connection.ts'
import { sendLines } from './load/lines.ts'
import { drawPlot } from './load/plot.ts'
import { makeSupply, openRecords, type Records, repeat } from './load/records.ts'
import { printReport, show } from './load/report.ts'
import { explain, type Sending, sendSingles } from './load/singles.ts'
import { makeTally, type Tally } from './load/tally.ts'
import { paint, print, showProgress } from './terminal.ts'
import { parse, readWhole, UsageError } from './usage.ts'

/** How records are sent, and over how many connections unless it is said. */
const ways = { course: 128, records: 128, ndjson: 4 } as const
type Way = keyof typeof ways

interface Plan {
  way: Way
  target: Target
  connections: number
  /** Undefined where the time alone ends it. */
  count: number | undefined
  open: () => Records
  endsAfterMs: number | undefined
  plot: string | undefined
}

/** One more than this in a minute is refused unless RATE_LIMIT_PER_MINUTE says otherwise. */
const defaultCount = 5000
const connectionBounds = { min: 1, max: 10_000 }
const secondsBounds = { min: 1, max: 86_400 }
/** For whether anything is there. */
const reachMs = 5000
/** When no more is sent, for what is under way. */
const graceMs = 5000
const interruptedGraceMs = 1000
/** Without any answer at all. */
const silenceMs = 15_000
const interruptedCode = 130

/** Sets the exit code: 1 when anything was not taken. @throws UsageError */
export async function load(
  args: string[],
  given: { settings: { PORT: number }; generateCourses: GenerateCourses },
): Promise<void> {
  const plan = await readPlan(args, given)
  await reach(plan.target.url)
  const { tally, hopeless, interrupted } = await send(plan)
  if (hopeless && tally.taken === 0) throw new UsageError(tellWhy(hopeless.status, plan, explain(hopeless.body)))
  const of = plan.way === 'ndjson' ? 'up to a thousand lines' : 'a request'
  const title = `${plan.target.path} over ${plan.connections} connections`
  printReport({ tally, title, of })
  for (const hint of hintsOf(tally, plan)) print(`\n  ${paint('yellow', hint)}`)
  if (plan.plot !== undefined) await savePlot(plan.plot, drawPlot({ tally, title, of }))
  if (interrupted) process.exitCode = interruptedCode
  else if (tally.refused + tally.lost > 0 || tally.taken === 0) process.exitCode = 1
}

async function readPlan(
  args: string[],
  { settings, generateCourses }: { settings: { PORT: number }; generateCourses: GenerateCourses },
): Promise<Plan> {
  const { values, positionals } = parse(args, {
    records: { type: 'string' },
    count: { type: 'string' },
    seed: { type: 'string', default: defaultSeed },
    connections: { type: 'string' },
    route: { type: 'string', default: 'course' },
    stream: { type: 'string', default: 'courses' },
    token: { type: 'string' },
    seconds: { type: 'string' },
    plot: { type: 'string' },
  })
  const way = (Object.keys(ways) as Way[]).find(each => each === values.route)
  if (!way) throw new UsageError(`--route takes ${Object.keys(ways).join(', ')}.`)
  if (positionals.length > 1) throw new UsageError('capstan load takes one address.')
  if (values.records !== undefined && values.count !== undefined) {
    throw new UsageError('--records and --count do not go together: a file holds as many as it holds.')
  }
  const seconds = values.seconds === undefined ? undefined : readWhole('--seconds', values.seconds, secondsBounds)
  const connections = readWhole('--connections', values.connections ?? String(ways[way]), connectionBounds)
  const file = values.records === undefined ? undefined : await openRecords(values.records)
  const seed = readWhole('--seed', values.seed, seedBounds)
  const countText = values.count ?? (seconds === undefined ? String(defaultCount) : undefined)
  const wished = countText === undefined ? undefined : readWhole('--count', countText, countBounds)
  const endless = file && seconds !== undefined ? () => repeat(file.open) : file?.open
  return {
    way,
    target: {
      url: readUrl(positionals[0] ?? `http://127.0.0.1:${settings.PORT}`),
      path: way === 'course' ? '/course' : `/v1/streams/${encodeURIComponent(values.stream)}/records`,
      headers: values.token === undefined ? {} : { authorization: `Bearer ${values.token}` },
    },
    connections,
    count: file && seconds === undefined ? file.count : wished,
    open: endless ?? (() => writeTexts(generateCourses({ count: wished ?? Number.POSITIVE_INFINITY, seed }))),
    endsAfterMs: seconds === undefined ? undefined : seconds * 1000,
    plot: values.plot,
  }
}

function* writeTexts(records: Iterable<unknown>): Generator<string> {
  for (const record of records) yield JSON.stringify(record)
}

function readUrl(text: string): URL {
  const url = URL.parse(text)
  if (url && ['http:', 'https:'].includes(url.protocol)) return url
  throw new UsageError(`\`${text}\` is no address; it looks like http://127.0.0.1:8080.`)
}

/** Any answer will do. @throws UsageError */
async function reach(url: URL) {
  try {
    const answer = await fetch(new URL('/healthz', url), { signal: AbortSignal.timeout(reachMs) })
    await answer.arrayBuffer()
  } catch (error) {
    const { cause, name } = error as Error & { cause?: NodeJS.ErrnoException }
    const why = cause?.code ?? cause?.message ?? name
    throw new UsageError(
      `Nothing answers at ${url.origin} (${why}). Is Capstan running there? \`npm start\` runs it; capstan load takes another address as its argument.`,
    )
  }
}

async function send(plan: Plan): Promise<{ tally: Tally; hopeless: Reply | undefined; interrupted: boolean }> {
  const [stop, cut] = [new AbortController(), new AbortController()]
  const timers: NodeJS.Timeout[] = []
  const after = (ms: number, action: () => void) => timers.push(setTimeout(action, ms))
  const end = (forAnswersMs: number) => {
    stop.abort()
    after(forAnswersMs, () => cut.abort())
  }
  let interrupted = false
  let hopeless: Reply | undefined
  // Once: a second Ctrl-C ends it as usual.
  const interrupt = () => {
    interrupted = true
    end(interruptedGraceMs)
  }
  process.once('SIGINT', interrupt)
  const tally = makeTally()
  if (plan.endsAfterMs !== undefined) after(plan.endsAfterMs, () => end(graceMs))
  const watch = watchSilence(tally, () => end(0))
  const progress = showProgress(() => stateOf(plan, tally))
  const sending: Sending = {
    ...{ target: plan.target, connections: plan.connections, supply: makeSupply(plan.open()), tally },
    ...{ stop: stop.signal, cut: cut.signal },
    onHopeless(reply) {
      hopeless ??= reply
      end(graceMs)
    },
  }
  try {
    await (plan.way === 'ndjson' ? sendLines(sending) : sendSingles(sending))
  } finally {
    tally.end()
    progress.end()
    for (const timer of [...timers, watch]) clearTimeout(timer)
    process.off('SIGINT', interrupt)
  }
  return { tally, hopeless, interrupted }
}

/** Calls when nothing at all has been answered for long. */
function watchSilence(tally: Tally, onSilence: () => void): NodeJS.Timeout {
  let [heard, at] = [0, performance.now()]
  return setInterval(() => {
    const now = tally.taken + tally.refused
    if (now > heard) [heard, at] = [now, performance.now()]
    else if (performance.now() - at > silenceMs) onSilence()
  }, 1000)
}

function stateOf({ count, endsAfterMs }: Plan, tally: Tally): { share: number; words: string } {
  const { taken, refused, lost, tookMs } = tally
  const done = taken + refused + lost
  const share = Math.max(count === undefined ? 0 : done / count, endsAfterMs === undefined ? 0 : tookMs / endsAfterMs)
  const of = count === undefined ? '' : ` of ${show(count)}`
  const wrong = refused + lost > 0 ? `, ${show(refused + lost)} not taken` : ''
  return { share, words: `${show(done)}${of}, ${show(taken / Math.max(0.001, tookMs / 1000))} a second${wrong}` }
}

/** What to do about answers that were no success. */
function hintsOf(tally: Tally, plan: Plan): string[] {
  const kinds = tally.answers().map(row => row.kind)
  const statuses = kinds.filter(kind => /^[45]\d\d$/.test(kind)).map(Number)
  const hints = statuses.map(status => tellWhy(status, plan, '')).filter(hint => hint !== '')
  if (kinds.some(kind => kind.startsWith('no answer'))) {
    hints.push('What had no answer may have been taken or not: the stream’s counts tell.')
  }
  return hints
}

function tellWhy(status: number, { way, target }: Plan, words: string): string {
  const said = words === '' ? '' : ` It says: ${words}`
  const token = '--token takes an access token (POST /v1/auth/login answers one) or an API key'
  if (status === 401 && way === 'course' && !target.headers.authorization) {
    return `/course is closed there, as it is in production: ${token}, or OPEN_ROUTES=/course opens it to all.${said}`
  }
  if (status === 401) return `${target.path} asks who calls: ${token}.${said}`
  if (status === 403) return `Whose token it is may not add records; an API key needs the scope streams:write.${said}`
  if (status === 404) return `There is no ${target.path} at ${target.url.origin}.${said}`
  if (status === 429) {
    return '429: a caller may make RATE_LIMIT_PER_MINUTE requests a minute; Capstan started with 0 has no such limit. --route ndjson sends all in a few requests.'
  }
  if (status === 503)
    return '503: the server was at its limit, stopped, or one of its routes was away; its words above say which.'
  return words === '' ? '' : `${target.path} was answered ${status}.${said}`
}

async function savePlot(file: string, svg: string) {
  try {
    await writeFile(file, svg)
  } catch (error) {
    throw new UsageError(`The plot cannot be written to ${file} (${(error as NodeJS.ErrnoException).code}).`)
  }
  print(`\n  The plot is in ${file}.`)
}
