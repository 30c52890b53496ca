/** Streams as clients use them, over a socket. */
import assert from 'node:assert/strict'
import type { TestApp } from '../../../test/support/app.ts'
import { type Answer, makeUser, type Server, send } from '../../../test/support/http.ts'
import { until } from '../../../test/support/until.ts'

export interface Sender {
  headers: Record<string, string>
  get(path: string, at?: Server): Promise<Answer>
  /** @param body what is no text is sent as JSON */
  post(path: string, body: unknown, more?: Record<string, string>, at?: Server): Promise<Answer>
  put(path: string, body: unknown): Promise<Answer>
  delete(path: string): Promise<Answer>
  /** NDJSON; answers the lines of the answer. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it as they need.
  lines(stream: string, text: string, at?: Server): Promise<any[]>
}

export async function makeSender(server: Server, name: string): Promise<Sender> {
  const user = await makeUser(server, name)
  return senderOf(server, { authorization: `Bearer ${user.token}` })
}

export async function makeAdmin({ app, url }: Pick<TestApp, 'app' | 'url'>): Promise<Sender> {
  const [username, password] = ['root', 'the password of root']
  await app.identity.createUser({ username, password, role: 'admin' })
  const { body } = await send({ url }, 'POST', '/v1/auth/login', {}, { username, password })
  return senderOf({ url }, { authorization: `Bearer ${body.access_token}` })
}

export function senderOf(server: Server, headers: Record<string, string>): Sender {
  return {
    headers,
    get: (path, at = server) => send(at, 'GET', path, headers),
    post: (path, body, more = {}, at = server) =>
      typeof body === 'string'
        ? sendText(at, path, { 'content-type': 'application/json', ...headers, ...more }, body)
        : send(at, 'POST', path, { ...headers, ...more }, body),
    put: (path, body) => send(server, 'PUT', path, headers, body),
    delete: path => send(server, 'DELETE', path, headers),
    async lines(stream, text, at = server) {
      const type = { 'content-type': 'application/x-ndjson', ...headers }
      const { status, body } = await sendText(at, `/v1/streams/${stream}/records`, type, text)
      assert.equal(status, 200, JSON.stringify(body))
      return (body as string)
        .split('\n')
        .filter(line => line !== '')
        .map(line => JSON.parse(line))
    },
  }
}

async function sendText(server: Server, path: string, headers: Record<string, string>, body: string): Promise<Answer> {
  const response = await fetch(`${server.url}${path}`, {
    method: 'POST',
    headers,
    body,
    signal: AbortSignal.timeout(120_000),
  })
  const text = await response.text()
  const isJson = /\bjson\b/.test(response.headers.get('content-type')?.replace('x-ndjson', '') ?? '')
  return { status: response.status, headers: response.headers, body: isJson ? JSON.parse(text) : text }
}

export const course = (more: Partial<Record<'curso' | 'facultad' | 'carrera' | 'region', unknown>> = {}) => ({
  curso: 'SO1',
  facultad: 'Ingenieria',
  carrera: 'Sistemas',
  region: 'NORTE',
  ...more,
})

/** Waits until as many records are counted. */
export async function untilCounted(sender: Sender, stream: string, total: number, at?: Server) {
  await until(async () => {
    const { body } = await sender.get(`/v1/streams/${stream}/counts`, at)
    assert.ok(body.total <= total, `${body.total} are counted, and there are ${total}`)
    return body.total === total
  }, 30_000)
}

/** All of a stream, page by page. */
export async function readAll(sender: Sender, stream: string, at?: Server) {
  const records: { offset: string; route: string; record: Record<string, unknown> }[] = []
  for (let after = '0'; ; ) {
    const { status, body } = await sender.get(`/v1/streams/${stream}/records?limit=1000&after=${after}`, at)
    assert.equal(status, 200, JSON.stringify(body))
    if (body.records.length === 0) return records
    records.push(...body.records)
    after = body.next
  }
}
