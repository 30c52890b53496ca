/** The hook for a scanner of the user's own: a command or a URL that may refuse a file. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { ImagesSettings } from './settings.ts'

/** Resolves for a file that may pass. @throws FileRefused, or any other error to have it tried again */
export type Scan = (given: { path: string; signal: AbortSignal }) => Promise<void>

/** The scanner says no. The message is shown to the file's owner. */
export class FileRefused extends Error {}

const answerBytesMax = 500
const refusedExit = 1
const refusedStatus = 422
const scanMs = 60_000

export function makeScan(settings: Pick<ImagesSettings, 'IMAGE_SCAN_COMMAND' | 'IMAGE_SCAN_URL'>): Scan {
  const { IMAGE_SCAN_COMMAND: command, IMAGE_SCAN_URL: url } = settings
  return async ({ path, signal }) => {
    const limited = AbortSignal.any([signal, AbortSignal.timeout(scanMs)])
    if (command !== undefined) await scanByCommand(command, path, limited)
    if (url !== undefined) await scanByUrl(url, path, limited)
  }
}

async function scanByCommand(command: string, path: string, signal: AbortSignal) {
  const [program, ...args] = command.split(' ').filter(word => word !== '')
  // No secrets of ours in its environment.
  const env = { PATH: process.env.PATH ?? '' }
  const child = spawn(program!, args, { env, signal, killSignal: 'SIGKILL', stdio: ['pipe', 'pipe', 'ignore'] })
  // All of them are heard from the start: a scanner that cannot be started, or is stopped, fails each in its turn.
  const [[code, killedBy], answer] = await Promise.all([
    once(child, 'close') as Promise<[number | null, string | null]>,
    readSome(child.stdout),
    // A scanner that has seen enough may end before it has read everything.
    pipeline(createReadStream(path), child.stdin).catch(() => {}),
  ])
  if (code === 0) return
  if (code === refusedExit) throw new FileRefused(reasonOf(answer))
  throw new Error(`The scanner ended with ${code ?? killedBy}.`)
}

async function scanByUrl(url: string, path: string, signal: AbortSignal) {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/octet-stream', 'content-length': String((await stat(path)).size) },
    body: Readable.toWeb(createReadStream(path)) as ReadableStream,
    duplex: 'half',
    redirect: 'error',
    signal,
  } as RequestInit)
  const answer = response.body ? await readSome(Readable.fromWeb(response.body as never)) : ''
  if (response.ok) return
  if (response.status === refusedStatus) throw new FileRefused(reasonOf(answer))
  throw new Error(`The scanner answered ${response.status}.`)
}

async function readSome(stream: Readable): Promise<string> {
  let text = ''
  for await (const chunk of stream) if (text.length < answerBytesMax) text += String(chunk)
  return text.slice(0, answerBytesMax)
}

/** Without what no text of a database may hold, and no terminal should be shown. */
function reasonOf(answer: string): string {
  const line = answer
    .split('\n', 1)[0]!
    .replace(/[\x00-\x1f\x7f]+/g, ' ')
    .trim()
  return line === '' ? 'The scanner refused the file.' : line
}
