import type { Context } from '../stop.ts'
import type { RunWish } from './api.ts'

/** One program in several languages. */
export type Program = Partial<Record<string, string>>

/** The program in the first of its languages that this machine has. */
export function pick({ languages }: Context, program: Program): RunWish {
  const language = Object.keys(program).find(id => languages.some(each => each.id === id))
  if (language === undefined) throw new Error(`None of ${Object.keys(program).join(', ')} can be run here.`)
  return { language, source: program[language]! }
}
