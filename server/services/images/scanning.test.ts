/** What a scanner may do, and what it may not do to the server. */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { readSettings } from '#platform/config.ts'
import { isAlive } from '#platform/processes.ts'
import { atEnd } from '../../../test/support/at-end.ts'
import { until } from '../../../test/support/until.ts'
import { FileRefused, makeScan } from './scanning.ts'
import { imagesSettings } from './settings.ts'

const folder = await mkdtemp(path.join(tmpdir(), 'capstan-scan-'))
atEnd(() => rm(folder, { recursive: true, force: true }))
const file = path.join(folder, 'file')
const pidFile = path.join(folder, 'pid')
/** More than a pipe holds, so that a scanner which does not read leaves some of it unwritten. */
await writeFile(file, Buffer.alloc(4_000_000, 1))

async function writeScript(name: string, lines: string): Promise<string> {
  const script = path.join(folder, name)
  await writeFile(script, `#!/bin/sh\n${lines}\n`, { mode: 0o700 })
  return script
}

function scanBy(command: string, signal = new AbortController().signal) {
  return makeScan({ IMAGE_SCAN_COMMAND: command, IMAGE_SCAN_URL: undefined })({ path: file, signal })
}

/** A scanner's lines, and how it ends: `undefined` lets the file pass. A rejection nobody hears fails the test, too. */
const cases: { name: string; lines: string; refusal?: string; error?: RegExp }[] = [
  { name: 'one that reads all', lines: 'cat > /dev/null' },
  { name: 'one that has seen enough', lines: 'exit 0' },
  { name: 'one that refuses', lines: 'echo "It is a cat."; echo more; exit 1', refusal: 'It is a cat.' },
  { name: 'one that says nothing', lines: 'exit 1', refusal: 'The scanner refused the file.' },
  {
    name: 'one that says what no text holds',
    lines: String.raw`printf 'a\000b\033[31m\n'; exit 1`,
    refusal: 'a b [31m',
  },
  {
    name: 'one that writes megabytes',
    lines: 'head -c 20000000 /dev/zero | tr "\\000" x; exit 1',
    refusal: 'x'.repeat(500),
  },
  { name: 'one that is killed', lines: 'kill -9 $$', error: /^The scanner ended with SIGKILL\.$/ },
  { name: 'one that fails', lines: 'exit 3', error: /^The scanner ended with 3\.$/ },
]

for (const { name, lines, refusal, error } of cases) {
  test(`a scanner: ${name}`, async () => {
    const scan = scanBy(await writeScript(name.replaceAll(' ', '-'), lines))
    if (refusal === undefined && error === undefined) return await scan
    await assert.rejects(scan, thrown => {
      assert.equal(thrown instanceof FileRefused, refusal !== undefined)
      if (refusal !== undefined) assert.equal((thrown as Error).message, refusal)
      else assert.match((thrown as Error).message, error!)
      return true
    })
  })
}

test('a command of nothing but blanks is refused at the start', () => {
  for (const text of [' ', '   ', '\t\n ']) {
    assert.throws(() => readSettings(imagesSettings, { IMAGE_SCAN_COMMAND: text }), {
      message: `IMAGE_SCAN_COMMAND is "${text}", but it must name a program, or not be set.`,
    })
  }
  assert.equal(readSettings(imagesSettings, { IMAGE_SCAN_COMMAND: ' scan -x ' }).IMAGE_SCAN_COMMAND, ' scan -x ')
})

test('a scanner that cannot be started costs its file a try, and nobody anything else', async () => {
  for (const command of [path.join(folder, 'absent'), file]) {
    await assert.rejects(scanBy(command), error => !(error instanceof FileRefused))
  }
})

test('a scanner that hangs is ended with its job, whether it reads or not, and however it clings to life', async () => {
  for (const reading of ['', 'cat > /dev/null;']) {
    const lines = `trap '' TERM; echo $$ > ${pidFile}; ${reading} for each in $(seq 100); do sleep 0.1; done`
    const controller = new AbortController()
    const scan = scanBy(await writeScript('hangs', lines), controller.signal)
    const pid = async () => Number(await readFile(pidFile, 'utf8').catch(() => '0'))
    await until(async () => (await pid()) > 0)
    controller.abort('cancelled')
    await assert.rejects(scan, { name: 'AbortError' })
    const child = await pid()
    await until(() => !isAlive(child))
    await rm(pidFile)
  }
})
