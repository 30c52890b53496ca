import type { Caller } from '../http/guard.ts'

/** One event of a topic. Its service numbers a topic's events 1, 2, 3, … and keeps them in its own table. */
export interface LiveEvent {
  seq: number
  type: string
  data: unknown
  /** Nothing will follow. */
  final?: boolean
  /**
   * Ids of users whose right to follow ended with this event. They are given it, and nothing after it unless the
   * source, asked again, lets them.
   */
  ends?: readonly string[]
}

/** What a service tells the platform about its topics, `<kind>/<id>`. */
export interface TopicSource {
  kind: string
  /** Throws an AppError (403 or 404) when the caller may not follow it. Asked again while the caller follows. */
  authorize(caller: Caller, id: string): Promise<void>
  /** Events numbered above `after`, ascending, at most `limit`. */
  read(id: string, after: number, limit: number): Promise<LiveEvent[]>
  /** The newest number of each topic, 0 or nothing for one without events. At most 500 ids a call. */
  heads(ids: readonly string[]): Promise<Map<string, number>>
  /** Followers are told who else follows, and so is whoever asks `live.present`. */
  presence?: boolean
  /** The name by which a follower is shown as present, of at most 128 characters. Without it: the caller's user id. */
  presenceOf?(caller: Caller): Promise<string> | string
}

/** Something that is told to those who follow a topic just now, and kept nowhere. */
export interface LiveSignal {
  type: string
  data: unknown
}

/** What a client may ask for over its WebSocket. */
export interface LiveCall {
  /** `<service>.<verb>`, such as `chats.send`. */
  name: string
  /** What an API key needs to make this call. */
  scope?: string
  /**
   * Does it. Calls of one connection are begun in the order in which they came, and not waited for in between.
   * @param params as the client sent them, not checked; undefined when it sent none
   */
  run(caller: Caller, params: unknown): Promise<unknown>
}
