/** `make check`: types, style and the rules of the house, at once. Prints a line each, and in full what is wrong. */
import { execFile } from 'node:child_process'
import path from 'node:path'

const root = path.resolve(import.meta.dirname, '..')
const bin = path.join(root, 'node_modules/.bin')
const onTerminal = process.stdout.isTTY === true

const checks = [
  { name: 'types', command: path.join(bin, 'tsc'), args: ['--noEmit', '--pretty', String(onTerminal)] },
  {
    name: 'style',
    command: path.join(bin, 'biome'),
    args: ['check', '--error-on-warnings', `--colors=${onTerminal ? 'force' : 'off'}`],
  },
  { name: 'house', command: process.execPath, args: ['--test', '--test-reporter=spec', 'test/house.test.ts'] },
]

const outcomes = await Promise.all(checks.map(runCheck))
process.exit(outcomes.every(Boolean) ? 0 : 1)

async function runCheck({ name, command, args }: (typeof checks)[number]): Promise<boolean> {
  const begun = performance.now()
  const { ok, output } = await runCommand(command, args)
  const seconds = ((performance.now() - begun) / 1000).toFixed(1)
  console.log(`${name}  ${ok ? 'ok' : 'wrong'}  ${seconds} s`)
  if (!ok) console.log(`\n${output.trimEnd()}\n`)
  return ok
}

function runCommand(command: string, args: string[]): Promise<{ ok: boolean; output: string }> {
  // The linters' launchers look for `node` on the path.
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH ?? ''}` }
  return new Promise(resolve => {
    execFile(command, args, { cwd: root, env, maxBuffer: 64 * 1024 * 1024 }, (error, stdout, stderr) => {
      const words = `${stdout}${stderr}` || (error?.message ?? '')
      resolve({ ok: error === null, output: words })
    })
  })
}
