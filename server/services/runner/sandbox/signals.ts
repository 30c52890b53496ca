import { constants } from 'node:os'

const NAMES = new Map(Object.entries(constants.signals).map(([name, number]) => [number, name]))
// Node lists two names for each of these numbers; these are the usual ones.
for (const name of ['SIGABRT', 'SIGIO'] as const) NAMES.set(constants.signals[name], name)

export function signalName(number: number): string {
  return NAMES.get(number) ?? `SIG${number}`
}
