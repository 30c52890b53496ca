/** HTTP as users speak it: over a socket, with a token. */

export interface Answer {
  status: number
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it as they need.
  body: any
  headers: Headers
}

/** Where requests go: a Capstan or an app of this process. */
export interface Server {
  /** Without a slash at the end. */
  url: string
}

/** Somebody with a token, at one server or another. */
export interface User {
  id: string
  name: string
  password: string
  token: string
  get(server: Server, path: string): Promise<Answer>
  post(server: Server, path: string, body: unknown, headers?: Record<string, string>): Promise<Answer>
}

const requestTimeoutMs = 30_000

export async function makeUser(server: Server, name: string): Promise<User> {
  const registration = { username: name, password: `the password of ${name}` }
  const { status, body } = await send(server, 'POST', '/v1/auth/register', {}, registration)
  if (status !== 201) throw new Error(`${name} could not register: ${status} ${JSON.stringify(body)}`)
  const token = body.access_token as string
  const authorization = { authorization: `Bearer ${token}` }
  return {
    id: body.user.id,
    name,
    password: registration.password,
    token,
    get: (at, path) => send(at, 'GET', path, authorization),
    post: (at, path, content, headers) => send(at, 'POST', path, { ...authorization, ...headers }, content),
  }
}

/** One request. A body that is not JSON comes as text. */
export async function send(
  server: Server,
  method: string,
  path: string,
  headers: Record<string, string> = {},
  body?: unknown,
): Promise<Answer> {
  const response = await fetch(`${server.url}${path}`, {
    method,
    headers: { ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...headers },
    signal: AbortSignal.timeout(requestTimeoutMs),
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  const text = await response.text()
  const isJson = response.headers.get('content-type')?.includes('json')
  return { status: response.status, headers: response.headers, body: isJson ? JSON.parse(text) : text }
}
