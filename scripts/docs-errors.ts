/** `npm run docs:errors` writes docs/errors.md from the catalogues. */
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { type Catalogue, readCatalogues } from './catalogues.ts'

export const errorsPage = path.resolve(import.meta.dirname, '../docs/errors.md')

const intro = `# Errors

Every error is a problem document ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457), \`application/problem+json\`):

\`\`\`json
{
  "type": "urn:capstan:error:not_found",
  "title": "Not Found",
  "status": 404,
  "code": "not_found",
  "detail": "Route not found.",
  "request_id": "0190a6e2-7d60-7b5c-8f7e-0123456789ab"
}
\`\`\`

Programs compare \`code\`, which never changes. \`detail\` is for people and may be reworded. \`details\`, where it is
there, has the facts as fields. \`request_id\` finds the request in the log. Over a WebSocket an error is a frame
\`{"type":"error","code":…,"message":…}\`.

Below, what changes from case to case stands in braces. ↻ marks answers that say in \`Retry-After\` when to try again.
`

const outro = `
This page is made by \`npm run docs:errors\`.
`

export function renderErrors(catalogues = readCatalogues()): string {
  const anchored = new Set<string>()
  return [intro, ...catalogues.map(catalogue => renderCatalogue(catalogue, anchored)), outro].join('')
}

function renderCatalogue({ part, entries }: Catalogue, anchored: Set<string>): string {
  const rows = entries.map(({ code, status, message, retryAfter }) => {
    const anchor = anchored.has(code) ? '' : `<a id="${code}"></a>`
    anchored.add(code)
    return `| ${anchor}\`${code}\` | ${status}${retryAfter ? ' ↻' : ''} | ${cell(message)} |`
  })
  return `\n## ${titleOf(part)}\n\n| code | status | what it says |\n| --- | --- | --- |\n${rows.join('\n')}\n`
}

function titleOf(part: string): string {
  return part === 'platform' ? 'Anywhere' : part[0]!.toUpperCase() + part.slice(1)
}

function cell(message: string): string {
  return message.replaceAll('|', '\\|') || 'What is wrong, in a sentence.'
}

if (import.meta.main) {
  mkdirSync(path.dirname(errorsPage), { recursive: true })
  writeFileSync(errorsPage, renderErrors())
}
