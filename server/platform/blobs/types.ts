import type { Readable } from 'node:stream'

export interface BlobInfo {
  key: string
  bytes: number
  modifiedAt: Date
}

/** First and last byte, both included, as in an HTTP Range header. */
export interface ByteRange {
  start: number
  end: number
}

export interface Blob {
  /** The bytes asked for. Whoever has it must read it to its end or destroy it. */
  stream: Readable
  /** Of the whole blob, in bytes. */
  bytes: number
}

/**
 * Where bytes are kept: a folder or a bucket. Keys are words of `a-z 0-9 - _ .` joined by `/`, never from a user.
 * A store that is full or cannot be reached throws `blob_store_unavailable` (503), whatever was asked of it.
 */
export interface BlobStore {
  /** For a person, such as `file:/var/lib/capstan/blobs` or `s3://bucket/prefix`; without secrets. */
  readonly description: string
  /**
   * Keeps the bytes under the key, instead of what was there. They are durable when this resolves; when it rejects (the
   * source failed, the signal was aborted, the store is full) nothing new stands under the key.
   *
   * `durable: false` is for what can be made again by somebody who knows its length: when the machine stops soon after,
   * the blob may be gone, or shorter than it was. A process that dies leaves it whole or not there at all.
   */
  put(
    key: string,
    source: Readable | Buffer,
    options?: { signal?: AbortSignal; durable?: boolean },
  ): Promise<{ bytes: number }>
  /** The same with a file of this machine, which may be gone afterwards. */
  putFile(key: string, path: string): Promise<{ bytes: number }>
  /** Undefined where there is none. The range must lie inside the blob. */
  get(key: string, range?: ByteRange): Promise<Blob | undefined>
  find(key: string): Promise<BlobInfo | undefined>
  /**
   * Calls `use` with a path under which the blob can be read, only meanwhile. Undefined where there is none.
   *
   * With `trusting`, whoever is sure that there is one saves the look before: where there is none after all, `use` may
   * be called with a path that leads nowhere, and if that makes it fail, the answer is undefined.
   */
  withFile<T>(key: string, use: (path: string) => Promise<T>, options?: { trusting?: boolean }): Promise<T | undefined>
  /** Keys that are not there are no error. */
  delete(keys: readonly string[]): Promise<void>
  /** In the order of the keys, those after `after`. */
  list(prefix: string, options: { after?: string; limit: number }): Promise<BlobInfo[]>
  /** Removes what puts left behind that began before that time and never ended. Answers how many. */
  sweepUnfinished(before: Date): Promise<number>
  close(): Promise<void>
}
