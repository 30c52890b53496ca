/**
 * One WebSocket client.
 *
 * States of a connection:
 * - greeting: no credential came with the handshake; an `auth` frame must come within `authMs`.
 * - ready: the caller is known; topics may be followed.
 * - closing: the close frame is on its way; nothing else is sent or heard. Forced after `leaveMs`.
 *
 * States of a subscription: asking (may the caller follow?) → following → removed, by the client, by the final event,
 * by a refusal, or with the connection.
 */
import type { FastifyRequest } from 'fastify'
import type { RawData, WebSocket } from 'ws'
import { isAppError, errors as platformErrors } from '../errors.ts'
import type { Authenticate, Caller } from '../http/guard.ts'
import type { Log } from '../log.ts'
import { checkOrigin, renewCaller } from './access.ts'
import { type Allowance, makeAllowance } from './allowance.ts'
import type { Batch, Signal } from './batch.ts'
import { type CallLine, type Calls, makeCallLine } from './calls.ts'
import { errors } from './errors.ts'
import type { Follower } from './hub.ts'
import { type About, type ClientFrame, closeCodes, errorFrame, parseFrame, type ServerFrame } from './protocol.ts'
import type { Member, Roster } from './roster.ts'
import { isRefusal, type Topics } from './topics.ts'

export interface SocketDeps {
  topics: Topics
  calls: Calls
  roster: Roster
  log: Log
  authenticate: (token: string) => Promise<Caller | undefined>
  reauthenticate: Authenticate
  publicUrl: string | undefined
  bufferBytes: number
  topicsMax: number
  authMs: number
  leaveMs: number
  onDelivered: (events: number) => void
  onSlow: () => void
}

interface Subscription {
  /** Undefined while asking. */
  stop?: () => void
}

/** Visits between pings, and between questions whether each topic is still allowed. */
const pingEvery = 5
const recheckEvery = 6
const silentPingsMax = 2
const framesPerSecond = 50
const framesBurst = 200
/** Frames that may wait while a token is looked at, before the socket is not read. */
const heldMax = 256
const asText = { binary: false }

/** What is refused before the handshake, as a problem document. */
export function admitHandshake(deps: SocketDeps, request: FastifyRequest) {
  deps.roster.ensureRoom()
  checkOrigin(request, deps.publicUrl)
}

export function openConnection(deps: SocketDeps, socket: WebSocket, request: FastifyRequest) {
  const connection = new Connection(deps, socket, request)
  connection.start()
}

class Connection implements Member {
  readonly transport = 'websocket'
  private readonly deps: SocketDeps
  private readonly socket: WebSocket
  private readonly raw: FastifyRequest['raw']['socket']
  private readonly subscriptions = new Map<string, Subscription>()
  private caller: Caller | undefined
  private recall: () => Promise<Caller | undefined>
  private authTimer: NodeJS.Timeout | undefined
  private unlist: (() => void) | undefined
  private closing = false
  /** Frames that came while a token is looked at, so that a client need not wait for `ready`. */
  private held: { frame: ClientFrame; about: About }[] | undefined
  private draining: Promise<void> | undefined
  private silentPings = 0
  private pauses = 0
  private readonly allowance: Allowance = makeAllowance({ perSecond: framesPerSecond, burst: framesBurst })
  /** Made with the first call. */
  private calls: CallLine | undefined

  constructor(deps: SocketDeps, socket: WebSocket, request: FastifyRequest) {
    this.deps = deps
    this.socket = socket
    this.raw = request.raw.socket
    this.caller = request.caller
    this.recall = () => deps.reauthenticate(request)
  }

  start() {
    const { socket, deps } = this
    // The plugin's own listener logs a client's protocol error as ours and cuts off the close frame.
    socket.removeAllListeners('error')
    socket.on('error', error => deps.log.debug({ err: error }, 'a live client broke the protocol or the line'))
    socket.on('message', (data, isBinary) => this.hear(data, isBinary))
    socket.on('ping', () => this.spend())
    socket.on('pong', () => {
      this.silentPings = 0
    })
    socket.on('close', () => this.clear())
    this.unlist = deps.roster.add(this)
    if (this.caller) return this.send({ type: 'ready' })
    this.authTimer = setTimeout(() => this.refuse('No `auth` frame came in time.'), deps.authMs)
  }

  // What the roster calls.

  async visit(count: number) {
    if (this.closing) return
    if (count % pingEvery === 0) this.beat()
    if (this.caller === undefined) return
    const before = this.caller
    const renewed = await renewCaller(before, this.recall)
    // A token that came meanwhile is newer than this answer.
    if (this.closing || this.caller !== before) return
    if (renewed === undefined) return this.refuse('Your session or key has ended.')
    this.caller = renewed
    if (count % recheckEvery === 0) await this.recheckAll()
  }

  leave() {
    this.send({ type: 'closing', reason: 'The server is stopping. Connect again with your last positions.' })
    const close = () => this.close(closeCodes.goingAway, 'stopping')
    // What was begun is still answered.
    if (this.calls) this.calls.end(close)
    else close()
  }

  kill() {
    this.socket.terminate()
  }

  // What the client sends.

  private hear(data: RawData, isBinary: boolean) {
    this.silentPings = 0
    if (this.closing) return
    const about: About = {}
    let frame: ClientFrame
    try {
      frame = parseFrame(data as Buffer, isBinary, about)
    } catch (error) {
      if (this.spend()) this.sendError(error, about)
      return
    }
    if (!this.isCounted(frame) && !this.spend()) return
    if (this.held) this.hold(frame, about)
    else this.obey(frame, about)
  }

  /** Calls are counted with the requests of their caller. */
  private isCounted(frame: ClientFrame): boolean {
    return frame.type === 'call' && (this.caller !== undefined || this.held !== undefined)
  }

  /** Takes one frame from the allowance; false when it was used up and the connection is being closed. */
  private spend(): boolean {
    if (this.allowance.take()) return true
    this.sendError(errors.tooManyFrames(framesPerSecond))
    this.close(closeCodes.tooManyFrames, 'too many frames')
    return false
  }

  private obey(frame: ClientFrame, about: About) {
    try {
      this.act(frame, about)
    } catch (error) {
      this.sendError(error, about)
    }
  }

  private act(frame: ClientFrame, about: About) {
    if (frame.type === 'ping') return this.send({ type: 'pong' })
    if (frame.type === 'auth') return void this.authenticate(frame.token)
    if (frame.type === 'call') return this.callLine().push(frame)
    if (this.caller === undefined) throw platformErrors.unauthenticated('Send an `auth` frame with a token first.')
    if (frame.type === 'unsubscribe') return this.forget(frame.topic)
    if (this.subscriptions.has(frame.topic)) throw errors.alreadyFollowed()
    if (this.subscriptions.size >= this.deps.topicsMax) throw errors.tooManyTopics(this.deps.topicsMax)
    void this.subscribe(frame, about)
  }

  private callLine(): CallLine {
    this.calls ??= makeCallLine(this.deps.calls, {
      caller: () => (this.closing ? undefined : this.caller),
      send: frame => this.write(frame),
      drained: () => this.drained(),
      pause: () => this.pause(),
      resume: () => this.resume(),
    })
    return this.calls
  }

  private async authenticate(token: string) {
    this.held = []
    try {
      const caller = await this.deps.authenticate(token)
      if (!caller) return this.refuse('This token is not valid.')
      this.accept(caller, token)
    } catch (error) {
      if (isRefusal(error)) return this.refuse('This token is not valid.')
      this.sendError(error)
    } finally {
      this.release()
    }
  }

  /** A first token, or a fresh one in place of one that is about to expire. */
  private accept(caller: Caller, token: string) {
    if (this.closing) return
    if (this.caller && this.caller.userId !== caller.userId) throw errors.otherUser()
    clearTimeout(this.authTimer)
    this.caller = caller
    this.recall = () => this.deps.authenticate(token)
    this.send({ type: 'ready' })
  }

  private hold(frame: ClientFrame, about: About) {
    if (this.held!.push({ frame, about }) === heldMax) this.pause()
  }

  private release() {
    const held = this.held ?? []
    this.held = undefined
    for (const { frame, about } of held) {
      if (this.closing) return
      // When another `auth` was among them, the rest waits for its answer.
      if (this.held) this.hold(frame, about)
      else this.obey(frame, about)
    }
    if (held.length >= heldMax) this.resume()
  }

  /** The socket is read again when all who paused it have resumed it. */
  private pause() {
    if (this.pauses++ === 0) this.socket.pause()
  }

  private resume() {
    if (--this.pauses === 0) this.socket.resume()
  }

  private async subscribe(frame: ClientFrame & { type: 'subscribe' }, about: About) {
    const { topic } = frame
    const subscription: Subscription = {}
    this.subscriptions.set(topic, subscription)
    try {
      const { presentAs } = await this.deps.topics.admit(this.caller!, topic)
      if (this.subscriptions.get(topic) !== subscription) return
      subscription.stop = this.deps.topics.follow(topic, frame.after, this.follower(frame, { about, presentAs }))
    } catch (error) {
      if (this.subscriptions.get(topic) !== subscription) return
      this.forget(topic)
      this.sendError(error, about)
    }
  }

  private follower(
    { topic, id }: { topic: string; id: string | undefined },
    { about, presentAs }: { about: About; presentAs: string | undefined },
  ): Follower {
    return {
      userId: this.caller!.userId,
      presentAs,
      opened: seq => this.send({ type: 'subscribed', topic, seq, id }),
      take: batch => this.take(batch),
      completed: () => {
        this.subscriptions.delete(topic)
        this.send({ type: 'complete', topic })
      },
      failed: error => {
        this.subscriptions.delete(topic)
        this.sendError(error, about)
      },
      drained: () => this.drained(),
      recheck: () => void this.recheck(topic).catch(() => {}),
      askAgain: () => this.recheck(topic),
      signal: signal => this.tell(signal),
    }
  }

  private forget(topic: string) {
    this.subscriptions.get(topic)?.stop?.()
    this.subscriptions.delete(topic)
  }

  private async recheckAll() {
    await Promise.allSettled([...this.subscriptions.keys()].map(topic => this.recheck(topic)))
  }

  /** Stops following what is no longer allowed. @throws what kept anybody from telling */
  private async recheck(topic: string) {
    const subscription = this.subscriptions.get(topic)
    if (!subscription?.stop || !this.caller) return
    try {
      await this.deps.topics.authorize(this.caller, topic)
    } catch (error) {
      if (!isRefusal(error)) throw error
      if (this.subscriptions.get(topic) !== subscription) return
      this.forget(topic)
      this.sendError(error, { topic })
    }
  }

  // What the client is sent.

  private take(batch: Batch) {
    for (const frame of batch.frames()) {
      if (!this.writeRaw(frame)) return
    }
    this.deps.onDelivered(batch.items.length)
  }

  /** To whoever does not read just now a signal is no longer worth sending. */
  private tell(signal: Signal) {
    if (signal.except !== this.caller?.userId && !this.raw.writableNeedDrain) this.writeRaw(signal.frame())
  }

  private send(frame: ServerFrame) {
    if (!this.closing) this.write(JSON.stringify(frame))
  }

  private sendError(error: unknown, about: About = {}) {
    if (!isAppError(error)) this.deps.log.error({ err: error }, 'a live frame could not be answered')
    this.send(errorFrame(isAppError(error) ? error : platformErrors.internal(), about))
  }

  private write(text: string) {
    if (this.mayWrite()) this.socket.send(text, asText)
  }

  /** Of whole frames. Nothing is compressed, so `ws` holds none back that could be overtaken. */
  private writeRaw(frame: Buffer): boolean {
    if (!this.mayWrite()) return false
    this.raw.write(frame)
    return true
  }

  /** False when the client reads too slowly and is being closed. */
  private mayWrite(): boolean {
    if (this.closing || this.socket.readyState !== this.socket.OPEN) return false
    if (this.raw.writableLength <= this.deps.bufferBytes) return true
    this.deps.onSlow()
    this.close(closeCodes.slow, 'too slow: connect again with your last positions')
    return false
  }

  /** One promise a connection, however many of its topics are catching up. */
  private drained(): Promise<void> | undefined {
    if (!this.raw.writableNeedDrain) return undefined
    this.draining ??= new Promise(resolve => {
      this.raw.once('drain', () => {
        this.draining = undefined
        resolve()
      })
    })
    return this.draining
  }

  private beat() {
    if (this.silentPings >= silentPingsMax) return this.socket.terminate()
    this.silentPings++
    this.socket.ping()
  }

  // The end.

  private refuse(message: string) {
    this.sendError(platformErrors.unauthenticated(message))
    this.close(closeCodes.unauthenticated, 'unauthenticated')
  }

  private close(code: number, reason: string) {
    if (this.closing) return
    this.stopFollowing()
    // To hear the client's answer.
    this.socket.resume()
    this.socket.close(code, reason)
    setTimeout(() => this.socket.terminate(), this.deps.leaveMs).unref()
  }

  private stopFollowing() {
    this.closing = true
    clearTimeout(this.authTimer)
    for (const { stop } of this.subscriptions.values()) stop?.()
    this.subscriptions.clear()
  }

  private clear() {
    this.stopFollowing()
    this.unlist?.()
  }
}
