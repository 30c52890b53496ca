/** Sends each record in a request of its own, over connections that have one under way each. */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Connection, makeConnection, type Reply, type Target } from './connection.ts'
import type { Supply } from './records.ts'
import type { Tally } from './tally.ts'

export interface Sending {
  target: Target
  supply: Supply
  connections: number
  tally: Tally
  /** No more is begun; what is under way may end. */
  stop: AbortSignal
  /** Nothing more is waited for. */
  cut: AbortSignal
  /** Called for the first answers that say that none will ever be taken. */
  onHopeless: (reply: Reply) => void
}

/** Before a connection that failed is made anew. */
const againMs = 200

export async function sendSingles(sending: Sending) {
  const connections = Array.from({ length: sending.connections }, () => makeConnection(sending.target))
  const close = () => {
    for (const connection of connections) connection.close()
  }
  sending.cut.addEventListener('abort', close)
  await Promise.all(connections.map(connection => work(sending, connection)))
  close()
}

async function work(sending: Sending, connection: Connection) {
  const { supply, tally, stop } = sending
  while (!stop.aborted) {
    const got = supply.next()
    const text = got instanceof Promise ? await got : got
    if (text === undefined) return
    const begun = performance.now()
    try {
      const reply = await connection.post(text)
      tally.time(performance.now() - begun)
      countReply(sending, { reply, records: 1 })
    } catch (error) {
      countLost(tally, { error, records: 1 })
      await sleep(againMs, undefined, { signal: stop }).catch(() => {})
    }
  }
}

/** Of a request that was answered as a whole. */
export function countReply({ tally, onHopeless }: Sending, { reply, records }: { reply: Reply; records: number }) {
  const { status, body } = reply
  const kind = String(status)
  if (status >= 200 && status < 300) return tally.count({ kind, taken: records, refused: 0, lost: 0 })
  tally.count({ kind, taken: 0, refused: records, lost: 0, example: explain(body) })
  if (isHopeless(status)) onHopeless(reply)
}

export function countLost(tally: Tally, { error, records }: { error: unknown; records: number }) {
  const { code, message } = error as NodeJS.ErrnoException
  tally.count({ kind: `no answer: ${code ?? message}`, taken: 0, refused: 0, lost: records })
}

/** Whoever calls may not, or what is called is not there: so it is with all that follow. */
function isHopeless(status: number): boolean {
  return [401, 403, 404, 405, 415].includes(status)
}

/** What a problem document, or an error of the old contract, says. */
export function explain(body: string): string {
  try {
    const { code, detail, error } = JSON.parse(body) as { code?: string; detail?: string; error?: string }
    const words = detail ?? error
    if (typeof words === 'string') return code === undefined ? words : `${code}: ${words}`
  } catch {
    // It is no JSON, and is shown as it is.
  }
  return body
}
