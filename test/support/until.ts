import { setTimeout as sleep } from 'node:timers/promises'

/** Resolves when the condition holds; fails with its text when that takes too long. */
export async function until(condition: () => boolean | Promise<boolean>, timeoutMs = 15_000): Promise<void> {
  const deadline = Date.now() + timeoutMs
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`Waited ${timeoutMs} ms in vain for: ${condition}`)
    await sleep(10)
  }
}
