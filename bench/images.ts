/**
 * Images: fit to 512×512 over HTTP beside sharp called bare and the `vipsthumbnail` command, uploads a second, and
 * memory with a long line of large images.
 */
import { spawnSync } from 'node:child_process'
import { mkdir, open, rename, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { makeJpegOfSize, makePicture } from '../test/support/pictures.ts'
import {
  type Contestant,
  makeBareSharp,
  makeCapstanContestant,
  makeVipsthumbnail,
  type Picture,
} from './images/contestants.ts'
import { fitOf } from './images/shape.ts'
import {
  type Figure,
  figureOf,
  interleave,
  type Line,
  latencyOf,
  printBound,
  printHead,
  printLines,
  rate,
  type Sample,
} from './support/measure.ts'
import { peakWhile, treeBytes } from './support/memory.ts'
import { withCapstan, withFolder } from './support/servers.ts'

const rounds = 5
/** Whose memory is looked at is not timed: looking holds it up. */
const memoryRounds = 2
const atOnce = 4
const mib = 1024 * 1024
const sizes = [
  { name: '2 megapixels', width: 1732, height: 1155, distinct: 16, count: 64 },
  { name: '12 megapixels', width: 4243, height: 2828, distinct: 8, count: 32 },
  { name: '24 megapixels', width: 6000, height: 4000, distinct: 6, count: 24 },
] as const
const formats = ['jpeg', 'png', 'webp'] as const
/** The first quality; every pass takes the next one, so that nothing is asked for twice. */
const qualityFrom = 60

const uploadBytes = 200_000
const uploadCount = 1000
const uploadsAtOnce = 32
const waitingCount = 200
const noLimits = { IMAGE_BYTES_PER_USER: String(2 ** 50), IMAGE_TRANSFORMS_MAX: '100000' }
/** PostgreSQL has its own bound, whatever images do. */
const apart = ['postgres']

interface Capstan {
  url: string
  token: string
  pid: number
}

export async function benchImages() {
  await benchFit()
  await benchUploads()
  await benchMemory()
}

async function benchFit() {
  await withFolder(async folder => {
    await withCapstan(noLimits, async capstan => {
      const contestants: Record<string, Contestant> = {
        capstan: makeCapstanContestant(capstan),
        sharp: makeBareSharp(),
        ...(hasVipsthumbnail() ? { vipsthumbnail: makeVipsthumbnail(folder) } : {}),
      }
      for (const format of formats)
        for (const size of sizes) await benchOne({ capstan, folder, contestants, format, size })
      for (const contestant of Object.values(contestants)) contestant.close()
    })
  })
}

async function benchOne(given: {
  capstan: Capstan
  folder: string
  contestants: Record<string, Contestant>
  format: (typeof formats)[number]
  size: (typeof sizes)[number]
}) {
  const { contestants, format, size } = given
  const pictures = await makePictures(given)
  let quality = qualityFrom
  const pass = async (contestant: Contestant): Promise<Sample> => {
    const fits = Array.from({ length: size.count / size.distinct }, (_, n) => fitOf(quality + n))
    const times: number[] = []
    const throughput = await rate(size.count, atOnce, async n => {
      const begun = performance.now()
      await contestant.make(pictures[n % size.distinct]!, fits[Math.floor(n / size.distinct)]!)
      times.push(performance.now() - begun)
    })
    return { throughput, p99: latencyOf(times).p99 }
  }
  const memoryOf = async (contestant: Contestant): Promise<Sample> => {
    const { pid } = contestant
    const look = () => (pid === undefined ? 0 : treeBytes(pid, apart))
    return { peak: (await peakWhile(look, () => pass(contestant))).peak / mib }
  }
  const last = Object.keys(contestants).at(-1)
  const each = (measure: typeof pass) =>
    Object.fromEntries(
      Object.entries(contestants).map(([name, contestant]) => [
        name,
        async () => {
          const sample = await measure(contestant)
          // Each pass asks for what nobody has asked for; all contestants make the same.
          if (name === last) quality += size.count / size.distinct
          return sample
        },
      ]),
    )
  const speeds = await interleave(each(pass), rounds)
  const memory = await interleave(each(memoryOf), memoryRounds)
  printFit(`Images: ${format}, ${size.name}, fit to 512×512 over HTTP, ${atOnce} at once`, speeds, memory)
}

type Results = Record<string, Record<string, Figure>>

function printFit(title: string, speeds: Results, memory: Results) {
  const [capstan, sharp, vipsthumbnail] = ['capstan', 'sharp', 'vipsthumbnail'].map(
    name => speeds[name] && { ...speeds[name], ...memory[name] },
  )
  const line = (
    what: string,
    figure: string,
    theirName: string,
    theirs: Record<string, Figure>,
    unit: string,
  ): Line => ({
    what,
    ours: capstan![figure]!,
    theirs: theirs[figure]!,
    theirName,
    unit,
  })
  printLines(title, [
    { ...line('images', 'throughput', 'bare sharp', sharp!, '/s'), aim: { atLeast: 0.9 } },
    line('p99', 'p99', 'bare sharp', sharp!, 'ms'),
    line('peak memory', 'peak', 'bare sharp', sharp!, 'MiB'),
    ...(vipsthumbnail
      ? [
          line('images', 'throughput', 'vipsthumbnail', vipsthumbnail, '/s'),
          line('p99', 'p99', 'vipsthumbnail', vipsthumbnail, 'ms'),
        ]
      : []),
  ])
}

function hasVipsthumbnail(): boolean {
  const isThere = spawnSync('vipsthumbnail', ['--version']).status === 0
  if (!isThere) console.error('There is no `vipsthumbnail` (Debian: apt-get install libvips-tools); it is left out.')
  return isThere
}

async function makePictures(given: {
  capstan: Capstan
  folder: string
  format: (typeof formats)[number]
  size: (typeof sizes)[number]
}): Promise<Picture[]> {
  const { format, size } = given
  const pictures: Picture[] = []
  for (let seed = 0; seed < size.distinct; seed++) {
    const kind = seed % 4 === 3 ? 'gradient' : 'photo'
    const bytes = await makePicture({ width: size.width, height: size.height, format, kind, seed })
    const file = path.join(given.folder, `${format}-${size.width}-${seed}.${format}`)
    await writeFile(file, bytes)
    const { id } = await upload(given.capstan, bytes, '?wait=60')
    pictures.push({ path: file, id })
  }
  return pictures
}

async function upload({ url, token }: Capstan, bytes: Buffer, query = ''): Promise<{ id: string; status: string }> {
  const answer = await fetch(`${url}/v1/images${query}`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/octet-stream' },
    body: new Uint8Array(bytes),
  })
  if (answer.status > 202) throw new Error(`An upload was answered ${answer.status}: ${await answer.text()}`)
  return (await answer.json()) as { id: string; status: string }
}

/** Beside a bare Node server that checks nothing and keeps each file as durably as Capstan does. */
async function benchUploads() {
  const base = await makeJpegOfSize(uploadBytes, 0)
  let seed = 0
  const send = async (to: Capstan) => {
    const times: number[] = []
    const throughput = await rate(uploadCount, uploadsAtOnce, async () => {
      const bytes = await makeJpegOfSize(uploadBytes, ++seed)
      const begun = performance.now()
      await upload(to, bytes)
      times.push(performance.now() - begun)
    })
    return { throughput, ...latencyOf(times) }
  }
  await withFolder(async folder => {
    const bare = await startBareStore(folder)
    await withCapstan(
      noLimits,
      async capstan => {
        await upload(capstan, base)
        const results = await interleave({ capstan: () => send(capstan), bare: () => send(bare) }, rounds)
        const [ours, theirs] = [results.capstan!, results.bare!]
        const line = (what: string, figure: string, unit: string): Line => ({
          what,
          ours: ours[figure]!,
          theirs: theirs[figure]!,
          theirName: 'bare store',
          unit,
        })
        printLines(`Images: uploads of 200 KB JPEGs, ${uploadsAtOnce} at once, durable, worked on by another process`, [
          line('uploads', 'throughput', '/s'),
          line('p50', 'p50', 'ms'),
          line('p99', 'p99', 'ms'),
        ])
      },
      ['--roles', 'api'],
    )
    bare.close()
    await withCapstan(noLimits, async capstan => {
      await upload(capstan, base)
      const results = await interleave({ capstan: () => send(capstan) }, rounds)
      printHead('Images: the same, worked on by the same process meanwhile')
      printBound('uploads', results.capstan!.throughput!, '/s', { atLeast: 0 })
    })
  })
}

async function startBareStore(folder: string): Promise<Capstan & { close(): void }> {
  await mkdir(path.join(folder, 'bare'), { recursive: true })
  let last = 0
  const server = createServer(async (request, response) => {
    const name = path.join(folder, 'bare', String(++last))
    const draft = await open(`${name}.part`, 'wx')
    for await (const chunk of request) await draft.write(chunk)
    await draft.sync()
    await draft.close()
    await rename(`${name}.part`, name)
    const parent = await open(path.join(folder, 'bare'), 'r')
    await parent.sync()
    await parent.close()
    response.writeHead(202, { 'content-type': 'application/json' }).end(JSON.stringify({ id: last }))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  return { url: `http://127.0.0.1:${port}`, token: '', pid: process.pid, close: () => server.close() }
}

/** A long line of large images: what waits lies in the blob store. */
async function benchMemory() {
  const base = await makePicture({ width: 6000, height: 4000, format: 'jpeg', kind: 'photo', seed: 99 })
  await withCapstan({ ...noLimits, RATE_LIMIT_PER_MINUTE: '0' }, async capstan => {
    const look = () => treeBytes(capstan.pid, apart)
    // Before the first image there is no process that decodes.
    const idle = look()
    const { peak } = await peakWhile(look, async () => {
      const ids: string[] = []
      await rate(waitingCount, 8, async n => {
        ids.push((await upload(capstan, distinct(base, n))).id)
      })
      await allReady(capstan)
    })
    printHead(`Images: ${waitingCount} uploads of 24 megapixels waiting`)
    printBound('peak memory above idle, all processes but PostgreSQL', figureOf([(peak - idle) / mib]), 'MiB', 300)
  })
}

/** Another file with the same picture: bytes in a comment that nobody reads. */
function distinct(jpeg: Buffer, n: number): Buffer {
  const comment = Buffer.from([0xff, 0xfe, 0, 6, 0, 0, 0, 0])
  comment.writeUInt32BE(n, 4)
  return Buffer.concat([jpeg.subarray(0, 2), comment, jpeg.subarray(2)])
}

async function allReady({ url, token }: Capstan) {
  for (;;) {
    const open = await Promise.all(
      ['waiting', 'processing'].map(async status => {
        const answer = await fetch(`${url}/v1/images?limit=1&status=${status}`, {
          headers: { authorization: `Bearer ${token}` },
        })
        return ((await answer.json()) as { images: unknown[] }).images.length
      }),
    )
    if (open.every(count => count === 0)) return
    await new Promise(resolve => setTimeout(resolve, 200))
  }
}
