import { type Context, expect, type Stop } from '../stop.ts'
import { type Api, follow, type Run, type RunWish } from '../support/api.ts'
import { pick } from '../support/programs.ts'

const slowEcho = {
  bash: 'sleep 0.3; echo "$1"',
  python: 'import sys, time\ntime.sleep(0.3)\nprint(sys.argv[1])',
  javascript: 'setTimeout(() => console.log(process.argv[2]), 300)',
}
const total = 60
const endedBeforeKill = 8

export const crash: Stop = {
  title: 'kill -9 in the middle',
  needsSandbox: true,
  async run(context) {
    const { capstan, makeUser, say, signal } = context
    const user = await makeUser('barbara')
    const accepted = await submitAll(user, pick(context, slowEcho))
    while (countEnded(await user.listRuns()) < endedBeforeKill) signal.throwIfAborted()
    await capstan.crash()
    say(`Capstan accepted ${total} runs, and was killed while it worked on them`)

    const begun = performance.now()
    await capstan.start(signal)
    const kept = await user.listRuns()
    say(
      `started again in ${(performance.now() - begun).toFixed(0)} ms: ${kept.length} runs, ${countEnded(kept)} of them ended`,
    )
    expect(kept.length === total, `Of ${total} accepted runs ${kept.length} are there.`)

    await checkResultsOnce(context, user, accepted)
    const repeated = await checkEnds(user, accepted)
    say(`all ${total} ended, each with one result; ${repeated} had been cut off and were begun again`)
    return `${total} runs accepted, ${total} results; ${repeated} begun again`
  },
}

async function submitAll(user: Api, wish: RunWish): Promise<string[]> {
  const sent = Array.from({ length: total }, (_, index) => ({ ...wish, args: [`result ${index}`] }))
  return Promise.all(sent.map(async body => (await user.post<Run>('/v1/runs', body)).id))
}

function countEnded(runs: Run[]): number {
  return runs.filter(run => run.finished_at !== null).length
}

/** Answers how many were begun more than once. */
async function checkEnds(user: Api, accepted: string[]): Promise<number> {
  const ends = await Promise.all(accepted.map(id => user.waitForEnd(id)))
  for (const [index, run] of ends.entries()) {
    expect(
      run.stdout === `result ${index}\n`,
      `Run ${index} ended as ${run.status} with ${JSON.stringify(run.stdout)}.`,
    )
  }
  return ends.filter(run => run.attempt > 1).length
}

/** Its events tell a run's whole story: one end each. */
async function checkResultsOnce({ capstan, signal }: Context, user: Api, accepted: string[]) {
  const results = new Map<string, number>()
  await follow({
    base: capstan.url,
    token: user.token,
    topics: accepted.map(id => `runs/${id}`),
    signal,
    onEvent(topic, { type, data }) {
      if (type === 'status' && data.status === 'succeeded') results.set(topic, (results.get(topic) ?? 0) + 1)
    },
  })
  const once = accepted.filter(id => results.get(`runs/${id}`) === 1).length
  expect(once === accepted.length, `Only ${once} of ${accepted.length} runs have exactly one result.`)
}
