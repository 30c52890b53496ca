import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { chmodSync, copyFileSync, cpSync, linkSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

// The same code as a user without any powers, on a copy, since the checkout may lie where only root can read.

const PROGRAM = `
const { makeSandbox, detectLanguages, DEFAULT_LIMITS } = await import(process.argv[1])
const languages = await detectLanguages()
const bash = languages.find(({ id }) => id === 'bash')
const python = languages.find(({ id }) => id === 'python')
const sandbox = await makeSandbox({ runtimes: [bash.runtime], warm: 0, boxesMax: 1 })
const run = async (language, source, limits) => {
  const files = [{ name: language.sourceFile, content: Buffer.from(source) }]
  const result = await sandbox.execute({ runtime: language.runtime, files, run: { argv: language.argv(), limits: { ...DEFAULT_LIMITS, ...limits } } })
  return { status: result.status, code: result.exitCode, out: result.stdout.toString() }
}
const results = !sandbox.facts.available ? [] : [
  await run(bash, 'echo hello; exit 3'),
  await run(bash, 'chmod 000 /proc/self/fd/1; kill -STOP 0', { wallMs: 300 }),
  await run(bash, 'cat /etc/shadow; ls /home; echo again', {}),
  python && await run(python, 'b = []\\nwhile True: b.append(b"x" * (1 << 20))', { memoryBytes: 64 << 20 }),
  python && await run(python, 'import os\\nwhile True:\\n  try: os.fork()\\n  except OSError: pass', { processes: 16, wallMs: 300, memoryBytes: 512 << 20 }),
  await run(bash, 'echo last'),
]
await sandbox.close()
console.log(JSON.stringify({ facts: sandbox.facts, results, descriptors: (await import('node:fs')).readdirSync('/proc/self/fd').length }))
`

test('a user without powers gets the same sandbox, limited by rlimits and sampling', t => {
  if (process.getuid?.() !== 0) return t.skip('the other tests already run without powers')
  const folder = mkdtempSync(join(tmpdir(), 'capstan-unprivileged-'))
  t.after(() => rmSync(folder, { recursive: true, force: true }))
  chmodSync(folder, 0o777)
  cpSync(import.meta.dirname, join(folder, 'sandbox'), { recursive: true, filter: path => !path.endsWith('.test.ts') })
  const user = ['--reuid=54321', '--regid=54321', '--clear-groups', '--bounding-set=-all']
  const binary = join(folder, 'node')
  placeNode(binary)
  const node = [binary, '--input-type=module', '-e', PROGRAM, join(folder, 'sandbox/index.ts')]
  const env = { PATH: process.env.PATH, TMPDIR: folder, HOME: folder }
  const child = spawnSync('setpriv', [...user, '--', ...node], { env, cwd: '/', encoding: 'utf8', timeout: 60_000 })
  const reachable = spawnSync('setpriv', [...user, '--', binary, '--version'], {
    env,
    cwd: '/',
    encoding: 'utf8',
  })
  if (reachable.status !== 0) return t.skip(`another user cannot run Node: ${reachable.stderr || reachable.error}`)
  assert.equal(child.status, 0, child.stderr)
  const { facts, results } = JSON.parse(child.stdout)
  if (!facts.available) return t.skip(facts.sentence)
  assert.equal(facts.memoryLimitBy, 'rlimit')
  assert.match(facts.sentence, /because .*cgroup/)
  const [hello, stopped, reading, memory, forks, last] = results
  assert.deepEqual(hello, { status: 'failed', code: 3, out: 'hello\n' })
  assert.equal(stopped.status, 'timed_out')
  assert.equal(reading.out, 'again\n')
  if (memory) assert.equal(memory.status, 'out_of_memory')
  if (forks) assert.ok(['timed_out', 'failed'].includes(forks.status), forks.status)
  assert.equal(last.out, 'last\n')
})

/** Our own Node may lie where the other user cannot come; a second name for it costs nothing where the disk is the same. */
function placeNode(at: string) {
  const own = realpathSync(process.execPath)
  try {
    linkSync(own, at)
  } catch {
    copyFileSync(own, at)
  }
}
