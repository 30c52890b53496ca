/** A connection that sends one request after another. Only as much HTTP as that takes, so that it takes little of the machine. */
import { connect } from 'node:net'

export interface HttpClient {
  /** Answers whether the status was a success. */
  post(target: string, body: string, headers?: Record<string, string>): Promise<boolean>
  /** Answers how many bytes the body has. Rejects where the status is no success. */
  get(target: string, headers?: Record<string, string>): Promise<number>
  close(): void
}

interface Answer {
  status: string
  bodyBytes: number
}

export async function makeHttpClient(port: number): Promise<HttpClient> {
  const socket = connect(port, '127.0.0.1').setNoDelay(true)
  await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject))
  let head: Buffer[] = []
  let status = ''
  let bytes = 0
  let bodyBytes = 0
  let wanted = Number.POSITIVE_INFINITY
  let answered = Promise.withResolvers<Answer>()
  socket.on('error', error => answered.reject(error))
  socket.on('data', chunk => {
    bytes += chunk.length
    if (wanted === Number.POSITIVE_INFINITY) {
      head.push(chunk)
      const text = Buffer.concat(head).toString('latin1')
      const end = text.indexOf('\r\n\r\n')
      if (end < 0) return
      status = text.slice('HTTP/1.1 '.length, text.indexOf('\r\n'))
      bodyBytes = Number(/content-length: (\d+)/i.exec(text)![1])
      wanted = end + 4 + bodyBytes
    }
    if (bytes < wanted) return
    head = []
    bytes = 0
    wanted = Number.POSITIVE_INFINITY
    answered.resolve({ status, bodyBytes })
  })

  function send(line: string, headers: Record<string, string>, body: string): Promise<Answer> {
    answered = Promise.withResolvers()
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
    socket.write(`${line} HTTP/1.1\r\nhost: bench\r\n${lines.join('')}\r\n${body}`)
    return answered.promise
  }

  return {
    async post(target, body, headers = {}) {
      const length = String(Buffer.byteLength(body))
      const all = { 'content-type': 'application/json', ...headers, 'content-length': length }
      return (await send(`POST ${target}`, all, body)).status.startsWith('20')
    },
    async get(target, headers = {}) {
      const { status, bodyBytes } = await send(`GET ${target}`, headers, '')
      if (!status.startsWith('20')) throw new Error(`${target} was answered ${status}.`)
      return bodyBytes
    },
    close: () => socket.destroy(),
  }
}
