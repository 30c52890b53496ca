/** Reads the catalogues of errors as text, so that a code need not be thrown to be known. */
import { globSync, readFileSync } from 'node:fs'
import path from 'node:path'

export interface CatalogueEntry {
  code: string
  status: number
  /** What changes from case to case stands in braces. */
  message: string
  /** Whether the answer may carry `Retry-After`. */
  retryAfter: boolean
}

export interface Catalogue {
  /** As in `live` or `runner`; `platform` for the one that all share. */
  part: string
  file: string
  entries: CatalogueEntry[]
}

const root = path.resolve(import.meta.dirname, '..')
const opening = 'new AppError({'

/** All catalogues, the platform's own first. Entries are sorted by code. */
export function readCatalogues(): Catalogue[] {
  return globSync('server/**/errors.ts', { cwd: root })
    .map(file => ({ part: path.basename(path.dirname(file)), file, entries: entriesOf(file) }))
    .filter(catalogue => catalogue.entries.length > 0)
    .sort((a, b) => rank(a) - rank(b) || a.part.localeCompare(b.part))
}

function rank({ file, part }: Catalogue): number {
  if (part === 'platform') return 0
  return file.includes('/platform/') ? 1 : 2
}

function entriesOf(file: string): CatalogueEntry[] {
  const source = readFileSync(path.join(root, file), 'utf8')
  const entries: CatalogueEntry[] = []
  for (let at = source.indexOf(opening); at >= 0; at = source.indexOf(opening, at + 1)) {
    const fields = source.slice(at + opening.length, endOfBraces(source, at + opening.length))
    // What an entry's arguments are called and fall back to stands between its name and the call.
    const signature = source.slice(source.lastIndexOf('\n  ', source.lastIndexOf('=>', at)), at)
    entries.push(entryOf({ fields, signature, file }))
  }
  return entries.sort((a, b) => a.code.localeCompare(b.code))
}

function entryOf({ fields, signature, file }: { fields: string; signature: string; file: string }): CatalogueEntry {
  const code = /\bcode: '([a-z0-9_]+)'/.exec(fields)?.[1]
  const status = Number(/\bstatus: (\d{3})\b/.exec(fields)?.[1])
  if (code === undefined || !status) throw new Error(`${file}: an entry has no plain code or status: ${fields.trim()}`)
  return { code, status, message: messageOf(fields, signature), retryAfter: /\bretryAfterSeconds\b/.test(fields) }
}

function messageOf(fields: string, signature: string): string {
  const given = /\bmessage:\s*/.exec(fields)
  if (given) return literals(fields.slice(given.index + given[0].length))
  const fallback = /\bmessage = /.exec(signature)
  return fallback ? literals(signature.slice(fallback.index + fallback[0].length)) : ''
}

/** The texts of an expression: one, two chosen between by `?`, or none where a variable stands. */
function literals(expression: string): string {
  const end = /,\s*\n\s*\w+(:|,|$)|,\s+(details|retryAfterSeconds|cause)\b|\)\s*=>/.exec(expression)
  const own = expression.slice(0, end?.index)
  const joined = own.replace(/(['`])\s*\+\s*(['`])/g, '')
  const texts = [...joined.matchAll(/'((?:[^'\\]|\\.)*)'|`((?:[^`\\]|\\.)*)`/g)]
  return texts.map(text => readable(text[1] ?? text[2] ?? '')).join(' / ')
}

function readable(text: string): string {
  const named = text.replace(/\$\{([^}]*)\}/g, (_, expression: string) => `{${nameIn(expression)}}`)
  return named.replace(/\\(.)/g, '$1')
}

/** `retryAfterSeconds` → `retry_after_seconds`; of `known.join(', ')` the subject. */
function nameIn(expression: string): string {
  const subject = /[a-zA-Z.]*[a-zA-Z]/.exec(expression)?.[0].replace(/\.(slice|join|toString)\b.*/, '') ?? expression
  return subject.replace(/.*\./, '').replace(/[A-Z]/g, letter => `_${letter.toLowerCase()}`)
}

/** The index of the brace that closes the one before `from`. */
function endOfBraces(source: string, from: number): number {
  let depth = 1
  for (let at = from; at < source.length; at++) {
    if (source[at] === '{') depth++
    if (source[at] === '}' && --depth === 0) return at
  }
  throw new Error('A brace is never closed.')
}
