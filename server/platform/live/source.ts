import type { Caller } from '../http/guard.ts'

/** One event of a topic. Its service numbers a topic's events 1, 2, 3, … and keeps them in its own table. */
export interface LiveEvent {
  seq: number
  type: string
  data: unknown
  /** Nothing will follow. */
  final?: boolean
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
}
