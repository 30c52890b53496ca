import assert from 'node:assert/strict'
import { realpathSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { detectLanguages, LANGUAGES, type Language } from './languages.ts'
import { makeSandbox } from './sandbox.ts'
import { makeRunner, missing, type Runner } from './testing.ts'
import type { Sandbox } from './types.ts'

let sandbox: Sandbox
let languages: Language[]
let run: Runner

before(async () => {
  languages = await detectLanguages()
  sandbox = await makeSandbox({ runtimes: languages.map(language => language.runtime) })
  run = await makeRunner(sandbox, languages)
})
after(() => sandbox.close())

test('every language found has a version and an interpreter outside of all homes', () => {
  assert.ok(
    languages.some(({ id }) => id === 'javascript'),
    'Node is here, for it runs this test',
  )
  for (const { id, version, runtime } of languages) {
    assert.match(version, /^\d+\.\d+/, id)
    assert.match(runtime.argv[0] ?? '', /^\/(usr|opt\/node)\//, id)
    for (const { to } of runtime.readOnly) assert.doesNotMatch(to, /^\/(home|root|work|etc)/)
  }
})

test('all languages share their binds, so that they share warm boxes', () => {
  const [first, ...others] = languages
  for (const other of others) assert.deepEqual(other.runtime.readOnly, first?.runtime.readOnly)
})

test('no two languages answer to one name', () => {
  const names = LANGUAGES.flatMap(({ id, aliases }) => [id, ...aliases])
  assert.equal(new Set(names).size, names.length)
})

test('another Node can be named', async () => {
  const found = await detectLanguages({ node: process.execPath })
  const bind = found[0]?.runtime.readOnly.find(({ to }) => to.startsWith('/opt/node'))
  assert.ok(realpathSync(process.execPath).startsWith('/usr/') || bind?.from === realpathSync(process.execPath))
})

const programs = [
  { language: 'python', source: 'import sys, json, ssl, sqlite3\nprint("ü", sys.version_info[0])', expected: 'ü 3\n' },
  { language: 'python', source: 'print(__name__, __file__)', expected: '__main__ /box/work/main.py\n' },
  {
    language: 'javascript',
    source: 'const { join } = require("node:path"); console.log(join("a", "b"), "ü")',
    expected: 'a/b ü\n',
  },
  {
    language: 'javascript',
    source: 'import { join } from "node:path"; console.log(await Promise.resolve(join("a", "b")))',
    expected: 'a/b\n',
  },
  {
    language: 'javascript',
    source: 'console.log(require("node:fs").readFileSync("/dev/stdin", "utf8"))',
    expected: 'input\n',
  },
  {
    language: 'javascript',
    source: 'process.stdin.on("data", (d) => console.log(String(d).trim().toUpperCase()))',
    expected: 'INPUT\n',
  },
  {
    language: 'typescript',
    source: 'import { join } from "node:path"\nconst a: string = join("a", "b")\nconsole.log(a satisfies string)',
    expected: 'a/b\n',
  },
  {
    language: 'typescript',
    source: 'enum Color { Red = 3 }\nconst f = (x: number): number => x + Color.Red\nconsole.log(f(1))',
    expected: '4\n',
  },
  {
    language: 'bash',
    source: 'read -r x; echo "$x" | tr a-z A-Z | tee /dev/stderr; seq 3 | awk \'{ s += $1 } END { print s }\'',
    expected: 'INPUT\n6\n',
  },
]

for (const { language, source, expected } of programs) {
  test(`${language} runs ${JSON.stringify(source.slice(0, 50))}`, async t => {
    const why = missing(sandbox, languages, [language])
    if (why) return t.skip(why)
    const result = await run({ language, source, stdin: 'input' })
    assert.equal(result.stdout.toString().trimEnd(), expected.trimEnd(), result.stderr.toString())
    if (language !== 'bash') assert.equal(result.stderr.toString(), '')
  })
}

test('a file beside the source can be imported', async t => {
  const why = missing(sandbox, languages, ['python', 'typescript'])
  if (why) return t.skip(why)
  const files = [
    { name: 'lib/helper.py', content: Buffer.from('def f(): return 5') },
    { name: 'lib/helper.ts', content: Buffer.from('export const f = (): number => 5') },
  ]
  const python = await run({ language: 'python', source: 'from lib.helper import f\nprint(f())', files })
  assert.equal(python.stdout.toString(), '5\n', python.stderr.toString())
  const typescript = await run({
    language: 'typescript',
    source: 'import { f } from "./lib/helper.ts"\nconsole.log(f())',
    files,
  })
  assert.equal(typescript.stdout.toString(), '5\n', typescript.stderr.toString())
})
