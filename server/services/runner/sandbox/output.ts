/** Keeps the first bytes of a stream and counts the rest. */
export interface Capture {
  /** Returns the part that was kept. */
  push(chunk: Buffer): Buffer
  readonly seenBytes: number
  readonly truncated: boolean
  bytes(): Buffer
}

export function makeCapture(limitBytes: number): Capture {
  const kept: Buffer[] = []
  let keptBytes = 0
  let seenBytes = 0
  return {
    push(chunk) {
      seenBytes += chunk.length
      const part = chunk.subarray(0, limitBytes - keptBytes)
      if (part.length > 0) kept.push(part)
      keptBytes += part.length
      return part
    },
    get seenBytes() {
      return seenBytes
    },
    get truncated() {
      return seenBytes > limitBytes
    },
    bytes: () => Buffer.concat(kept),
  }
}

const MIB = 1024 * 1024

/** How much of one stream is read and thrown away before the program is ended for it. */
export function floodBytes(outputBytes: number): number {
  return Math.max(outputBytes, Math.min(16 * outputBytes + MIB, 64 * MIB))
}
