/**
 * One reader of an event stream.
 *
 * States: opening (nothing is sent yet; an error is still a problem document, and a stream with nothing left is
 * a 204) → streaming → ended, when all topics are complete, the server stops, the credential ends or the reader is
 * gone or too slow.
 */
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Authenticate, Caller } from '../http/guard.ts'
import { callerOf } from '../http/guard.ts'
import { renewCaller } from './access.ts'
import { type Batch, type Signal, streamEvent } from './batch.ts'
import { errors } from './errors.ts'
import type { Follower } from './hub.ts'
import type { Member, Roster } from './roster.ts'
import { isRefusal, type Topics } from './topics.ts'

export interface StreamDeps {
  topics: Topics
  roster: Roster
  reauthenticate: Authenticate
  bufferBytes: number
  topicsMax: number
  onDelivered: (events: number) => void
  onSlow: () => void
}

export interface StreamQuery {
  topic: string[]
  after?: string
}

const heartbeatEvery = 3
const recheckEvery = 6
const stalledBeatsMax = 2

/** Answers `GET /v1/live/events`: null becomes an empty answer; else the stream has begun on the raw response. */
export async function answerStream(
  deps: StreamDeps,
  request: FastifyRequest<{ Querystring: StreamQuery }>,
  reply: FastifyReply,
): Promise<null | undefined> {
  deps.roster.ensureRoom()
  const caller = callerOf(request)
  const names = topicsOf(request.query.topic, deps.topicsMax)
  const positions = positionsOf(request, names.length)
  const admitted = await Promise.all(names.map(name => deps.topics.admit(caller, name)))
  const presentAs = admitted.map(each => each.presentAs)
  const stream = new Stream(deps, { names, positions, presentAs, caller, response: reply.raw })
  stream.recall = () => deps.reauthenticate(request)
  try {
    await stream.open()
    // Others may have come in meanwhile.
    deps.roster.ensureRoom()
  } catch (error) {
    stream.abandon()
    throw error
  }
  if (stream.complete) {
    reply.code(204)
    return null
  }
  reply.hijack()
  stream.begin(reply.getHeaders() as OutgoingHttpHeaders)
}

/** @throws bad_topic, too_many_topics */
function topicsOf(topics: string[], topicsMax: number): string[] {
  if (topics.length > topicsMax) throw errors.tooManyTopics(topicsMax)
  if (new Set(topics).size < topics.length) throw errors.alreadyFollowed()
  return topics
}

/** Where each topic is to go on. What an EventSource sends when it reconnects is newer than the query. */
function positionsOf(request: FastifyRequest<{ Querystring: StreamQuery }>, count: number): number[] {
  const text = request.headers['last-event-id'] || request.query.after || ''
  if (text === '') return new Array(count).fill(0)
  const parts = String(text).split(/[.,]/)
  if (parts.length !== count || !parts.every(part => /^\d{1,15}$/.test(part))) {
    throw errors.badPosition('`after` and Last-Event-ID are whole numbers, one a topic, joined by `.` or `,`.')
  }
  return parts.map(Number)
}

class Stream implements Member {
  readonly transport = 'sse'
  recall: () => Promise<Caller | undefined> = async () => undefined
  private readonly deps: StreamDeps
  private readonly names: string[]
  private readonly positions: number[]
  /** By which name the reader is present in each topic. */
  private readonly presentAs: (string | undefined)[]
  private readonly response: ServerResponse
  private readonly stops = new Map<string, () => void>()
  private caller: Caller
  private unlist: (() => void) | undefined
  private start: () => void = () => {}
  /** Holds back events until the headers are out. */
  private started: Promise<void> | undefined
  private draining: Promise<void> | undefined
  private stalledBeats = 0
  private ended = false

  constructor(
    deps: StreamDeps,
    given: {
      names: string[]
      positions: number[]
      presentAs: (string | undefined)[]
      caller: Caller
      response: ServerResponse
    },
  ) {
    this.deps = deps
    this.names = given.names
    this.positions = given.positions
    this.presentAs = given.presentAs
    this.caller = given.caller
    this.response = given.response
    this.started = new Promise(resolve => {
      this.start = () => {
        this.started = undefined
        resolve()
      }
    })
    // Already now, as the reader may go while the topics are opened.
    this.response.on('close', () => this.abandon())
  }

  /** Resolves when the newest number of each topic is known. @throws what opening one threw */
  async open() {
    await Promise.all(
      this.names.map(
        (name, index) =>
          new Promise<void>((resolve, reject) => {
            const follower = this.follower(name, index, { resolve, reject })
            this.stops.set(name, this.deps.topics.follow(name, this.positions[index]!, follower))
          }),
      ),
    )
  }

  get complete() {
    return this.stops.size === 0
  }

  private follower(
    name: string,
    index: number,
    opening: { resolve: () => void; reject: (error: unknown) => void },
  ): Follower {
    return {
      userId: this.caller.userId,
      presentAs: this.presentAs[index],
      // One microtask later it is known, too, whether there is anything to come.
      opened: () => queueMicrotask(opening.resolve),
      failed: opening.reject,
      take: batch => this.take(batch, index),
      completed: () => {
        this.stops.delete(name)
        if (this.complete && this.started === undefined) this.end()
      },
      drained: () => this.started ?? this.drained(),
      recheck: () => void this.recheck(name).catch(() => {}),
      askAgain: () => this.recheck(name),
      signal: signal => this.tell(signal),
    }
  }

  begin(headers: OutgoingHttpHeaders) {
    if (this.response.destroyed) return this.abandon()
    this.unlist = this.deps.roster.add(this)
    this.response.writeHead(200, {
      ...headers,
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      'x-accel-buffering': 'no',
    })
    this.response.write('retry: 1000\n\n')
    this.start()
  }

  // What the roster calls.

  async visit(count: number) {
    if (this.ended) return
    if (count % heartbeatEvery === 0) this.beat()
    const renewed = await renewCaller(this.caller, this.recall)
    if (this.ended) return
    if (renewed === undefined) return this.end()
    this.caller = renewed
    if (count % recheckEvery === 0) await Promise.allSettled([...this.stops.keys()].map(name => this.recheck(name)))
  }

  leave() {
    this.response.write(': closing\n\n')
    this.end()
  }

  kill() {
    this.response.destroy()
  }

  /**
   * When a topic is no longer allowed the stream ends; the reader comes back and is told why.
   * @throws what kept anybody from telling
   */
  private async recheck(name: string) {
    try {
      await this.deps.topics.authorize(this.caller, name)
    } catch (error) {
      if (!isRefusal(error)) throw error
      this.end()
    }
  }

  /** To whoever does not read just now, or not yet, a signal is not worth sending. */
  private tell(signal: Signal) {
    if (this.ended || this.started || this.response.writableNeedDrain) return
    if (signal.except !== this.caller.userId) this.response.write(signal.stream())
  }

  private take(batch: Batch, index: number) {
    if (this.ended) return
    if (this.response.writableLength > this.deps.bufferBytes) return this.cutOff()
    this.response.write(this.names.length === 1 ? batch.stream() : this.written(batch, index))
    this.positions[index] = batch.items.at(-1)!.event.seq
    this.deps.onDelivered(batch.items.length)
  }

  private written(batch: Batch, index: number): string {
    const positions = [...this.positions]
    let text = ''
    for (const item of batch.items) {
      positions[index] = item.event.seq
      text += streamEvent(batch.topic, item, positions.join('.'))
    }
    return text
  }

  private drained(): Promise<void> | undefined {
    if (!this.response.writableNeedDrain) return undefined
    this.draining ??= new Promise(resolve => {
      this.response.once('drain', () => {
        this.draining = undefined
        this.stalledBeats = 0
        resolve()
      })
    })
    return this.draining
  }

  private beat() {
    if (!this.response.writableNeedDrain) {
      this.stalledBeats = 0
      this.response.write(': beat\n\n')
    } else if (++this.stalledBeats >= stalledBeatsMax) {
      this.cutOff()
    }
  }

  private cutOff() {
    this.deps.onSlow()
    this.abandon()
    this.response.destroy()
  }

  private end() {
    if (this.ended) return
    this.stopFollowing()
    this.response.end()
  }

  private stopFollowing() {
    this.ended = true
    for (const stop of this.stops.values()) stop()
    this.stops.clear()
  }

  abandon() {
    this.stopFollowing()
    this.unlist?.()
  }
}
