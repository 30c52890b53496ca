/** A connection that sends one request after another. Only as much HTTP as that takes, so that it takes little of the machine. */
import { connect } from 'node:net'

export interface HttpClient {
  /** Answers whether the status was a success. */
  post(target: string, body: string, headers?: Record<string, string>): Promise<boolean>
  close(): void
}

export async function makeHttpClient(port: number): Promise<HttpClient> {
  const socket = connect(port, '127.0.0.1').setNoDelay(true)
  await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject))
  let received: Buffer[] = []
  let bytes = 0
  let wanted = Number.POSITIVE_INFINITY
  let answered = Promise.withResolvers<boolean>()
  let ok = false
  socket.on('error', error => answered.reject(error))
  socket.on('data', chunk => {
    received.push(chunk)
    bytes += chunk.length
    if (wanted === Number.POSITIVE_INFINITY) {
      const head = Buffer.concat(received).toString('latin1')
      const end = head.indexOf('\r\n\r\n')
      if (end < 0) return
      ok = head.startsWith('HTTP/1.1 20')
      wanted = end + 4 + Number(/content-length: (\d+)/i.exec(head)![1])
    }
    if (bytes < wanted) return
    received = []
    bytes = 0
    wanted = Number.POSITIVE_INFINITY
    answered.resolve(ok)
  })
  return {
    post(target, body, headers = {}) {
      answered = Promise.withResolvers()
      const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
      socket.write(
        `POST ${target} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n${lines.join('')}` +
          `content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
      )
      return answered.promise
    },
    close: () => socket.destroy(),
  }
}
