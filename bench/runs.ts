/** Runs over HTTP, from POST to result, beside the same interpreter started in a bare bubblewrap the same number of times. */
import { spawn } from 'node:child_process'
import { existsSync, realpathSync } from 'node:fs'
import { interleave, latencyOf, printLines, rate, type Sample } from './support/measure.ts'
import { withCapstan } from './support/servers.ts'

const rounds = 5
const oneByOne = 60
const atOnce = 16
const atOnceCount = 240
const warmUpCount = 600

const hellos = {
  python: { source: 'print("hello")', bare: ['/usr/bin/python3', '-c', 'print("hello")'] },
  javascript: { source: 'console.log("hello")', bare: ['/opt/node', '-e', 'console.log("hello")'] },
} as const
type Language = keyof typeof hellos

const bareArguments = [
  '--unshare-all',
  '--die-with-parent',
  '--ro-bind',
  '/usr',
  '/usr',
  ...['bin', 'lib', 'lib64', 'sbin']
    .filter(name => existsSync(`/${name}`))
    .flatMap(name => ['--symlink', `usr/${name}`, `/${name}`]),
  '--ro-bind',
  realpathSync(process.execPath),
  '/opt/node',
  '--proc',
  '/proc',
  '--dev',
  '/dev',
  '--tmpfs',
  '/tmp',
]

function startBare(language: Language): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn('bwrap', [...bareArguments, ...hellos[language].bare], { stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    child.stdout.on('data', chunk => {
      output += chunk
    })
    child.once('error', reject)
    child.once('close', code =>
      code === 0 && output === 'hello\n' ? resolve() : reject(new Error(`bare bwrap ended with ${code}`)),
    )
  })
}

async function runOver(given: { url: string; token: string }, language: Language): Promise<void> {
  const answer = await fetch(`${given.url}/v1/runs?wait=30`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${given.token}` },
    body: JSON.stringify({ language, source: hellos[language].source }),
  })
  const run = (await answer.json()) as { status: string; stdout: string }
  if (answer.status !== 200 || run.stdout !== 'hello\n')
    throw new Error(`a run was answered with ${answer.status}: ${JSON.stringify(run)}`)
}

async function measure(start: () => Promise<void>): Promise<Sample> {
  const times: number[] = []
  for (let n = 0; n < oneByOne; n++) {
    const begun = performance.now()
    await start()
    times.push(performance.now() - begun)
  }
  const throughput = await rate(atOnceCount, atOnce, start)
  return { ...latencyOf(times), throughput }
}

export async function benchRuns() {
  await withCapstan({ RUN_WAITING_PER_USER: '100000' }, async capstan => {
    for (const language of Object.keys(hellos) as Language[]) {
      // A server is long-lived: it is measured warm. So is the interpreter, which lies in the page cache.
      await rate(warmUpCount, atOnce, () => runOver(capstan, language))
      await rate(atOnce, atOnce, () => startBare(language))
      const results = await interleave(
        { capstan: () => measure(() => runOver(capstan, language)), bare: () => measure(() => startBare(language)) },
        rounds,
      )
      const [ours, bare] = [results.capstan!, results.bare!]
      const theirName = 'bare bwrap'
      printLines(`Runs: a ${language} hello over HTTP`, [
        {
          what: 'POST to result, p50',
          ours: ours.p50!,
          theirs: bare.p50!,
          theirName,
          unit: 'ms',
          aim: { atMost: 2.5 },
        },
        {
          what: 'POST to result, p99',
          ours: ours.p99!,
          theirs: bare.p99!,
          theirName,
          unit: 'ms',
          aim: { atMost: 2.5 },
        },
        {
          what: `runs, ${atOnce} at once`,
          ours: ours.throughput!,
          theirs: bare.throughput!,
          theirName,
          unit: '/s',
          aim: { atLeast: 0.8 },
        },
      ])
    }
  })
}
