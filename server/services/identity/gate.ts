import { errors } from '#platform/errors.ts'

/** Lets `concurrency` tasks run at once and `waitingMax` wait in order; who comes when both are full is refused. */
export interface Gate {
  /** @throws overloaded */
  run<T>(task: () => Promise<T>): Promise<T>
}

export function makeGate(options: { name: string; concurrency: number; waitingMax: number }): Gate {
  let running = 0
  const waiting: (() => void)[] = []
  return {
    async run(task) {
      if (running < options.concurrency) running++
      else if (waiting.length >= options.waitingMax) throw errors.overloaded(`The queue of ${options.name}`)
      else await new Promise<void>(resolve => waiting.push(resolve))
      try {
        return await task()
      } finally {
        const next = waiting.shift()
        // The place is handed over, so that nobody who comes in between takes it.
        if (next) next()
        else running--
      }
    },
  }
}
