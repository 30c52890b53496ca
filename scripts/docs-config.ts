/** `npm run docs:config` writes docs/configuration.md from the tables of settings. */
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import type { SettingsTable, Variable } from '#platform/config.ts'
import { settingsTables } from '../server/app.ts'

export const configPage = path.resolve(import.meta.dirname, '../docs/configuration.md')

/** Defaults that follow from the machine; the page must not depend on where it was made. */
const defaultsByMachine: Record<string, string> = {
  RUN_CONCURRENCY: '4 a CPU, at least 4',
  RUN_WARM_BOXES: '1 a CPU, at least 2',
}

const intro = `# Configuration

Capstan reads its settings from the environment, once, when it starts. A wrong one stops the start with a sentence that
says what would be right. \`capstan config\` lists them with the values that hold.
`

const outro = `
This page is made by \`npm run docs:config\`.
`

export function renderConfig(tables: Record<string, SettingsTable> = settingsTables): string {
  const parts = Object.entries(tables).map(([part, table]) => {
    const rows = Object.entries(table).map(([name, variable]) => renderRow(name, variable))
    return `\n## ${part[0]!.toUpperCase()}${part.slice(1)}\n\n| variable | default | what it decides |\n| --- | --- | --- |\n${rows.join('\n')}\n`
  })
  return [intro, ...parts, outro].join('')
}

function renderRow(name: string, variable: Variable<unknown>): string {
  const about = variable.about.replaceAll('|', '\\|')
  return `| \`${name}\` | ${defaultsByMachine[name] ?? renderDefault(variable.fallback)} | ${about} |`
}

function renderDefault(fallback: unknown): string {
  if (fallback === undefined || fallback === '') return 'not set'
  if (Array.isArray(fallback)) return fallback.length > 0 ? `\`${fallback.join(',')}\`` : 'none'
  return `\`${fallback}\``
}

if (import.meta.main) {
  mkdirSync(path.dirname(configPage), { recursive: true })
  writeFileSync(configPage, renderConfig())
}
