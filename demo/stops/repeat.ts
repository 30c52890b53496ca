import { randomUUID } from 'node:crypto'
import { expect, type Stop } from '../stop.ts'
import type { Problem, Run } from '../support/api.ts'
import { pick } from '../support/programs.ts'

const hello = { bash: 'echo once', python: 'print("once")', javascript: 'console.log("once")' }
const times = 20

export const repeat: Stop = {
  title: 'One click, sent 20 times',
  needsSandbox: true,
  async run(context) {
    const { makeUser, say } = context
    const user = await makeUser('hedy')
    const wish = pick(context, hello)
    const key = { 'idempotency-key': randomUUID() }
    const answers = await Promise.all(Array.from({ length: times }, () => user.post<Run>('/v1/runs', wish, key)))
    const ids = new Set(answers.map(run => run.id))
    await user.waitForEnd(answers[0]!.id)
    const made = (await user.listRuns()).length
    say(`${times} requests with one Idempotency-Key at once: ${times} equal answers, ${made} run`)
    expect(ids.size === 1 && made === 1, `One key made ${made} runs and ${ids.size} different answers.`)

    const other = await user.send<Problem>('POST', '/v1/runs', { ...wish, args: ['other'] }, key)
    say(`another request with the same key: ${other.status} ${other.body.code}`)
    expect(other.status === 422, `A key used for another request was answered ${other.status}.`)
    return `${times} requests, ${made} run`
  },
}
