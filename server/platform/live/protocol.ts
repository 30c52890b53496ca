/**
 * The frames of `GET /v1/live`: what a client may send, checked, and what it is sent. What many are sent alike is
 * written in `batch.ts`, what calls are answered in `calls.ts`.
 */
import { isUtf8 } from 'node:buffer'
import type { AppError } from '../errors.ts'
import { errors } from './errors.ts'
import { parseTopic } from './topics.ts'

export type ClientFrame =
  | { type: 'auth'; token: string }
  | { type: 'subscribe'; topic: string; after: number; id: string | undefined }
  | { type: 'unsubscribe'; topic: string }
  | { type: 'call'; id: string; call: string; params: unknown }
  | { type: 'ping' }

export type ServerFrame =
  | { type: 'ready' }
  | { type: 'subscribed'; topic: string; seq: number; id?: string | undefined }
  | { type: 'complete'; topic: string }
  | { type: 'pong' }
  | { type: 'closing'; reason: string }
  | {
      type: 'error'
      code: string
      message: string
      topic?: string | undefined
      id?: string | undefined
      details?: Record<string, unknown> | undefined
    }

/** Which subscription an error is about. */
export interface About {
  topic?: string | undefined
  id?: string | undefined
}

/** Close codes beyond the standard's. */
export const closeCodes = {
  goingAway: 1001,
  unauthenticated: 4001,
  slow: 4008,
  tooManyFrames: 4029,
} as const

const tokenCharsMax = 8192
const idCharsMax = 128
const callPattern = /^[a-z][\w.-]{0,63}$/

/** @throws bad_frame, bad_topic, bad_position; `about` is filled as far as the frame could be read. */
export function parseFrame(data: Buffer, isBinary: boolean, about: About): ClientFrame {
  if (isBinary || !isUtf8(data)) throw errors.badFrame('Frames are JSON texts; this one is binary.')
  const fields = parseObject(data.toString('utf8'))
  if (typeof fields.id === 'string' && fields.id.length <= idCharsMax) about.id = fields.id
  switch (fields.type) {
    case 'ping':
      return { type: 'ping' }
    case 'auth':
      return { type: 'auth', token: tokenOf(fields.token) }
    case 'subscribe':
      return {
        type: 'subscribe',
        topic: topicOf(fields.topic, about),
        after: afterOf(fields.after),
        id: idOf(fields.id),
      }
    case 'unsubscribe':
      return { type: 'unsubscribe', topic: topicOf(fields.topic, about) }
    case 'call':
      return { type: 'call', id: callIdOf(fields.id), call: callOf(fields.call), params: fields.params }
    default:
      throw errors.badFrame('`type` must be auth, subscribe, unsubscribe, call or ping.')
  }
}

function parseObject(text: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw errors.badFrame('This frame is not JSON.')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw errors.badFrame('A frame is a JSON object.')
  }
  return value as Record<string, unknown>
}

function tokenOf(value: unknown): string {
  if (typeof value === 'string' && value.length > 0 && value.length <= tokenCharsMax) return value
  throw errors.badFrame(`\`token\` must be a text of 1 to ${tokenCharsMax} characters.`)
}

function topicOf(value: unknown, about: About): string {
  if (typeof value !== 'string') throw errors.badFrame('`topic` must be a text.')
  parseTopic(value)
  about.topic = value
  return value
}

function afterOf(value: unknown): number {
  if (value === undefined) return 0
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value
  throw errors.badPosition('`after` must be a whole number, 0 or more: the last number you have.')
}

function idOf(value: unknown): string | undefined {
  if (value === undefined || (typeof value === 'string' && value.length <= idCharsMax)) return value
  throw errors.badFrame(`\`id\` must be a text of at most ${idCharsMax} characters.`)
}

/** Without it nobody could tell which call an answer is for. */
function callIdOf(value: unknown): string {
  const id = idOf(value)
  if (id === undefined || id === '') throw errors.badFrame('A call needs an `id`, which its answer carries.')
  return id
}

function callOf(value: unknown): string {
  if (typeof value === 'string' && callPattern.test(value)) return value
  throw errors.badFrame('`call` must be the name of a call, such as `chats.send`.')
}

export function errorFrame(error: AppError, about: About = {}): ServerFrame {
  return { type: 'error', code: error.code, message: error.message, ...about, details: error.details }
}
