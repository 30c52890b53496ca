import type { LiveEvent } from './source.ts'

/** An event and its JSON, written once however many follow. */
export interface Item {
  event: LiveEvent
  json: string
}

/** Events of one topic, in order, and the bytes that carry them, made when first asked for and then shared. */
export interface Batch {
  readonly topic: string
  readonly items: readonly Item[]
  /** Text frames for a WebSocket. */
  frames(): readonly Buffer[]
  /** A piece of an event stream that carries this topic alone. */
  stream(): Buffer
}

const frameEventsMax = 128
const frameCharsMax = 65_536

export function makeItem(event: LiveEvent): Item {
  return {
    event,
    json: `{"seq":${event.seq},"type":${JSON.stringify(event.type)},"data":${JSON.stringify(event.data) ?? 'null'}}`,
  }
}

export function makeBatch(topic: string, items: readonly Item[]): Batch {
  let frames: Buffer[] | undefined
  let stream: Buffer | undefined
  return {
    topic,
    items,
    frames() {
      frames ??= splitItems(items).map(part => eventsFrame(topic, part))
      return frames
    },
    stream() {
      stream ??= Buffer.from(items.map(item => streamEvent(topic, item, String(item.event.seq))).join(''))
      return stream
    },
  }
}

/** Parts that make a frame of a sensible size each; a larger event gets a frame of its own. */
export function splitItems(items: readonly Item[]): Item[][] {
  const parts: Item[][] = []
  let part: Item[] = []
  let chars = 0
  for (const item of items) {
    if (part.length > 0 && (part.length >= frameEventsMax || chars + item.json.length > frameCharsMax)) {
      parts.push(part)
      part = []
      chars = 0
    }
    part.push(item)
    chars += item.json.length
  }
  if (part.length > 0) parts.push(part)
  return parts
}

function eventsFrame(topic: string, items: readonly Item[]): Buffer {
  const events = items.map(item => item.json).join(',')
  return Buffer.from(`{"type":"events","topic":${JSON.stringify(topic)},"events":[${events}]}`)
}

/** One event as `text/event-stream` has it. JSON has no raw line break, so `data` is one line. */
export function streamEvent(topic: string, item: Item, position: string): string {
  const type = item.event.type.replace(/[\r\n]/g, ' ')
  return `id: ${position}\nevent: ${type}\ndata: {"topic":${JSON.stringify(topic)},${item.json.slice(1)}\n\n`
}
