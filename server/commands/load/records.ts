/** Where the records of a load come from: generated, or a file of NDJSON or of a JSON array. */
import { createReadStream } from 'node:fs'
import { open, readFile, stat } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { UsageError } from '../usage.ts'

/** Texts of records, a line each. */
export type Records = Iterable<string> | AsyncIterable<string>

/** Hands records to whoever is free. */
export interface Supply {
  /** The next one; undefined at the end. No promise where none is needed: it would be half of the work. */
  next(): string | undefined | Promise<string | undefined>
}

/** Records of a file that are read ahead. */
const aheadMax = 1000
/** How much of a file is looked at to see what it is. */
const peekedBytes = 65_536
/** An array that has to be read as a whole. */
const arrayBytesMax = 512 * 1024 * 1024
const newline = 0x0a

/** For any number of takers. */
export function makeSupply(records: Records): Supply {
  if (Symbol.iterator in records) {
    const iterator = records[Symbol.iterator]()
    return { next: () => iterator.next().value }
  }
  const iterator = records[Symbol.asyncIterator]()
  const ahead: string[] = []
  let filling: Promise<void> | undefined
  let isOver = false

  async function fill() {
    while (ahead.length < aheadMax && !isOver) {
      const { done, value } = await iterator.next()
      if (done) isOver = true
      else ahead.push(value)
    }
    ahead.reverse()
    filling = undefined
  }

  function next(): string | undefined | Promise<string | undefined> {
    if (!filling && (ahead.length > 0 || isOver)) return ahead.pop()
    filling ??= fill()
    return filling.then(next)
  }
  return { next }
}

/** The same ones from the beginning again, without an end. */
export async function* repeat(open: () => Records): AsyncGenerator<string> {
  for (;;) yield* open()
}

export interface RecordsFile {
  /** About how many. */
  count: number
  /** From the beginning, each time. */
  open: () => Records
}

/** Lines are sent as they are, the wrong ones too. @throws UsageError */
export async function openRecords(file: string): Promise<RecordsFile> {
  const begin = await peek(file)
  if (begin.trim() === '') throw new UsageError(`${file} holds no record.`)
  // As `capstan generate` writes it, an array needs not be read as a whole.
  const isLines = !begin.trimStart().startsWith('[') || /^\s*\[\r?\n\{[^\n]*\}(,?\r?\n|$)/.test(begin)
  if (isLines) return { count: await countLines(file), open: () => readLines(file) }
  const texts = await readArray(file)
  return { count: texts.length, open: () => texts }
}

async function countLines(file: string): Promise<number> {
  let lines = 0
  for await (const chunk of createReadStream(file) as AsyncIterable<Buffer>) {
    for (let at = chunk.indexOf(newline); at >= 0; at = chunk.indexOf(newline, at + 1)) lines++
  }
  return lines
}

async function peek(file: string): Promise<string> {
  try {
    const handle = await open(file)
    try {
      const { buffer, bytesRead } = await handle.read(Buffer.alloc(peekedBytes), 0, peekedBytes, 0)
      return buffer.toString('utf8', 0, bytesRead)
    } finally {
      await handle.close()
    }
  } catch (error) {
    const hint = 'capstan generate courses 10000 --output courses.json makes one.'
    throw new UsageError(`${file} cannot be read (${(error as NodeJS.ErrnoException).code}); ${hint}`)
  }
}

async function* readLines(file: string): AsyncGenerator<string> {
  for await (const line of createInterface({ input: createReadStream(file), crlfDelay: Number.POSITIVE_INFINITY })) {
    const text = line.trim().replace(/,$/, '')
    if (text !== '' && text !== '[' && text !== ']') yield text
  }
}

async function readArray(file: string): Promise<string[]> {
  if ((await stat(file)).size > arrayBytesMax) {
    throw new UsageError(`${file} is too large for a JSON array; write it as NDJSON, a record a line.`)
  }
  try {
    const values = JSON.parse(await readFile(file, 'utf8')) as unknown[]
    return values.map(value => JSON.stringify(value))
  } catch {
    throw new UsageError(`${file} is neither NDJSON nor a JSON array.`)
  }
}
