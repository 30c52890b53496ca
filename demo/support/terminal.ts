/** What the tour prints at its end; the rest it has from the commands. */
import { pad, paint, print, seconds } from '../../server/commands/terminal.ts'

export { bar, pad, paint, print, seconds } from '../../server/commands/terminal.ts'

export interface Row {
  title: string
  outcome: string
  tookMs: number
  mark: 'done' | 'skipped' | 'failed'
}

const marks = { done: paint('green', '✓'), skipped: paint('yellow', '–'), failed: paint('red', '✗') }

export function printTable(rows: Row[]) {
  const width = Math.max(...rows.map(row => row.title.length))
  print()
  for (const { title, outcome, tookMs, mark } of rows) {
    print(`${marks[mark]} ${pad(title, width)}  ${seconds(tookMs).padStart(6)}  ${outcome}`)
  }
}
