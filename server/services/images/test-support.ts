/** Uploads as clients make them, over a socket. */
import assert from 'node:assert/strict'
import type { Database } from '#platform/database/pool.ts'
import { type Answer, makeUser, type Server, send, type User } from '../../../test/support/http.ts'
import { until } from '../../../test/support/until.ts'

export interface Sender {
  user: User
  /** The file as the body. */
  raw(bytes: Uint8Array, query?: string, headers?: Record<string, string>): Promise<Answer>
  /** A form with the file in a part. */
  form(bytes: Uint8Array, more?: { part?: string; fileName?: string; fields?: Record<string, string> }): Promise<Answer>
  get(path: string): Promise<Answer>
  fetch(path: string, headers?: Record<string, string>): Promise<Response>
  delete(path: string): Promise<Answer>
  /** Waits for the end of the work on it, and answers it. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it as they need.
  ended(id: string): Promise<any>
}

export async function makeSender(server: Server, name: string): Promise<Sender> {
  return senderOf(server, await makeUser(server, name))
}

export function senderOf(server: Server, user: User): Sender {
  const authorization = { authorization: `Bearer ${user.token}` }
  const get = (path: string) => user.get(server, path)
  return {
    user,
    raw: (bytes, query = '', headers) =>
      answerOf(server, `/v1/images${query}`, { 'content-type': 'image/jpeg', ...authorization, ...headers }, bytes),
    form: (bytes, more = {}) => postForm(server, '/v1/images', { bytes, ...more, headers: authorization }),
    get,
    fetch: (path, headers) => fetch(`${server.url}${path}`, { headers: { ...authorization, ...headers } }),
    delete: path => send(server, 'DELETE', path, authorization),
    async ended(id) {
      // biome-ignore lint/suspicious/noExplicitAny: as above.
      let image: any
      await until(async () => {
        image = (await get(`/v1/images/${id}`)).body
        return ['ready', 'failed', 'refused'].includes(image.status)
      }, 30_000)
      return image
    },
  }
}

export function postForm(
  server: Server,
  path: string,
  given: {
    bytes: Uint8Array
    part?: string
    fileName?: string
    fields?: Record<string, string>
    headers?: Record<string, string>
  },
): Promise<Answer> {
  const form = new FormData()
  for (const [name, value] of Object.entries(given.fields ?? {})) form.append(name, value)
  form.append(given.part ?? 'image', new File([new Uint8Array(given.bytes)], given.fileName ?? 'a.jpg'))
  return answerOf(server, path, given.headers ?? {}, form)
}

async function answerOf(
  server: Server,
  path: string,
  headers: Record<string, string>,
  body: Uint8Array | FormData,
): Promise<Answer> {
  const response = await fetch(`${server.url}${path}`, {
    method: 'POST',
    headers,
    body: body instanceof FormData ? body : new Uint8Array(body),
    signal: AbortSignal.timeout(60_000),
  })
  const text = await response.text()
  const isJson = response.headers.get('content-type')?.includes('json')
  return { status: response.status, headers: response.headers, body: isJson ? JSON.parse(text) : text }
}

export function assertProblem(answer: Answer, status: number, code: string) {
  assert.deepEqual({ status: answer.status, code: answer.body.code }, { status, code }, JSON.stringify(answer.body))
}

/** From then on every commit fails after which a user would have more. */
export async function boundUsage(db: Database, bytesMax: number) {
  await db.query(
    `create function images.check_usage() returns trigger language plpgsql as $$
     begin
       if new.bytes > ${bytesMax} then raise 'A user has % bytes.', new.bytes; end if;
       return null;
     end $$`,
  )
  await db.query(
    `create constraint trigger usage_bound after insert or update on images.usage
     deferrable initially deferred for each row execute function images.check_usage()`,
  )
}
