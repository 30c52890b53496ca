/** What the tour prints: aligned, and in colour only where a person looks. */
import { stripVTControlCharacters, styleText } from 'node:util'

type Style = Parameters<typeof styleText>[0]

export function paint(style: Style, text: string): string {
  return styleText(style, text, { stream: process.stdout })
}

export function print(line = '') {
  process.stdout.write(`${line}\n`)
}

export function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}

/** Pads by what is seen. */
export function pad(text: string, width: number): string {
  return text + ' '.repeat(Math.max(0, width - stripVTControlCharacters(text).length))
}

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
