/**
 * Who follows which topic, in all processes. Nothing of it is stored: each process tells the others who came and went
 * here, over the bus, and each keeps the whole picture in memory.
 *
 * What may be lost on the way is noticed: a process numbers what it tells, and says every `beatMs` where it stands.
 * Whoever missed something, or has just begun to listen, asks, and is told all. So a beat costs the same however many
 * are present. A process that is silent for `silentMs` is gone with all who were there by way of it.
 */
import type { Bus } from '../bus.ts'
import { uuidv7 } from '../ids.ts'
import { makeRooms, type PresenceChange } from './rooms.ts'

export interface Presence {
  join(topic: string, who: string): void
  leave(topic: string, who: string): void
  /** Sorted. */
  present(topic: string): string[]
  start(): void
  stop(): void
}

export interface PresenceOptions {
  bus: Bus
  onChange: (topic: string, change: PresenceChange) => void
  /** Milliseconds of a clock that never goes back. */
  now?: () => number
  /** How long somebody who is gone is shown as present: long enough to reconnect. */
  graceMs?: number
  /** How long comings and goings are gathered, here and on their way to others. */
  windowMs?: number
  beatMs?: number
  silentMs?: number
}

/** Somebody came (1) or went (0). */
type Move = [came: 0 | 1, topic: string, who: string]

type Message = { from: string; n: number } & (
  | { kind: 'hello' | 'beat' | 'bye' }
  | { kind: 'ask'; to: string }
  | { kind: 'moves'; moves: Move[] }
  /** A part of all that a process has; `part` counts from 0. */
  | { kind: 'all'; part: number; isLast: boolean; moves: Move[] }
)

/** What is known of another process. */
interface Peer {
  /** The number of the last that it told. */
  n: number
  heardAt: number
  askedAt: number
  here: Set<string>
  /** While it tells all: what it has named so far. Undefined when a part was missed. */
  named: Set<string> | undefined
}

const channel = 'live.presence'
/** A message must fit into one of the bus, in which it is a JSON text once more. */
const messageBytesMax = 6000
/** All is told, and asked for, at most once in this time. */
const allEveryMs = 1000

export function makePresence(options: PresenceOptions): Presence {
  const { bus, now = () => performance.now(), graceMs = 3000, windowMs = 200, beatMs = 20_000 } = options
  const { silentMs = 50_000 } = options
  const self = uuidv7()
  const rooms = makeRooms({ now, windowMs })
  /** How often each is present by way of this process. */
  const own = new Map<string, number>()
  /** When those who are gone stop being shown, the earliest first. */
  const leaving = new Map<string, number>()
  const peers = new Map<string, Peer>()
  let moves: Move[] = []
  let n = 0
  let isAllWanted = false
  let toldAllAt = Number.NEGATIVE_INFINITY
  let beatAt = Number.NEGATIVE_INFINITY
  let timer: NodeJS.Timeout | undefined
  let unsubscribe: (() => void)[] = []

  // What this process tells.

  function tell(messages: Message[]) {
    bus.publish(
      channel,
      messages.map(message => JSON.stringify(message)),
    )
    beatAt = now()
  }

  function sayHello() {
    tell([{ from: self, n, kind: 'hello' }])
  }

  function tellMoves() {
    const parts = partsOf(moves)
    moves = []
    tell(parts.map(part => ({ from: self, n: ++n, kind: 'moves', moves: part })))
  }

  function tellAll() {
    isAllWanted = false
    toldAllAt = now()
    const parts = partsOf([...own.keys(), ...leaving.keys()].map(key => [1, ...split(key)]))
    if (parts.length === 0) parts.push([])
    const last = parts.length - 1
    tell(parts.map((part, at) => ({ from: self, n: ++n, kind: 'all', part: at, isLast: at === last, moves: part })))
  }

  function move(came: 0 | 1, key: string) {
    const [topic, who] = split(key)
    if (came) rooms.enter(topic, who)
    else rooms.exit(topic, who)
    moves.push([came, topic, who])
  }

  // What others tell.

  function hear(item: string) {
    const message = parseMessage(item)
    if (!message || message.from === self) return
    if (message.kind === 'hello' || (message.kind === 'ask' && message.to === self)) isAllWanted = true
    const peer = peerOf(message.from)
    peer.heardAt = now()
    // Who was connected there may be back elsewhere in a moment.
    if (message.kind === 'bye') peer.heardAt -= silentMs - graceMs
    else follow(peer, message)
  }

  function peerOf(id: string): Peer {
    const known = peers.get(id)
    if (known) return known
    const peer: Peer = { n: 0, heardAt: 0, askedAt: Number.NEGATIVE_INFINITY, here: new Set(), named: undefined }
    peers.set(id, peer)
    return peer
  }

  function follow(peer: Peer, message: Message) {
    const counts = message.kind === 'moves' || message.kind === 'all'
    const isMissed = message.n !== peer.n + (counts ? 1 : 0)
    peer.n = message.n
    if (isMissed) peer.named = undefined
    if (message.kind === 'all' && message.part === 0) peer.named = new Set()
    else if (isMissed) askAll(peer, message.from)
    if (!counts) return
    for (const [came, topic, who] of message.moves) moveAt(peer, came, join(topic, who))
    if (message.kind === 'all' && message.isLast && peer.named) {
      for (const key of peer.here) if (!peer.named.has(key)) moveAt(peer, 0, key)
      peer.named = undefined
    }
  }

  function moveAt(peer: Peer, came: 0 | 1, key: string) {
    if (came) peer.named?.add(key)
    if (came ? peer.here.has(key) : !peer.here.delete(key)) return
    if (came) peer.here.add(key)
    const [topic, who] = split(key)
    if (came) rooms.enter(topic, who)
    else rooms.exit(topic, who)
  }

  function askAll(peer: Peer, id: string) {
    if (now() - peer.askedAt < allEveryMs) return
    peer.askedAt = now()
    tell([{ from: self, n, kind: 'ask', to: id }])
  }

  // What time brings.

  function tick() {
    const at = now()
    for (const [key, due] of leaving) {
      if (due > at) break
      leaving.delete(key)
      move(0, key)
    }
    if (moves.length > 0) tellMoves()
    if (isAllWanted && at - toldAllAt >= allEveryMs) tellAll()
    if (at - beatAt >= beatMs) tell([{ from: self, n, kind: 'beat' }])
    for (const [id, peer] of peers) {
      if (at - peer.heardAt < silentMs) continue
      for (const key of peer.here) moveAt(peer, 0, key)
      peers.delete(id)
    }
    for (const { topic, change } of rooms.takeDue(at)) options.onChange(topic, change)
  }

  return {
    join(topic, who) {
      const key = join(topic, who)
      const count = own.get(key) ?? 0
      own.set(key, count + 1)
      if (count === 0 && !leaving.delete(key)) move(1, key)
    },
    leave(topic, who) {
      const key = join(topic, who)
      const count = own.get(key) ?? 0
      if (count > 1) own.set(key, count - 1)
      else if (own.delete(key)) leaving.set(key, now() + graceMs)
    },
    present: rooms.present,
    start() {
      unsubscribe = [
        bus.subscribe(channel, items => {
          for (const item of items) hear(item)
        }),
        bus.onGap(sayHello),
      ]
      timer = setInterval(tick, windowMs)
      sayHello()
    },
    stop() {
      clearInterval(timer)
      for (const each of unsubscribe) each()
      tell([{ from: self, n, kind: 'bye' }])
    },
  }
}

/** A topic holds no line break. */
function join(topic: string, who: string): string {
  return `${topic}\n${who}`
}

function split(key: string): [topic: string, who: string] {
  const at = key.indexOf('\n')
  return [key.slice(0, at), key.slice(at + 1)]
}

/** In parts that are short enough for a message each. */
function partsOf(moves: Move[]): Move[][] {
  const parts: Move[][] = []
  let bytes = Number.POSITIVE_INFINITY
  for (const move of moves) {
    const size = Buffer.byteLength(JSON.stringify(JSON.stringify(move)))
    if (bytes + size > messageBytesMax) {
      parts.push([])
      bytes = 0
    }
    parts.at(-1)!.push(move)
    bytes += size
  }
  return parts
}

/** What others send on the same database or Redis is not ours to believe. */
function parseMessage(item: string): Message | undefined {
  try {
    const message = JSON.parse(item) as Message
    if (typeof message.from !== 'string' || !Number.isSafeInteger(message.n)) return undefined
    const hasMoves = message.kind === 'moves' || message.kind === 'all'
    return !hasMoves || message.moves.every(isMove) ? message : undefined
  } catch {
    return undefined
  }
}

function isMove(value: unknown): value is Move {
  return Array.isArray(value) && typeof value[1] === 'string' && typeof value[2] === 'string'
}
