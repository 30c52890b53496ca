import { type Context, expect, type Stop } from '../stop.ts'
import { type Api, follow, type Run } from '../support/api.ts'
import { pick } from '../support/programs.ts'

const square = {
  python: 'import sys\nprint(int(sys.argv[1]) ** 2)',
  bash: 'echo $(($1 * $1))',
  javascript: 'console.log(process.argv[2] ** 2)',
}
const many = 90
const few = 10

export const hundred: Stop = {
  title: 'A hundred runs at once',
  needsSandbox: true,
  async run(context) {
    const { makeUser, say } = context
    const [alan, bob] = [await makeUser('alan'), await makeUser('bob')]
    const wish = pick(context, square)
    const submit = (user: Api, count: number) =>
      Promise.all(numbers(count).map(n => user.post<Run>('/v1/runs', { ...wish, args: [String(n)] })))
    const begun = performance.now()
    const alans = await submit(alan, many)
    const bobs = await submit(bob, few)
    say(`alan sent ${many} runs, then bob ${few}; all were accepted in ${(performance.now() - begun).toFixed(0)} ms`)

    const [bobEnds, alanEnds] = await Promise.all([waitForAll(context, bob, bobs), waitForAll(context, alan, alans)])
    const perSecond = (many + few) / ((lastEnd([...alanEnds, ...bobEnds]) - firstStart(alans)) / 1000)
    say(`all 100 answers are right; ${perSecond.toFixed(0)} runs a second`)
    const before = alanEnds.filter(run => endOf(run) < lastEnd(bobEnds)).length
    say(`bob's last was done when ${before} of alan's ${many} were: nobody waits behind a crowd`)
    expect(before < many, 'Bob waited for all of Alan’s runs.')
    return `${perSecond.toFixed(0)} runs/s; bob's ${few} were done with ${before} of alan's ${many}`
  },
}

/** Followed rather than asked for again and again, which would take the programs' time. */
async function waitForAll({ capstan, signal }: Context, user: Api, accepted: Run[]): Promise<Run[]> {
  const topics = accepted.map(({ id }) => `runs/${id}`)
  await follow({ base: capstan.url, token: user.token, topics, signal, onEvent: () => {} })
  const runs = await Promise.all(accepted.map(({ id }) => user.waitForEnd(id)))
  for (const [index, { status, stdout }] of runs.entries()) {
    const wanted = String((index + 1) ** 2)
    expect(stdout.trim() === wanted, `A run ended as ${status} with ${JSON.stringify(stdout)} rather than ${wanted}.`)
  }
  return runs
}

function numbers(count: number): number[] {
  return Array.from({ length: count }, (_, index) => index + 1)
}

function endOf(run: Run): number {
  return Date.parse(run.finished_at!)
}

function lastEnd(runs: Run[]): number {
  return Math.max(...runs.map(endOf))
}

function firstStart(runs: Run[]): number {
  return Math.min(...runs.map(run => Date.parse(run.created_at)))
}
