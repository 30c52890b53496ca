/**
 * `npm run load:images`: sends thousands of good, oversized and wrong files at once and counts what was answered.
 * Fails when a file was answered in a way that it never may be: a good one refused as bad, a wrong one accepted, or
 * anything with a 5xx but 503.
 */
import { parseArgs } from 'node:util'
import { makeJpegOfSize, makePicture } from '../test/support/pictures.ts'

const usage =
  'npm run load:images -- [URL, by default http://127.0.0.1:8080] [--path /upload] [--token …] [--count 3000] [--concurrency 64]'
const { values, positionals } = readArgs()
const base = positionals[0] ?? 'http://127.0.0.1:8080'
const [count, concurrency] = [Number(values.count), Number(values.concurrency)]
if (!(Number.isInteger(count) && count > 0 && Number.isInteger(concurrency) && concurrency > 0)) {
  complain('--count and --concurrency take whole numbers from 1.')
}

function readArgs() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        path: { type: 'string', default: '/upload' },
        token: { type: 'string' },
        count: { type: 'string', default: '3000' },
        concurrency: { type: 'string', default: '64' },
      },
    })
  } catch (error) {
    return complain((error as Error).message)
  }
}

function complain(words: string): never {
  console.error(`${words}\n${usage}`)
  process.exit(2)
}

interface Kind {
  name: string
  /** Of ten files, how many are of this kind. */
  share: number
  make(n: number): Buffer | Promise<Buffer>
  /** Answers that may come. */
  allowed: readonly number[]
}

/** 429 and 503 ask to come back: nothing was accepted. */
const busy = [429, 503]
const goodBytes = 200_000
const largeBytes = 9_000_000
const large = makeLarge()
const wrong: readonly Buffer[] = [
  Buffer.alloc(0),
  Buffer.from('not an image'),
  Buffer.concat([Buffer.from([0xff, 0xd8]), Buffer.alloc(5000, 7)]),
  Buffer.from('<svg xmlns="http://www.w3.org/2000/svg"/>'),
  (await makePicture({ width: 300, height: 200, format: 'jpeg', kind: 'photo', seed: 1 })).subarray(0, 4000),
]

const kinds: readonly Kind[] = [
  { name: 'good', share: 7, make: n => makeJpegOfSize(goodBytes, n), allowed: [200, 202, ...busy] },
  { name: 'oversized', share: 1, make: () => large, allowed: values.path === '/upload' ? [413, ...busy] : [413, 422] },
  { name: 'wrong', share: 2, make: n => wrong[n % wrong.length]!, allowed: [400, 415, 422, ...busy] },
]
const lot = kinds.flatMap(kind => Array<Kind>(kind.share).fill(kind))

/** Larger than the old contract takes, and than fits into any other bound once it claims so many pixels. */
async function makeLarge(): Promise<Buffer> {
  const picture = await makeJpegOfSize(goodBytes, 0)
  return Buffer.concat([picture, Buffer.alloc(largeBytes - picture.length)])
}

async function send(kind: Kind, n: number): Promise<number | string> {
  const form = new FormData()
  form.set('image', new File([new Uint8Array(await kind.make(n))], `picture-${n}.jpg`, { type: 'image/jpeg' }))
  try {
    const answer = await fetch(base + values.path, {
      method: 'POST',
      body: form,
      headers: values.token === undefined ? {} : { authorization: `Bearer ${values.token}` },
      signal: AbortSignal.timeout(60_000),
    })
    await answer.arrayBuffer()
    return answer.status
  } catch (error) {
    const { message, cause } = error as Error
    return `no answer: ${(cause as { code?: string })?.code ?? message}`
  }
}

const answers = new Map<string, Map<number | string, number>>()
const unexpected: string[] = []
let sent = 0
let done = 0
const begun = performance.now()

await Promise.all(
  Array.from({ length: concurrency }, async () => {
    while (sent < count) {
      const n = sent++
      const kind = lot[n % lot.length]!
      const answer = await send(kind, n)
      const row = answers.get(kind.name) ?? new Map<number | string, number>()
      answers.set(kind.name, row.set(answer, (row.get(answer) ?? 0) + 1))
      if (typeof answer !== 'number' || !kind.allowed.includes(answer)) unexpected.push(`${kind.name}: ${answer}`)
      done++
      showProgress()
    }
  }),
)
showTable()
process.exitCode = unexpected.length === 0 ? 0 : 1

function showProgress() {
  if (!process.stderr.isTTY || (done % 10 !== 0 && done !== count)) return
  const width = 40
  const full = Math.round((done / count) * width)
  process.stderr.write(`\r${'█'.repeat(full)}${'░'.repeat(width - full)} ${done}/${count}${done === count ? '\n' : ''}`)
}

function showTable() {
  const seconds = (performance.now() - begun) / 1000
  console.log(`${count} files to ${values.path} in ${seconds.toFixed(1)} s (${(count / seconds).toFixed(0)}/s)\n`)
  console.log('| files | answer | times |\n| --- | --- | ---: |')
  for (const [kind, row] of answers)
    for (const [answer, times] of row) console.log(`| ${kind} | ${answer} | ${times} |`)
  if (unexpected.length > 0)
    console.log(`\n${unexpected.length} answers that may not be: ${[...new Set(unexpected)].join('; ')}`)
}
