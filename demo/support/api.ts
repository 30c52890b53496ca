/** Capstan's public API as a client sees it: plain fetch and WebSocket. */
import { TourError } from '../stop.ts'

export interface Answer<T> {
  status: number
  body: T
}

export interface Problem {
  code: string
  detail: string
}

export interface Run {
  id: string
  status: string
  stdout: string
  stderr: string
  attempt: number
  cpu_ms: number | null
  wall_ms: number | null
  memory_bytes: number | null
  queue_ms: number | null
  created_at: string
  finished_at: string | null
}

export interface RunWish {
  language: string
  source: string
  args?: string[]
  limits?: Record<string, number>
}

export interface LiveEvent {
  seq: number
  type: string
  data: { status?: string; stream?: string; text?: string }
}

export interface Api {
  readonly token: string
  /** Any answer, good or bad. @throws what fetch throws */
  send<T>(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<Answer<T>>
  /** @throws TourError for an answer that is not 2xx */
  get<T>(path: string): Promise<T>
  post<T>(path: string, body?: unknown, headers?: Record<string, string>): Promise<T>
  /** Runs a program and waits for its end. */
  run(wish: RunWish): Promise<Run>
  /** Waits for the end of a run that was accepted. */
  waitForEnd(id: string): Promise<Run>
  /** All of the caller's runs, newest first, without their output. */
  listRuns(): Promise<Run[]>
}

const requestTimeoutMs = 60_000
const pageSize = 100
const pollMs = 100

/** @param base answers the server's address, which may change when it is started again */
export function makeApi(given: { base: () => string; token?: string; signal: AbortSignal }): Api {
  const { base, token = '', signal } = given

  async function send<T>(method: string, path: string, body?: unknown, headers?: Record<string, string>) {
    const response = await fetch(base() + path, {
      method,
      headers: {
        ...(token ? { authorization: `Bearer ${token}` } : {}),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      signal: AbortSignal.any([signal, AbortSignal.timeout(requestTimeoutMs)]),
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    const text = await response.text()
    const isJson = response.headers.get('content-type')?.includes('json')
    return { status: response.status, body: (isJson ? JSON.parse(text) : text) as T }
  }

  async function sendWell<T>(...request: Parameters<typeof send>): Promise<T> {
    const { status, body } = await send<T | Problem>(...request)
    if (status < 300) return body as T
    const { code, detail } = body as Problem
    throw new TourError(`${request[0]} ${request[1]} was answered ${status} ${code ?? ''}: ${detail ?? ''}`)
  }

  async function waitForEnd(id: string): Promise<Run> {
    for (;;) {
      const run = await sendWell<Run>('GET', `/v1/runs/${id}`)
      if (run.finished_at !== null) return run
      await pause(pollMs, signal)
    }
  }

  return {
    token,
    send,
    get: path => sendWell('GET', path),
    post: (path, body, headers) => sendWell('POST', path, body, headers),
    async run(wish) {
      const run = await sendWell<Run>('POST', '/v1/runs?wait=30', wish)
      return run.finished_at === null ? waitForEnd(run.id) : run
    },
    waitForEnd,
    async listRuns() {
      const runs: Run[] = []
      for (let cursor = ''; ; ) {
        const page = await sendWell<{ runs: Run[]; next_cursor: string | null }>(
          'GET',
          `/v1/runs?limit=${pageSize}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`,
        )
        runs.push(...page.runs)
        if (page.next_cursor === null) return runs
        cursor = page.next_cursor
      }
    },
  }
}

/** Follows topics over the WebSocket, each from its beginning, until the last of them has ended. */
export function follow(given: {
  base: string
  token: string
  topics: string[]
  signal: AbortSignal
  onEvent: (topic: string, event: LiveEvent) => void
}): Promise<void> {
  const { base, token, topics, signal, onEvent } = given
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`${base.replace('http', 'ws')}/v1/live`)
    const open = new Set(topics)
    const end = (error?: unknown) => {
      socket.close()
      signal.removeEventListener('abort', onAbort)
      error === undefined ? resolve() : reject(error)
    }
    const onAbort = () => end(signal.reason)
    signal.addEventListener('abort', onAbort)
    socket.onopen = () => {
      const frames = topics.map(topic => ({ type: 'subscribe', topic }))
      for (const frame of [{ type: 'auth', token }, ...frames]) socket.send(JSON.stringify(frame))
    }
    socket.onmessage = message => {
      const frame = JSON.parse(message.data)
      if (frame.type === 'events') for (const event of frame.events) onEvent(frame.topic, event)
      if (frame.type === 'error') end(new TourError(`/v1/live said ${frame.code}: ${frame.message}`))
      if (frame.type === 'complete' && open.delete(frame.topic) && open.size === 0) end()
    }
    socket.onclose = () => end(new TourError('/v1/live closed the connection before the end.'))
    socket.onerror = () => end(new TourError('/v1/live could not be reached.'))
  })
}

/** @throws the signal's reason */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason)
    const onAbort = () => {
      clearTimeout(timer)
      reject(signal.reason)
    }
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', onAbort)
      resolve()
    }, ms)
    signal.addEventListener('abort', onAbort, { once: true })
  })
}
