/** Notes when something was last used and writes it down now and then, so that using it costs no write. */
export interface UseLog {
  note(id: string, atMs: number): void
  flush(): Promise<void>
}

const batchSize = 1000

export function makeUseLog(write: (uses: { id: string; usedAt: Date }[]) => Promise<void>): UseLog {
  let used = new Map<string, number>()
  return {
    note(id, atMs) {
      used.set(id, atMs)
    },
    async flush() {
      const uses = [...used].map(([id, atMs]) => ({ id, usedAt: new Date(atMs) }))
      used = new Map()
      for (let at = 0; at < uses.length; at += batchSize) await write(uses.slice(at, at + batchSize))
    },
  }
}
