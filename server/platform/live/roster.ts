/**
 * The live connections of this process. Each is visited every `checkMs`, a fifth of them at a time, so that twenty
 * thousand neither need a timer each nor all ask the database in the same instant.
 */
import type { Log } from '../log.ts'
import { errors } from './errors.ts'

export interface Member {
  readonly transport: 'websocket' | 'sse'
  /** Called every `checkMs`, with 1, 2, 3, … */
  visit(count: number): Promise<void>
  /** The server stops: say so and go. */
  leave(): void
  /** Go at once. */
  kill(): void
}

export interface Roster {
  /** @throws overloaded, or unavailable while stopping */
  ensureRoom(): void
  /** Returns what to call when the socket is gone. */
  add(member: Member): () => void
  start(): void
  /** Asks all to leave, waits a little, then cuts off those who stayed. */
  stop(): Promise<void>
  count(transport: Member['transport']): number
  readonly size: number
}

const slots = 5
const visitsAbreast = 32

export function makeRoster(options: { connectionsMax: number; checkMs: number; leaveMs: number; log: Log }): Roster {
  const members = Array.from({ length: slots }, () => new Map<Member, number>())
  const counts = { websocket: 0, sse: 0 }
  const busy = new Set<number>()
  let nextSlot = 0
  let turn = 0
  let timer: NodeJS.Timeout | undefined
  let stopping = false
  let stopped: Promise<void> | undefined
  let onEmpty: (() => void) | undefined

  const size = () => counts.websocket + counts.sse
  const everybody = () => members.flatMap(slot => [...slot.keys()])

  async function visitSlot(slot: number) {
    // A visit that takes longer than the round is not doubled.
    if (busy.has(slot)) return
    busy.add(slot)
    const due = [...members[slot]!.keys()]
    for (let at = 0; at < due.length; at += visitsAbreast) {
      await Promise.all(due.slice(at, at + visitsAbreast).map(member => visit(slot, member)))
    }
    busy.delete(slot)
  }

  async function visit(slot: number, member: Member) {
    const count = members[slot]!.get(member)
    if (count === undefined) return
    members[slot]!.set(member, count + 1)
    try {
      await member.visit(count + 1)
    } catch (error) {
      options.log.error({ err: error }, 'a live connection’s check threw')
    }
  }

  async function stop() {
    stopping = true
    clearInterval(timer)
    if (size() === 0) return
    const empty = new Promise<void>(resolve => {
      onEmpty = resolve
    })
    for (const member of everybody()) member.leave()
    const late = setTimeout(() => {
      for (const member of everybody()) member.kill()
    }, options.leaveMs)
    if (size() > 0) await empty
    clearTimeout(late)
  }

  return {
    ensureRoom() {
      if (stopping) throw errors.stopping()
      if (size() >= options.connectionsMax) throw errors.full()
    },
    add(member) {
      const slot = members[nextSlot++ % slots]!
      slot.set(member, 0)
      counts[member.transport]++
      if (stopping) queueMicrotask(() => member.leave())
      return () => {
        if (!slot.delete(member)) return
        counts[member.transport]--
        if (size() === 0) onEmpty?.()
      }
    },
    start() {
      timer = setInterval(() => void visitSlot(turn++ % slots), options.checkMs / slots)
    },
    stop() {
      stopped ??= stop()
      return stopped
    },
    count: transport => counts[transport],
    get size() {
      return size()
    },
  }
}
