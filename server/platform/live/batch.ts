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
  /** Whether any of them ends somebody's right to follow. */
  readonly hasEnds: boolean
  /** WebSocket frames, as they stand on the wire. */
  frames(): readonly Buffer[]
  /** A piece of an event stream that carries this topic alone. */
  stream(): Buffer
}

/** A signal, written once however many are told. */
export interface Signal {
  /** The user who is not told. */
  readonly except: string | undefined
  /** A WebSocket frame, as it stands on the wire. */
  frame(): Buffer
  stream(): Buffer
}

const finalText = 0x81
const shortMax = 125
const mediumMax = 65_535
const mediumFollows = 126
const longFollows = 127

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
    hasEnds: items.some(item => item.event.ends !== undefined),
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

/** @param json of `{ type, data }` */
export function makeSignal(topic: string, json: string, except?: string): Signal {
  let frame: Buffer | undefined
  let stream: Buffer | undefined
  const body = `"topic":${JSON.stringify(topic)},"signal":${json}}`
  return {
    except,
    frame() {
      frame ??= textFrame(`{"type":"signal",${body}`)
      return frame
    },
    stream() {
      stream ??= Buffer.from(`event: signal\ndata: {${body}\n\n`)
      return stream
    },
  }
}

/** Parts that make a frame of a sensible size each; a larger item gets a frame of its own. */
export function splitItems<T extends { json: string }>(items: readonly T[]): T[][] {
  const parts: T[][] = []
  let part: T[] = []
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
  return textFrame(`{"type":"events","topic":${JSON.stringify(topic)},"events":[${events}]}`)
}

/**
 * A whole text frame (RFC 6455, 5.2). A server does not mask, so it is the same for all; written as one buffer it
 * costs a connection one write of shared bytes, where `ws` would make a head for each and gather the two.
 */
function textFrame(text: string): Buffer {
  const size = Buffer.byteLength(text)
  const headSize = size <= shortMax ? 2 : size <= mediumMax ? 4 : 10
  const frame = Buffer.allocUnsafeSlow(headSize + size)
  frame[0] = finalText
  if (headSize === 2) {
    frame[1] = size
  } else if (headSize === 4) {
    frame[1] = mediumFollows
    frame.writeUInt16BE(size, 2)
  } else {
    frame[1] = longFollows
    frame.writeBigUInt64BE(BigInt(size), 2)
  }
  frame.write(text, headSize)
  return frame
}

/** One event as `text/event-stream` has it. JSON has no raw line break, so `data` is one line. */
export function streamEvent(topic: string, item: Item, position: string): string {
  const type = item.event.type.replace(/[\r\n]/g, ' ')
  return `id: ${position}\nevent: ${type}\ndata: {"topic":${JSON.stringify(topic)},${item.json.slice(1)}\n\n`
}
