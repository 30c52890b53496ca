import { mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { expect, type Stop, TourError } from '../stop.ts'
import type { Api } from '../support/api.ts'
import { pause } from '../support/api.ts'
import { bar, pad } from '../support/terminal.ts'
import { picturesFolder } from './picture.ts'

interface Counts {
  total: number
  rows: { values: string[]; count: number }[]
}

const count = 10_000
const stream = '/v1/streams/courses'
const barWidth = 30
const pollMs = 20
const chartFile = path.join(picturesFolder, 'courses.svg')
const root = path.resolve(import.meta.dirname, '../..')

export const records: Stop = {
  title: 'A stream of records',
  async run({ capstan, makeUser, signal, say }) {
    const vera = await makeUser('vera')
    const lines = await capstan.run(['generate', 'courses', String(count), '--format', 'ndjson'])
    const begun = performance.now()
    const answer = await fetch(`${capstan.url}${stream}/records`, {
      method: 'POST',
      headers: { authorization: `Bearer ${vera.token}`, 'content-type': 'application/x-ndjson' },
      body: lines,
      signal,
    })
    const taken = readTaken(await answer.text())
    const tookMs = performance.now() - begun
    expect(taken === count, `${taken} of ${count} records were taken.`)
    const perSecond = (count / tookMs) * 1000
    say(
      `${show(count)} course records as NDJSON, each durable, in ${tookMs.toFixed(0)} ms: ${show(perSecond)} a second`,
    )

    const countedMs = await waitUntilCounted(vera, signal)
    say(`all are counted ${countedMs.toFixed(0)} ms later`)
    for (const { values, count: records } of (await askCounts(vera, 'route')).rows) {
      const words = values[0] === 'a' ? 'through the log and its consumer' : 'straight into the store and the counts'
      say(`  route ${values[0]}  ${show(records).padStart(6)}  ${words}`)
    }
    const regions = (await askCounts(vera, 'region')).rows.sort((a, b) => b.count - a.count)
    for (const { values, count: records } of regions) {
      say(`  ${pad(values[0]!, 14)} ${show(records).padStart(6)}  ${bar(records / regions[0]!.count, barWidth)}`)
    }
    await saveChart(await vera.get<string>(`${stream}/chart.svg?by=region,facultad`))
    return `${show(perSecond)} records/s, counted by region; the chart is ${chartFile}`
  },
}

/** Of the answer, whose lines tell of records that follow each other. */
function readTaken(answer: string): number {
  const told = answer
    .trimEnd()
    .split('\n')
    .map(line => JSON.parse(line) as { line: number; count?: number; error?: { message: string } })
  const wrong = told.find(({ error }) => error)
  if (wrong) throw new TourError(`Line ${wrong.line} was not taken: ${wrong.error!.message}`)
  return told.reduce((sum, { count = 0 }) => sum + count, 0)
}

/** Records of route a are counted by their consumer, after they were answered. */
async function waitUntilCounted(user: Api, signal: AbortSignal): Promise<number> {
  const begun = performance.now()
  while ((await askCounts(user, '')).total < count) await pause(pollMs, signal)
  const { total } = await askCounts(user, '')
  expect(total === count, `${total} records were counted of ${count}.`)
  return performance.now() - begun
}

function askCounts(user: Api, by: string): Promise<Counts> {
  return user.get<Counts>(`${stream}/counts?by=${by}`)
}

async function saveChart(svg: string) {
  expect(svg.startsWith('<svg'), 'The chart is no SVG.')
  await mkdir(path.join(root, picturesFolder), { recursive: true })
  await writeFile(path.join(root, chartFile), svg)
}

function show(number: number): string {
  return Math.round(number).toLocaleString('en')
}
