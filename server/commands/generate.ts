/** `capstan generate`: records to try a stream with, the same ones for the same seed. */
import { createWriteStream } from 'node:fs'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { CourseRecord } from '#services/ingest/index.ts'
import { parse, readWhole, UsageError } from './usage.ts'

export type GenerateCourses = (given: { count: number; seed: number }) => Iterable<CourseRecord>

const formats = ['json', 'ndjson'] as const
type Format = (typeof formats)[number]

export const countBounds = { min: 1, max: 1_000_000_000 }
export const seedBounds = { min: 0, max: 4_294_967_295 }
export const defaultSeed = '1'
/** Records that are written at once. */
const pieceRecords = 500

/** @throws UsageError */
export async function generate(args: string[], generateCourses: GenerateCourses) {
  const { values, positionals } = parse(args, {
    seed: { type: 'string', default: defaultSeed },
    format: { type: 'string', default: 'json' },
    output: { type: 'string' },
  })
  const [kind, countText, ...more] = positionals
  if (kind !== 'courses' || countText === undefined || more.length > 0) {
    throw new UsageError('capstan generate takes courses and how many of them: capstan generate courses 10000')
  }
  const count = readWhole('COUNT', countText, countBounds)
  const seed = readWhole('--seed', values.seed, seedBounds)
  const format = formats.find(each => each === values.format)
  if (!format) throw new UsageError(`--format takes ${formats.join(' or ')}.`)
  const pieces = Readable.from(writeRecords(generateCourses({ count, seed }), format), { objectMode: false })
  await write(pieces, values.output)
  if (values.output !== undefined) {
    console.error(`${count.toLocaleString('en')} records of seed ${seed} are in ${values.output}.`)
  }
}

/** NDJSON, or a JSON array with a record a line, in pieces. */
export function* writeRecords(records: Iterable<unknown>, format: Format): Generator<string> {
  const { open, between, close } =
    format === 'json' ? { open: '[\n', between: ',\n', close: '\n]\n' } : { open: '', between: '\n', close: '\n' }
  let piece = open
  let index = 0
  for (const record of records) {
    piece += (index === 0 ? '' : between) + JSON.stringify(record)
    if (++index % pieceRecords !== 0) continue
    yield piece
    piece = ''
  }
  yield piece + close
}

async function write(pieces: Readable, file: string | undefined) {
  try {
    if (file === undefined) await pipeline(pieces, process.stdout, { end: false })
    else await pipeline(pieces, createWriteStream(file))
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    // Whoever reads along may leave, as `head` does.
    if (file === undefined && code === 'EPIPE') return
    throw file === undefined ? error : new UsageError(`${file} cannot be written: ${message}`)
  }
}
