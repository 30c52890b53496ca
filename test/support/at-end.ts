import { after } from 'node:test'

const actions: (() => unknown)[] = []

/** Runs when the file's tests are done, the latest first, so that what stands on something goes before it. */
export function atEnd(action: () => unknown) {
  if (actions.length === 0) after(runAll)
  actions.push(action)
}

async function runAll() {
  for (const action of actions.splice(0).reverse()) await action()
}
