/** A real S3 server for tests, versitygw over a folder, and in front of it a line that can be made to fail. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { Agent, createServer, type IncomingMessage, request, type ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3'
import { atEnd } from './at-end.ts'
import { until } from './until.ts'

const built = path.resolve(import.meta.dirname, '../../node_modules/.cache/capstan/versitygw-v1.8.0')
const binary = findBinary()

/** Why tests that need one are skipped; false where there is one. */
export const s3IsMissing: string | false = binary
  ? false
  : 'there is no versitygw; scripts/get-s3-server.sh builds it where there is Go'

/** What happens to a request, if it is none of those that go through. */
export type Fault =
  /** Its answer says to come back later. */
  | 'slow-down'
  /** Its answer is that of a store without room. */
  | 'full'
  /** The connection ends before there is an answer. */
  | 'hang-up'
  /** Nothing ever comes. */
  | 'hang'
  /** The answer ends in the middle of its body. */
  | 'cut'
  /** The answer’s body never begins. */
  | 'mute'
  /** The answer stops in the middle of its body, and the connection stays. */
  | 'stall'

export interface TestS3 {
  /** For `BLOB_URL`. */
  url: string
  endpoint: string
  bucket: string
  /** Keys, as settings and as the SDK wants them. */
  env: { S3_ACCESS_KEY_ID: string; S3_SECRET_ACCESS_KEY: string }
  /** Where the server keeps it. */
  folder: string
  /** What was asked, such as `PUT /bucket/key?uploads=`. */
  requests: string[]
  /** How many of them have no answer yet. */
  open: number
  /** Decides what goes wrong; undefined lets a request through. */
  fault: ((asked: string) => Fault | undefined) | undefined
  /** Called before a request goes on. */
  before: ((asked: string) => Promise<void>) | undefined
  /** Ends the server as a crash would. */
  kill(): Promise<void>
  start(): Promise<void>
  /** Closes the line's own port, so that connections are refused, and opens it again. */
  refuse(): Promise<void>
  accept(): Promise<void>
}

const access = 'capstan-tests'
const secret = 'not-a-secret-but-long-enough'
const bucket = 'blobs'

/** With one bucket. Gone at the end of the file's tests. */
export async function makeTestS3(): Promise<TestS3> {
  const home = await mkdtemp(path.join(tmpdir(), 'capstan-s3-'))
  const folder = path.join(home, 'store')
  await mkdir(folder)
  const socket = path.join(home, 'socket')
  let server: ChildProcess | undefined
  const kill = async () => {
    if (!server || server.exitCode !== null || server.signalCode !== null) return
    server.kill('SIGKILL')
    await once(server, 'exit')
  }
  const start = async () => {
    server = await startServer(socket, folder)
  }
  await start()
  const line = await makeLine(socket)
  atEnd(async () => {
    await line.close()
    await kill()
    await rm(home, { recursive: true, force: true })
  })

  const endpoint = `http://127.0.0.1:${line.port}`
  const credentials = { accessKeyId: access, secretAccessKey: secret }
  const client = new S3Client({ endpoint, region: 'us-east-1', forcePathStyle: true, credentials })
  await client.send(new CreateBucketCommand({ Bucket: bucket }))
  client.destroy()
  return Object.assign(line.state, {
    url: `s3://${bucket}/capstan?endpoint=${endpoint}`,
    endpoint,
    bucket,
    env: { S3_ACCESS_KEY_ID: access, S3_SECRET_ACCESS_KEY: secret },
    folder,
    kill,
    start,
    refuse: line.close,
    accept: line.open,
  })
}

function findBinary(): string | undefined {
  for (const each of [built, 'versitygw']) {
    try {
      execFileSync(each, ['--version'], { stdio: 'ignore' })
      return each
    } catch {
      // The next one, then.
    }
  }
  return undefined
}

async function startServer(socket: string, folder: string): Promise<ChildProcess> {
  await rm(socket, { force: true })
  const given = ['--access', access, '--secret', secret, '--port', socket, '--keep-alive', '--quiet', 'posix', folder]
  const server = spawn(binary!, given, { stdio: 'ignore' })
  await until(() => answers(socket))
  return server
}

function answers(socketPath: string): Promise<boolean> {
  return new Promise(resolve => {
    const asked = request({ socketPath, path: '/' }, response => {
      response.resume()
      resolve(true)
    })
    asked.on('error', () => resolve(false)).end()
  })
}

type State = Pick<TestS3, 'requests' | 'open' | 'fault' | 'before'>

/** Carries requests to the server as they are: signatures cover the host's name, which stays. */
async function makeLine(socketPath: string) {
  const state: State = { requests: [], open: 0, fault: undefined, before: undefined }
  const agent = new Agent({ keepAlive: false })
  const server = createServer((incoming, outgoing) => {
    carry({ incoming, outgoing, state, onto: { socketPath, agent } }).catch(() => outgoing.destroy())
  })
  // What hangs, hangs.
  server.requestTimeout = 0
  let port = 0
  const open = async () => {
    server.listen(port, '127.0.0.1')
    await once(server, 'listening')
    port = (server.address() as { port: number }).port
  }
  const close = async () => {
    if (!server.listening) return
    server.close()
    server.closeAllConnections()
    await once(server, 'close')
  }
  await open()
  return { state, port, open, close }
}

async function carry(given: {
  incoming: IncomingMessage
  outgoing: ServerResponse
  state: State
  onto: { socketPath: string; agent: Agent }
}) {
  const { incoming, outgoing, state, onto } = given
  const { method, url, headers } = incoming
  const asked = `${method} ${url}`
  state.requests.push(asked)
  state.open++
  outgoing.once('close', () => state.open--)
  const fault = state.fault?.(asked)
  if (fault === 'hang') return void incoming.resume()
  if (fault === 'hang-up') return void incoming.socket.destroy()
  if (fault === 'slow-down') return refuse(given, 503, 'SlowDown')
  if (fault === 'full') return refuse(given, 507, 'XMinioStorageFull')
  await state.before?.(asked)
  const onwards = request({ ...onto, method: method!, path: url!, headers }, answer => {
    outgoing.writeHead(answer.statusCode!, answer.headers)
    if (!fault) return void answer.pipe(outgoing)
    if (fault === 'mute') return void outgoing.flushHeaders()
    answer.once('data', chunk => {
      outgoing.write(chunk.subarray(0, Math.ceil(chunk.length / 2)), () => {
        answer.destroy()
        if (fault === 'cut') outgoing.destroy()
      })
    })
  })
  onwards.on('error', () => outgoing.destroy())
  outgoing.on('close', () => onwards.destroy())
  incoming.pipe(onwards)
}

function refuse(
  { incoming, outgoing }: { incoming: IncomingMessage; outgoing: ServerResponse },
  status: number,
  code: string,
) {
  incoming.resume()
  incoming.on('end', () => {
    outgoing.writeHead(status, { 'content-type': 'application/xml' })
    outgoing.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>Not now.</Message></Error>`)
  })
}
