/** The rules of the house that a machine can check: who imports whom, whose tables are whose, what is documented. */
import assert from 'node:assert/strict'
import { existsSync, globSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { readCatalogues } from '../scripts/catalogues.ts'
import { configPage, renderConfig } from '../scripts/docs-config.ts'
import { errorsPage, renderErrors } from '../scripts/docs-errors.ts'
import { migrationSets } from '../server/app.ts'

const root = path.resolve(import.meta.dirname, '..')
/** Tests and what only they use. */
const isOfTests = (file: string) => /\.test\.ts$|\/(test-kit|test-support|testing)\.ts$/.test(file)
const joiners = ['server/main.ts', 'server/app.ts']
const serverFiles = globSync('server/**/*.ts', { cwd: root }).filter(file => !isOfTests(file))

interface Import {
  file: string
  /** As written. */
  specifier: string
  /** Relative to the root; undefined for a package. */
  target: string | undefined
  typesOnly: boolean
}

test('imports run one way', () => {
  const wrong = serverFiles.flatMap(importsOf).flatMap(each => {
    const fault = faultOf(each)
    return fault ? [`${each.file} imports ${each.specifier}: ${fault}`] : []
  })
  assert.deepEqual(wrong, [])
})

test('the rules of imports catch what they are for', () => {
  const cases: [file: string, code: string, fault: RegExp | undefined][] = [
    ['server/platform/http/a.ts', `import { x } from '../log.ts'`, undefined],
    ['server/platform/http/a.ts', `import { x } from '#platform/log.ts'`, /relative/],
    ['server/platform/a.ts', `import { x } from '../services/chat/index.ts'`, /platform knows no service/],
    ['server/platform/a.ts', `import { x } from '../app.ts'`, /only main.ts/],
    ['server/services/chat/a.ts', `import {\n  x,\n} from '#platform/log.ts'`, undefined],
    ['server/services/chat/a.ts', `import { x } from '../../platform/log.ts'`, /#platform/],
    ['server/services/chat/a.ts', `import type { X } from '#services/ledger/index.ts'`, undefined],
    ['server/services/chat/a.ts', `import { type X, type Y } from '#services/ledger/index.ts'`, undefined],
    ['server/services/chat/a.ts', `import { type X, y } from '#services/ledger/index.ts'`, /types/],
    ['server/services/chat/a.ts', `export * from '../ledger/store.ts'`, /index.ts/],
    ['server/services/chat/a.ts', `const x = await import('#services/ledger/ledger.ts')`, /index.ts/],
    ['server/services/chat/a.ts', `import { x } from './index.ts'`, /own index.ts/],
    ['server/services/chat/box/a.ts', `import { x } from '../index.ts'`, /own index.ts/],
    ['server/services/chat/a.ts', `import { x } from './box/index.ts'`, undefined],
    ['server/services/chat/a.ts', `import { x } from './test-support.ts'`, /tests/],
    ['server/services/chat/a.ts', `import { x } from '../../../bench/x.ts'`, /leaves server/],
    ['server/app.ts', `import { x } from '#services/chat/index.ts'`, undefined],
    ['server/app.ts', `import { x } from '#services/chat/store.ts'`, /index.ts/],
  ]
  for (const [file, code, expected] of cases) {
    const [found] = importsIn(file, code)
    const fault = faultOf(found!)
    if (expected) assert.match(fault ?? 'no fault', expected, `${file}: ${code}`)
    else assert.equal(fault, undefined, `${file}: ${code}`)
  }
})

function importsOf(file: string): Import[] {
  return importsIn(file, readFileSync(path.join(root, file), 'utf8'))
}

function importsIn(file: string, code: string): Import[] {
  const statements = code.matchAll(/^(?:import|export)\s([^'"`;]*?\sfrom\s+)?'([^']+)'|\bimport\('([^']+)'\)/gm)
  return [...statements].map(([, names = '', stated, called]) => {
    const specifier = (stated ?? called)!
    return { file, specifier, target: targetOf(file, specifier), typesOnly: called === undefined && isTypes(names) }
  })
}

function isTypes(names: string): boolean {
  if (/^type\s/.test(names)) return true
  const inBraces = /^\{([^}]*)\}/.exec(names)?.[1]
  return inBraces?.split(',').every(name => /^\s*(type\s|$)/.test(name)) ?? false
}

function targetOf(file: string, specifier: string): string | undefined {
  if (specifier.startsWith('.')) return path.join(path.dirname(file), specifier)
  if (specifier.startsWith('#')) return `server/${specifier.slice(1)}`
  return undefined
}

function faultOf({ file, specifier, target, typesOnly }: Import): string | undefined {
  if (target === undefined) return undefined
  if (isOfTests(target)) return 'this is for tests'
  if (!target.startsWith('server/')) return 'this leaves server/'
  const own = serviceOf(file)
  const other = serviceOf(target)
  if (other !== undefined && other !== own) {
    if (file.startsWith('server/platform/')) return 'platform knows no service'
    if (target !== `server/services/${other}/index.ts`) return 'the door of a service is its index.ts'
    if (!typesOnly && !joiners.includes(file)) return 'services know each other by their types'
    return undefined
  }
  if (joiners.includes(file)) return undefined
  if (joiners.includes(target)) return 'only main.ts knows app.ts'
  if (target.startsWith('server/platform/')) return platformFault(file, specifier)
  const folder = path.dirname(target)
  if (path.basename(target) === 'index.ts' && file.startsWith(`${folder}/`))
    return 'import the file, not its own index.ts'
  return undefined
}

function platformFault(file: string, specifier: string): string | undefined {
  const inside = file.startsWith('server/platform/')
  if (inside && specifier.startsWith('#')) return 'platform imports itself by relative paths'
  if (!inside && !specifier.startsWith('#')) return 'from outside it is #platform/…'
  return undefined
}

function serviceOf(file: string): string | undefined {
  return /^server\/services\/([^/]+)\//.exec(file)?.[1]
}

test('each part’s SQL touches no other part’s tables', () => {
  const wrong = globSync('server/**/*.{ts,sql}', { cwd: root })
    .filter(file => !isOfTests(file))
    .flatMap(file =>
      foreignTables(ownerOf(file), readFileSync(path.join(root, file), 'utf8')).map(at => `${file}: ${at}`),
    )
  assert.deepEqual(wrong, [])
  assert.deepEqual(foreignTables('runner', 'select 1 from runner.runs join jobs.waiting on true'), [
    'join jobs.waiting',
  ])
})

const schemas = migrationSets.map(set => set.name).join('|')

function foreignTables(owner: string | undefined, code: string): string[] {
  if (owner === undefined) return []
  const keywords = 'from|join|into|update|table|references|truncate|only|on|exists|using|call'
  const named = code.matchAll(new RegExp(`\\b(?:${keywords})\\s+(${schemas})\\.[a-z_]+`, 'g'))
  return [...named].filter(match => match[1] !== owner).map(match => match[0])
}

/** The schema of the part a file belongs to: jobs lies inside platform, yet has its own. */
function ownerOf(file: string): string | undefined {
  if (file.startsWith('server/platform/')) return file.startsWith('server/platform/jobs/') ? 'jobs' : 'platform'
  return serviceOf(file)
}

test('every error code is documented', () => {
  const catalogues = readCatalogues()
  assert.ok(catalogues.length > 0)
  assert.deepEqual(codesWithTwoStatuses(), [], 'a code has one status wherever it stands')
  assertPage({ file: errorsPage, wanted: renderErrors(catalogues), command: 'npm run docs:errors' })

  function codesWithTwoStatuses() {
    const statuses = Map.groupBy(
      catalogues.flatMap(catalogue => catalogue.entries),
      entry => entry.code,
    )
    return [...statuses]
      .filter(([, entries]) => new Set(entries.map(entry => entry.status)).size > 1)
      .map(([code]) => code)
  }
})

test('every setting is documented', () => {
  assertPage({ file: configPage, wanted: renderConfig(), command: 'npm run docs:config' })
})

function assertPage({ file, wanted, command }: { file: string; wanted: string; command: string }) {
  const name = path.relative(root, file)
  assert.ok(existsSync(file), `There is no ${name}: \`${command}\` writes it.`)
  const present = new Set(readFileSync(file, 'utf8').split('\n'))
  const missing = wanted.split('\n').filter(line => !present.has(line))
  const shown = missing.slice(0, 5).join('\n')
  assert.ok(missing.length === 0, `${name} lacks ${missing.length} lines (\`${command}\` writes them):\n${shown}`)
  assert.equal(readFileSync(file, 'utf8'), wanted, `${name} is out of date: \`${command}\` writes it anew.`)
}

test('nothing is put off by a note in the code', () => {
  // Taken apart, so that this file does not hold them itself.
  const notes = new RegExp(
    `\\b(${['TO', 'FIX', 'XX'].map((half, index) => half + ['DO', 'ME', 'X'][index]).join('|')})\\b`,
  )
  const wrong = ownTexts('.').flatMap(file =>
    readFileSync(path.join(root, file), 'utf8')
      .split('\n')
      .flatMap((line, index) => (notes.test(line) ? [`${file}:${index + 1}: ${line.trim().slice(0, 100)}`] : [])),
  )
  assert.deepEqual(wrong, [])
})

/** All texts of the tree but what was installed, built or made by running. */
function ownTexts(folder: string): string[] {
  return readdirSync(path.join(root, folder), { withFileTypes: true }).flatMap(entry => {
    const file = path.join(folder, entry.name)
    if (entry.isDirectory()) return /^(node_modules|\.git|data|dist|results)$/.test(entry.name) ? [] : ownTexts(file)
    const isText = /\.(ts|tsx|js|mjs|py|sh|sql|md|json|ya?ml|toml|proto|html|css|tpl)$|^(Makefile|Dockerfile|run)$/
    return isText.test(entry.name) && entry.name !== 'package-lock.json' ? [file] : []
  })
}
