/** What commands and the tour print: aligned, and in colour only where a person looks. */
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

const fullBlock = '█'
const emptyBlock = '░'
/** The last block of a bar, by eighths. */
const blocks = ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉']

/** A bar as long as the share is of the width, to an eighth of a sign. @param share from 0 to 1 */
export function bar(share: number, width: number): string {
  const eighths = Math.round(Math.min(1, Math.max(0, share)) * width * 8)
  return fullBlock.repeat(Math.floor(eighths / 8)) + blocks[eighths % 8]!
}

export interface Progress {
  /** Writes the last state and goes to the next line. */
  end(): void
}

const barWidth = 30
const redrawMs = 100
const clearLine = '\r\x1b[K'

/** A bar on stderr where a person looks, drawn anew every so often; nothing else. */
export function showProgress(state: () => { share: number; words: string }): Progress {
  const { stderr } = process
  if (!stderr.isTTY) return { end() {} }
  const draw = () => {
    const { share, words } = state()
    const full = Math.round(Math.min(1, share) * barWidth)
    stderr.write(`${clearLine}${fullBlock.repeat(full)}${emptyBlock.repeat(barWidth - full)} ${words}`)
  }
  const timer = setInterval(draw, redrawMs)
  return {
    end() {
      clearInterval(timer)
      draw()
      stderr.write('\n')
    },
  }
}
