/** Pictures as files, with what their headers say, and a processor for a test file. */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { TestContext } from 'node:test'
import sharp from 'sharp'
import { silentLog } from '#platform/log.ts'
import { atEnd } from '../../../../test/support/at-end.ts'
import { until } from '../../../../test/support/until.ts'
import { makeProbe } from '../probe/probe.ts'
import type { ImageFacts } from '../types.ts'
import { makeProcessor, type ProcessorOptions } from './processor.ts'
import { parseTransform } from './transform.ts'
import type { FixedTransform, Processor } from './types.ts'

const mib = 1024 * 1024

export async function makeFolder(): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-processing-'))
  atEnd(() => rm(folder, { recursive: true, force: true }))
  return folder
}

/** Ended with the test. */
export function makeTestProcessor(t: TestContext, options: Partial<ProcessorOptions> = {}): Processor {
  const processor = makeProcessor({ workers: 2, memoryBytes: 256 * mib, timeoutMs: 30_000, log: silentLog, ...options })
  t.after(() => processor.close(0))
  return processor
}

export interface PictureFile {
  id: string
  path: string
  facts: ImageFacts
}

export async function keepPicture(folder: string, name: string, bytes: Buffer): Promise<PictureFile> {
  const file = path.join(folder, name)
  await writeFile(file, bytes)
  return { id: name, path: file, facts: factsOf(bytes) }
}

export function factsOf(bytes: Buffer): ImageFacts {
  const probe = makeProbe({ pixelsMax: 200_000_000 })
  probe.write(bytes)
  return probe.end()
}

export function fixed(words: string): FixedTransform {
  const transform = parseTransform(words, new Map())
  if (transform.format === 'auto') throw new Error('Name a format.')
  return { ...transform, format: transform.format }
}

/** Makes one thing of a picture and opens it. */
export async function makeOf(processor: Processor, picture: PictureFile, words: string) {
  const output = `${picture.path}-${words.replaceAll(/\W/g, '_')}`
  const { made } = await processor.work({ ...picture, outputs: [{ transform: fixed(words), path: output }] })
  const bytes = await readFile(output)
  return { made: made[0]!, bytes, metadata: await sharp(bytes, { animated: true }).metadata() }
}

/** Colours of the pixel at a place, each side from 0 to 1. */
export async function colourAt(bytes: Buffer, x: number, y: number): Promise<number[]> {
  const { data, info } = await sharp(bytes).toColourspace('srgb').raw().toBuffer({ resolveWithObject: true })
  const at = (Math.floor(y * info.height) * info.width + Math.floor(x * info.width)) * info.channels
  return [...data.subarray(at, at + info.channels)]
}

/** Processes that this one started and that decode. */
export function childrenOf(pid: number): number[] {
  const lines = execFileSync('ps', ['-eo', 'pid=,ppid=,args='], { encoding: 'utf8' }).split('\n')
  return lines
    .map(line => /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line))
    .filter(match => match !== null && Number(match[2]) === pid && match[3]!.includes('processing/worker.ts'))
    .map(match => Number(match![1]))
}

/** One of this process. */
export async function begunChild(): Promise<number> {
  await until(() => childrenOf(process.pid).length > 0)
  return childrenOf(process.pid)[0]!
}

/** Until a child is at work: its thread of libvips eats time. */
export async function busy(pid: number) {
  const ticks = () => Number(readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1]!.split(' ')[11])
  const before = ticks()
  const enough = 50
  await until(() => ticks() > before + enough)
}
