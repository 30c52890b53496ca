import { type Context, expect, type Stop } from '../stop.ts'
import type { Run } from '../support/api.ts'
import { type Program, pick } from '../support/programs.ts'
import { pad } from '../support/terminal.ts'

interface Attack {
  name: string
  program: Program
  limits: Record<string, number>
  /** What it must end as; where there are several, any of them. */
  expected: string[]
  tell: (run: Run) => string
}

const mib = 1024 * 1024

const attacks: Attack[] = [
  {
    name: 'endless loop',
    program: { python: 'while True: pass', bash: 'while :; do :; done', javascript: 'for (;;);' },
    limits: { cpu_ms: 1000, wall_ms: 5000 },
    expected: ['timed_out'],
    tell: run => `after ${run.cpu_ms} ms of CPU time; it was given 1000`,
  },
  {
    name: 'memory hog',
    program: {
      python: 'hoard = []\nwhile True: hoard.append(bytearray(1 << 20))',
      bash: 'x=x; while :; do x=$x$x; done',
      javascript: 'const hoard = []; for (;;) hoard.push(Buffer.alloc(1 << 20, 1))',
    },
    limits: { memory_bytes: 128 * mib, cpu_ms: 5000, wall_ms: 8000 },
    expected: ['out_of_memory'],
    tell: run => `with ${Math.round((run.memory_bytes ?? 0) / mib)} MiB; it was given 128`,
  },
  {
    name: 'fork bomb',
    program: {
      bash: 'bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done',
      python: 'import os\nwhile True:\n    try: os.fork()\n    except OSError: pass',
      javascript: `const { spawn } = require('child_process')
setInterval(() => spawn(process.execPath, [process.argv[1]]).on('error', () => {}), 1)`,
    },
    limits: { processes: 32, cpu_ms: 1500, wall_ms: 2000 },
    expected: ['timed_out', 'failed', 'succeeded', 'out_of_memory'],
    tell: run => `after ${run.wall_ms} ms, never more than 32 processes`,
  },
]

const honest: Program = { python: 'print(6 * 7)', bash: 'echo 42', javascript: 'console.log(6 * 7)' }

export const hostile: Stop = {
  title: 'Hostile programs',
  needsSandbox: true,
  async run(context) {
    const mallory = await context.makeUser('mallory')
    const bystander = await context.makeUser('edith')
    const ends = attacks.map(async ({ name, program, limits, expected, tell }) => {
      const run = await mallory.run({ ...pick(context, program), limits })
      expect(expected.includes(run.status), `The ${name} ended as ${run.status}: ${run.stderr.slice(0, 200)}`)
      context.say(`${pad(name, 14)} ${pad(run.status, 14)} ${tell(run)}`)
    })
    const [answeredMs] = await Promise.all([answerAmid(context, bystander), ...ends])
    return `all ended; an honest program among them was done in ${answeredMs} ms`
  },
}

/** Somebody else's program while the attacks are on. */
async function answerAmid(context: Context, bystander: Awaited<ReturnType<Context['makeUser']>>): Promise<number> {
  const begun = performance.now()
  const run = await bystander.run(pick(context, honest))
  expect(run.stdout.trim() === '42', `The honest program ended as ${run.status}.`)
  const ms = Math.round(performance.now() - begun)
  context.say(`${pad('honest program', 14)} ${pad(run.status, 14)} in ${ms} ms, while the others were at it`)
  return ms
}
