import { errors } from './errors.ts'

/**
 * A parser that stops wherever the bytes that have come end, and goes on with the next ones: it yields when it needs more.
 * So a parser reads as if the file were whole, and holds no more of it than it takes.
 */
export type Walk<T> = Generator<undefined, T, void>

/** Goes through a file once, forwards. */
export interface Reader {
  /** What of the file is at hand; for parsers that look at every byte and then move `at` on themselves. */
  readonly chunk: Buffer
  /** The next byte's place in `chunk`. */
  at: number
  /** The next byte's place in the file. */
  readonly offset: number
  /** Whether there is a next byte; waits for it. */
  more(): Walk<boolean>
  /** The next bytes, which stay where they are; fewer only at the end of the file. */
  peek(count: number): Walk<Buffer>
  /**
   * The next bytes. They may be the sender's own and are not to be changed. Whoever asks bounds `count`.
   * @throws image_truncated
   */
  take(count: number): Walk<Buffer>
  /** @throws image_truncated */
  skip(count: number): Walk<void>
  /** Gives it more; only when a walk has yielded. */
  feed(chunk: Buffer): void
  /** Nothing more will come. */
  end(): void
}

export function makeReader(): Reader {
  let chunk: Buffer = Buffer.alloc(0)
  let at = 0
  let before = 0
  let ended = false

  function* more(): Walk<boolean> {
    while (at >= chunk.length) {
      if (ended) return false
      yield
    }
    return true
  }

  function* peek(count: number): Walk<Buffer> {
    while (chunk.length - at < count && !ended) yield
    return chunk.subarray(at, at + count)
  }

  function* take(count: number): Walk<Buffer> {
    if (chunk.length - at >= count) {
      at += count
      return chunk.subarray(at - count, at)
    }
    const taken = Buffer.allocUnsafe(count)
    for (let filled = 0; filled < count; ) {
      if (!(yield* more())) throw errors.truncated()
      const copied = chunk.copy(taken, filled, at, Math.min(chunk.length, at + count - filled))
      filled += copied
      at += copied
    }
    return taken
  }

  function* skip(count: number): Walk<void> {
    for (let left = count; left > 0; ) {
      if (!(yield* more())) throw errors.truncated()
      const skipped = Math.min(left, chunk.length - at)
      at += skipped
      left -= skipped
    }
  }

  return {
    get chunk() {
      return chunk
    },
    get at() {
      return at
    },
    set at(next) {
      at = next
    },
    get offset() {
      return before + at
    },
    more,
    peek,
    take,
    skip,
    feed(next) {
      const rest = chunk.subarray(at)
      before += at
      chunk = rest.length > 0 ? Buffer.concat([rest, next]) : next
      at = 0
    },
    end() {
      ended = true
    },
  }
}
