/** What was made of the contracts is what they say now. */
import assert from 'node:assert/strict'
import { globSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { generate, generatedFolder, whyNot } from '../scripts/proto.ts'

const root = path.resolve(import.meta.dirname, '..')

test('server/proto is what proto/ says', { skip: whyNot() ?? false }, () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'capstan-proto-'))
  try {
    generate(folder)
    assert.deepEqual(
      Object.keys(readAll(root)),
      Object.keys(readAll(folder)),
      'Other files: `npm run proto` makes them.',
    )
    for (const [file, text] of Object.entries(readAll(folder)))
      assert.ok(text === readAll(root)[file], `${file} is out of date: \`npm run proto\` makes it anew.`)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})

function readAll(base: string): Record<string, string> {
  const files = globSync(`${generatedFolder}/**/*.{js,ts}`, { cwd: base }).sort()
  return Object.fromEntries(files.map(file => [file, readFileSync(path.join(base, file), 'utf8')]))
}
