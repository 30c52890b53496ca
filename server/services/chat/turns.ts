/**
 * Lets what was begun in an order go on in that order, however long each takes to be prepared: a client that does not
 * wait between its messages has them numbered as it sent them.
 */
export interface Turns {
  /** Resolves with what was prepared when all that began before under the same key have resolved or failed. */
  take<T>(key: string, prepared: Promise<T>): Promise<T>
}

export function makeTurns(): Turns {
  const last = new Map<string, Promise<unknown>>()
  return {
    async take(key, prepared) {
      const before = last.get(key)
      const turn = before === undefined ? prepared : before.then(() => prepared)
      const settled = turn.catch(() => {})
      last.set(key, settled)
      try {
        return await turn
      } finally {
        if (last.get(key) === settled) last.delete(key)
      }
    },
  }
}
