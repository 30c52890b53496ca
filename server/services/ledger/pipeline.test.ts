import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Outcome } from '#platform/batch.ts'
import { errors as platformErrors } from '#platform/errors.ts'
import { until } from '../../../test/support/until.ts'
import { errors } from './errors.ts'
import { makePlaces, runPipeline } from './pipeline.ts'

interface Submitted {
  line: number
  settle(outcome: Outcome<number>): void
}

/** A pipeline over lines 0, 1, 2, … whose submissions the test settles. */
function makePipeline(given: {
  perMessage: number
  lines: number
  linesMax: number
  places?: ReturnType<typeof makePlaces>
}) {
  const submitted: Submitted[] = []
  const source = { read: 0, ended: false, fail: undefined as Error | undefined }
  async function* messages() {
    try {
      while (source.read < given.lines) {
        if (source.fail) throw source.fail
        const first = source.read
        source.read += given.perMessage
        yield Array.from({ length: given.perMessage }, (_, n) => first + n)
      }
    } finally {
      source.ended = true
    }
  }
  const outcomes = runPipeline<number, number>({
    messages: messages(),
    submit: line =>
      new Promise((resolve, reject) => {
        const settle = (outcome: Outcome<number>) =>
          'value' in outcome ? resolve(outcome.value) : reject(outcome.error)
        submitted.push({ line, settle })
      }),
    places: given.places ?? makePlaces(1000),
    linesMax: given.linesMax,
  })
  return { submitted, source, outcomes }
}

const valuesOf = (outcomes: Outcome<number>[] | undefined) =>
  outcomes!.map(outcome => ('value' in outcome ? outcome.value : (outcome.error as { code: string }).code))

test('outcomes come in the order of the lines, whatever order they are decided in, refusals among them', async () => {
  const { submitted, outcomes } = makePipeline({ perMessage: 5, lines: 5, linesMax: 10 })
  const first = outcomes.next()
  await until(() => submitted.length === 5)
  submitted[1]!.settle({ value: 1 })
  submitted[2]!.settle({ error: errors.insufficientFunds(7) })
  submitted[0]!.settle({ value: 0 })
  assert.deepEqual(valuesOf((await first).value as Outcome<number>[]), [0, 1, 'insufficient_funds'])
  submitted[4]!.settle({ value: 4 })
  submitted[3]!.settle({ value: 3 })
  assert.deepEqual(valuesOf((await outcomes.next()).value as Outcome<number>[]), [3, 4])
  assert.equal((await outcomes.next()).done, true)
})

test('no more is read than may be unanswered, and an answer that is not taken makes no room', async () => {
  const { submitted, source, outcomes } = makePipeline({ perMessage: 2, lines: 1000, linesMax: 10 })
  const first = outcomes.next()
  await until(() => submitted.length === 10)
  assert.ok(source.read <= 12)
  for (const { line, settle } of submitted) settle({ value: line })
  assert.equal(((await first).value as unknown[]).length, 10)
  // Taken, but the next are not asked for: what was read meanwhile waits.
  await until(() => submitted.length === 20)
  for (const { line, settle } of submitted.slice(10)) settle({ value: line })
  await new Promise(resolve => setImmediate(resolve))
  assert.equal(submitted.length, 20)
  assert.ok(source.read <= 22)
  await outcomes.return(undefined)
  await until(() => source.ended)
})

test('streams share their places, and give them back as lines are decided', async () => {
  const places = makePlaces(6)
  const one = makePipeline({ perMessage: 1, lines: 100, linesMax: 4, places })
  const two = makePipeline({ perMessage: 1, lines: 100, linesMax: 4, places })
  const firsts = [one.outcomes.next(), two.outcomes.next()]
  await until(() => one.submitted.length + two.submitted.length === 6)
  await new Promise(resolve => setImmediate(resolve))
  assert.equal(one.submitted.length + two.submitted.length, 6)
  for (const { line, settle } of one.submitted) settle({ value: line })
  await until(() => two.submitted.length === 4)
  for (const { line, settle } of two.submitted) settle({ value: line })
  await Promise.all(firsts)
  for (const { outcomes } of [one, two]) await outcomes.return(undefined)
})

test('a place that is waited for by a stream that was left goes to the next', async () => {
  const places = makePlaces(1)
  const left = makePipeline({ perMessage: 1, lines: 10, linesMax: 4, places })
  void left.outcomes.next()
  await until(() => left.submitted.length === 1)
  const next = makePipeline({ perMessage: 1, lines: 1, linesMax: 4, places })
  const answer = next.outcomes.next()
  void left.outcomes.return(undefined)
  // It may have had the next place before it knew that it was left.
  left.submitted[0]!.settle({ value: 0 })
  await until(() => left.submitted.length + next.submitted.length === 2)
  left.submitted[1]?.settle({ value: 1 })
  await until(() => next.submitted.length === 1)
  assert.ok(left.submitted.length <= 2)
  next.submitted[0]!.settle({ value: 0 })
  assert.deepEqual(valuesOf((await answer).value as Outcome<number>[]), [0])
})

test('when the lines end with an error, what was read is answered before it', async () => {
  const { submitted, source, outcomes } = makePipeline({ perMessage: 1, lines: 100, linesMax: 3 })
  const first = outcomes.next()
  await until(() => submitted.length === 3)
  source.fail = new Error('the client has gone')
  for (const { line, settle } of submitted) settle({ value: line })
  const seen = valuesOf((await first).value as Outcome<number>[])
  // The one that was read already.
  await until(() => submitted.length === 4)
  submitted[3]!.settle({ value: 3 })
  seen.push(...valuesOf((await outcomes.next()).value as Outcome<number>[]))
  await assert.rejects(outcomes.next(), /the client has gone/)
  assert.deepEqual(seen, [0, 1, 2, 3])
})

for (const error of [new Error('Connection terminated'), platformErrors.overloaded('The queue')]) {
  test(`a line that cannot be decided ends the stream after what stands before it: ${error.message}`, async () => {
    const { submitted, outcomes } = makePipeline({ perMessage: 4, lines: 4, linesMax: 10 })
    const first = outcomes.next()
    await until(() => submitted.length === 4)
    submitted[2]!.settle({ error })
    submitted[3]!.settle({ value: 3 })
    submitted[1]!.settle({ value: 1 })
    submitted[0]!.settle({ value: 0 })
    assert.deepEqual(valuesOf((await first).value as Outcome<number>[]), [0, 1])
    await assert.rejects(outcomes.next(), thrown => thrown === error)
  })
}
