import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { chmodSync, globSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, type TestContext, test } from 'node:test'
import { InvalidExecution, SandboxError } from './errors.ts'
import type { Language } from './languages.ts'
import { DEFAULT_LIMITS, makeSandbox } from './sandbox.ts'
import {
  boxesOf,
  commandLine,
  descendantsOf,
  findLanguages,
  MIB,
  makeRunner,
  missing,
  processesWith,
  type Runner,
  until,
} from './testing.ts'
import type { Sandbox } from './types.ts'

const groupsOf = (pid: number) => globSync(`/sys/fs/cgroup/**/capstan-${pid}-*`)

for (const cgroups of ['auto', 'none'] as const) {
  describe(`the sandbox, cgroups: ${cgroups}`, () => {
    let sandbox: Sandbox
    let languages: Language[]
    let run: Runner
    let why: string | false

    before(async () => {
      languages = await findLanguages()
      sandbox = await makeSandbox({ runtimes: languages.map(language => language.runtime), cgroups })
      run = await makeRunner(sandbox, languages)
      why = missing(sandbox, languages, ['python', 'bash', 'javascript'])
    })
    after(() => sandbox.close())

    /** A test that is skipped, saying so, where programs cannot be run. */
    function check(name: string, body: () => Promise<void>): void {
      test(name, { timeout: 60_000 }, async t => {
        if (why) return t.skip(why)
        await body()
      })
    }

    const endings = [
      { source: 'exit 0', status: 'succeeded', exitCode: 0, signal: null },
      { source: 'exit 7', status: 'failed', exitCode: 7, signal: null },
      { source: 'exit 137', status: 'failed', exitCode: 137, signal: null },
      { source: 'exit 139', status: 'failed', exitCode: 139, signal: null },
      { source: 'exit 255', status: 'failed', exitCode: 255, signal: null },
      { source: 'kill -KILL $$', status: 'failed', exitCode: null, signal: 'SIGKILL' },
      { source: 'kill -SEGV $$', status: 'failed', exitCode: null, signal: 'SIGSEGV' },
      { source: 'kill -ABRT $$', status: 'failed', exitCode: null, signal: 'SIGABRT' },
      { source: 'kill -FPE $$', status: 'failed', exitCode: null, signal: 'SIGFPE' },
      { source: 'kill -TERM $$', status: 'failed', exitCode: null, signal: 'SIGTERM' },
      { source: 'kill -USR1 $$', status: 'failed', exitCode: null, signal: 'SIGUSR1' },
    ]
    for (const { source, ...expected } of endings) {
      check(`"${source}" is told apart from every other ending`, async () => {
        const { status, exitCode, signal } = await run({ language: 'bash', source })
        assert.deepEqual({ status, exitCode, signal }, expected)
      })
    }

    check('a program gets its input, its arguments and nothing of our environment', async () => {
      const source = 'import sys, os\nprint(sys.argv[1:], repr(sys.stdin.read()), sorted(os.environ))'
      const args = ['a b', "it's", '"', '$HOME', '\n', 'ü', '-x', '']
      const result = await run({ language: 'python', source, args, stdin: "line\n'quoted'\n" })
      const names = "['HOME', 'LANG', 'NODE_DISABLE_COLORS', 'PATH', 'PWD', 'PYTHONDONTWRITEBYTECODE', 'TMPDIR']"
      const expected = `['a b', "it's", '"', '$HOME', '\\n', 'ü', '-x', ''] "line\\n'quoted'\\n" ${names}\n`
      assert.equal(result.stdout.toString(), expected)
    })

    check('input and files keep every byte, small or large', async () => {
      const bytes = (length: number) =>
        Buffer.from(Array.from({ length }, (_, index) => (index * 7 + (index >> 8)) & 255))
      for (const length of [1, 300, 70_000, 3_000_000]) {
        const source =
          'import sys, hashlib\nh = lambda b: hashlib.sha256(b).hexdigest()\nprint(h(sys.stdin.buffer.read()) == h(open("a/b/c d.bin", "rb").read()), len(open("a/b/c d.bin", "rb").read()))'
        const content = bytes(length)
        const result = await run({
          language: 'python',
          source,
          stdin: content,
          files: [{ name: 'a/b/c d.bin', content }],
        })
        assert.equal(result.stdout.toString(), `True ${length}\n`, result.stderr.toString())
      }
    })

    check('files may have any name that stays in the box', async () => {
      const names = ["it's", '-rf', 'a b', 'x/y/z', 'ünï', '$(id)', '`id`', 'new\nline', '*', '..a']
      const files = names.map(name => ({ name, content: Buffer.from(name) }))
      const source =
        'import os\nfor d, _, fs in os.walk("."):\n  for f in fs:\n    p = os.path.relpath(os.path.join(d, f))\n    if p != "main.py": assert open(p).read() == p, p\n    print(1)'
      const result = await run({ language: 'python', source, files })
      assert.equal(result.stdout.toString(), '1\n'.repeat(names.length + 1), result.stderr.toString())
    })

    check('output arrives while the program runs, each stream up to its limit', async () => {
      const seen: string[] = []
      const controller = new AbortController()
      const source = 'echo first; echo error >&2; sleep 30'
      const result = await run({
        language: 'bash',
        source,
        signal: controller.signal,
        onOutput: (stream, chunk) => {
          seen.push(`${stream} ${chunk}`)
          if (seen.length === 2) controller.abort()
        },
      })
      assert.deepEqual(seen.sort(), ['stderr error\n', 'stdout first\n'])
      assert.equal(result.status, 'cancelled')
      assert.equal(result.stdout.toString(), 'first\n')
    })

    check('output over the limit is cut and the program finishes', async () => {
      const chunks: Buffer[] = []
      const source = 'head -c 100000 /dev/zero; echo done >&2; exit 4'
      const result = await run({
        language: 'bash',
        source,
        limits: { outputBytes: 1000 },
        onOutput: (stream, chunk) => stream === 'stdout' && chunks.push(chunk),
      })
      assert.equal(result.status, 'output_limit')
      assert.equal(result.exitCode, 4)
      assert.equal(result.stdout.length, 1000)
      assert.equal(Buffer.concat(chunks).length, 1000)
      assert.equal(result.stderr.toString(), 'done\n')
      assert.deepEqual([result.stdoutTruncated, result.stderrTruncated], [true, false])
    })

    check('a cancelled run ends at once, also before it began', async () => {
      const controller = new AbortController()
      const started = performance.now()
      const running = run({
        language: 'bash',
        source: 'echo on; sleep 30',
        signal: controller.signal,
        onOutput: () => controller.abort(),
      })
      assert.equal((await running).status, 'cancelled')
      assert.equal((await run({ language: 'bash', source: 'echo', signal: controller.signal })).status, 'cancelled')
      assert.ok(performance.now() - started < 5_000)
    })

    check('a listener that throws fails its own run only', async () => {
      const onOutput = () => {
        throw new RangeError('mine')
      }
      await assert.rejects(run({ language: 'bash', source: 'echo x; sleep 30', onOutput }), RangeError)
      assert.equal((await run({ language: 'bash', source: '' })).status, 'succeeded')
    })

    check('a program is nobody on the host', async () => {
      const uids: (string | undefined)[] = []
      const seconds = `6666.${process.pid}`
      const controller = new AbortController()
      const onOutput = () => {
        for (const pid of processesWith(`sleep ${seconds}`))
          uids.push(/^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1])
        controller.abort()
      }
      await run({
        language: 'bash',
        source: `sleep ${seconds} & until grep -q sleep /proc/$!/cmdline; do :; done; echo on; wait`,
        signal: controller.signal,
        onOutput,
      })
      assert.ok(uids.length > 0)
      assert.ok(!uids.includes('0'), String(uids))
    })

    check('CPU time and memory are what the program used', async () => {
      const burn = 'import time\nwhile time.process_time() < 0.4: pass\nb = b"x" * (40 << 20)\ntime.sleep(0.1)'
      const result = await run({ language: 'python', source: burn })
      assert.equal(result.status, 'succeeded')
      assert.ok(result.cpuMs >= 380 && result.cpuMs < 900, String(result.cpuMs))
      assert.ok(
        result.memoryPeakBytes !== null && result.memoryPeakBytes > 40 * MIB && result.memoryPeakBytes < 80 * MIB,
        String(result.memoryPeakBytes),
      )
      const small = await run({ language: 'bash', source: ':' })
      assert.ok(small.cpuMs < 100 && (small.memoryPeakBytes ?? 0) < 8 * MIB, JSON.stringify(small))
    })

    check('a compile step runs first, in the same box, with a result of its own', async () => {
      const compile = 'echo compiling; echo "echo made" > made.sh; echo warning >&2; (sleep 100 &) '
      // What was killed does nothing more, but may be seen for a moment yet.
      const look =
        'left=0; for f in /proc/[0-9]*/comm; do read -r name <$f && [[ $name == sleep ]] && left=1; done; [[ $left == 0 ]] && break'
      const source = `. ./made.sh; for n in {1..1000}; do ${look}; done 2>/dev/null; echo $left`
      const result = await run({ language: 'bash', source, compile })
      assert.equal(result.compile?.status, 'succeeded')
      assert.equal(result.compile?.stdout.toString(), 'compiling\n')
      assert.equal(result.compile?.stderr.toString(), 'warning\n')
      assert.equal(result.stdout.toString(), 'made\n0\n')
      const failed = await run({ language: 'bash', source: 'echo never', compile: 'echo no >&2; exit 2' })
      assert.deepEqual([failed.status, failed.compile?.exitCode, failed.stdout.length], ['failed', 2, 0])
    })

    check('sixteen run at once, each with its own output', async () => {
      const runs = Array.from({ length: 16 }, async (_, index) => {
        const result = await run({
          language: 'bash',
          source: 'cat; echo $1',
          args: [String(index)],
          stdin: `in ${index}\n`,
        })
        assert.equal(result.stdout.toString(), `in ${index}\n${index}\n`)
      })
      await Promise.all(runs)
    })

    check('a command that does not exist fails as in a shell', async () => {
      const runtime = { ...(languages[0] as Language).runtime, argv: ['/usr/bin/no-such-interpreter'] }
      const result = await sandbox.execute({ runtime, files: [], run: { argv: [], limits: DEFAULT_LIMITS } })
      assert.deepEqual([result.status, result.exitCode], ['failed', 127])
    })

    check('wrong requests are refused before anything starts', async () => {
      const runtime = (languages[0] as Language).runtime
      const good = { runtime, files: [], run: { argv: ['x'], limits: DEFAULT_LIMITS } }
      const wrong = [
        { ...good, run: { argv: ['a\0b'], limits: DEFAULT_LIMITS } },
        { ...good, run: { argv: ['x'.repeat(200_000)], limits: DEFAULT_LIMITS } },
        { ...good, run: { argv: ['x'], limits: { ...DEFAULT_LIMITS, wallMs: 0 } } },
        { ...good, run: { argv: ['x'], limits: { ...DEFAULT_LIMITS, cpuMs: Number.NaN } } },
        { ...good, runtime: { ...runtime, env: { 'A=B; id': 'x' } } },
        { ...good, files: [{ name: 'a', content: Buffer.alloc(2 * DEFAULT_LIMITS.diskBytes) }] },
        {
          ...good,
          files: [
            { name: 'a', content: Buffer.alloc(1) },
            { name: 'a/b', content: Buffer.alloc(1) },
          ],
        },
        {
          ...good,
          files: [
            { name: 'a', content: Buffer.alloc(1) },
            { name: 'a', content: Buffer.alloc(1) },
          ],
        },
      ]
      for (const execution of wrong) await assert.rejects(sandbox.execute(execution), InvalidExecution)
    })

    check('two hundred runs leave no descriptor, no process and no slot more', async () => {
      const descriptors = () => readdirSync('/proc/self/fd').length
      const many = async (count: number) => {
        const next = Array.from({ length: count }, (_, index) => index)
        const worker = async () => {
          while (next.pop() !== undefined)
            assert.equal((await run({ language: 'bash', source: 'echo x' })).status, 'succeeded')
        }
        await Promise.all(Array.from({ length: 4 }, worker))
        await sandbox.warmed()
      }
      await many(40)
      await until('the first runs are cleared away', () => boxesOf(process.pid).length <= 2 * 2 + 2)
      const first = descriptors()
      await many(200)
      await until('descriptors are as before', () => descriptors() <= first + 8)
      const zombies = readdirSync('/proc').filter(pid => /^\d+$/.test(pid) && isZombieOf(pid, process.pid))
      assert.deepEqual(zombies, [])
    })
  })
}

/** A folder that the boxes' user can pass through, too. */
function makeDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'capstan-test-'))
  chmodSync(directory, 0o755)
  t.after(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

function isZombieOf(pid: string, owner: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const [state, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return state === 'Z' && Number(parent) === owner
  } catch {
    return false
  }
}

test('a closed sandbox leaves no process, no cgroup and no folder, and runs nothing more', async t => {
  const languages = await findLanguages()
  const directory = makeDirectory(t)
  const sandbox = await makeSandbox({ runtimes: languages.map(language => language.runtime), directory, warm: 3 })
  const why = missing(sandbox, languages, ['bash'])
  if (why) return t.skip(why)
  const run = await makeRunner(sandbox, languages)
  await sandbox.warmed()
  assert.ok(boxesOf(process.pid).length > 0)
  const running = run({ language: 'bash', source: `sleep 8888.${process.pid}` }).catch((error: unknown) => error)
  await until('it runs', () => processesWith(`sleep 8888.${process.pid}`).length > 0)
  await sandbox.close()
  await running
  assert.deepEqual(processesWith(`sleep 8888.${process.pid}`), [])
  assert.deepEqual(boxesOf(process.pid), [])
  assert.deepEqual(readdirSync(directory), [])
  assert.deepEqual(groupsOf(process.pid), [])
  await assert.rejects(run({ language: 'bash', source: '' }), SandboxError)
})

test('past the most boxes a run waits its turn, and may give up waiting', async t => {
  const languages = await findLanguages()
  const sandbox = await makeSandbox({ runtimes: languages.map(language => language.runtime), boxesMax: 1 })
  t.after(() => sandbox.close())
  const why = missing(sandbox, languages, ['bash'])
  if (why) return t.skip(why)
  const run = await makeRunner(sandbox, languages)
  const first = new AbortController()
  const second = new AbortController()
  const order: string[] = []
  const onOutput = () => order.push('first runs')
  const running = run({ language: 'bash', source: 'echo on; sleep 30', signal: first.signal, onOutput })
  const waiting = run({ language: 'bash', source: 'echo never', signal: second.signal })
  const last = run({ language: 'bash', source: 'echo last' })
  await until('the first runs', () => order.length > 0)
  assert.equal(boxesOf(process.pid).length, 1)
  second.abort()
  assert.equal((await waiting).status, 'cancelled')
  first.abort()
  assert.equal((await running).status, 'cancelled')
  assert.equal((await last).stdout.toString(), 'last\n')
})

test('a folder that the boxes cannot reach is a fact with a reason', async t => {
  if (process.getuid?.() !== 0) return t.skip('only root gives the boxes another user')
  const directory = makeDirectory(t)
  chmodSync(directory, 0o700)
  const sandbox = await makeSandbox({ directory })
  assert.equal(sandbox.facts.available, false)
  assert.match(sandbox.facts.sentence, /cannot reach/)
  assert.deepEqual(readdirSync(directory), [])
})

test('no bubblewrap is a fact with a reason, and a fault of ours', async () => {
  const sandbox = await makeSandbox({ bwrap: '/nonexistent/bwrap' })
  assert.equal(sandbox.facts.available, false)
  assert.match(sandbox.facts.sentence, /bwrap/)
  const runtime = { argv: ['/bin/true'], readOnly: [], env: {} }
  await assert.rejects(sandbox.execute({ runtime, files: [], run: { argv: [], limits: DEFAULT_LIMITS } }), SandboxError)
})

/** A process of its own that makes a sandbox, starts a program in it, says so, and waits to be killed. */
const OWNER = `
const { makeSandbox, detectLanguages, DEFAULT_LIMITS } = await import(process.argv[1])
const languages = await detectLanguages()
const bash = languages.find(({ id }) => id === 'bash')
const sandbox = await makeSandbox({ runtimes: [bash.runtime], directory: process.argv[2], cgroups: process.argv[3] })
await sandbox.warmed()
const files = [{ name: 'main.sh', content: Buffer.from('trap "" TERM HUP; (setsid sleep ' + process.argv[4] + ' &); sleep ' + process.argv[4]) }]
sandbox.execute({ runtime: bash.runtime, files, run: { argv: ['main.sh'], limits: { ...DEFAULT_LIMITS, wallMs: 60_000 } } })
setInterval(() => {}, 1000)
`

for (const cgroups of ['auto', 'none']) {
  test(`SIGKILL of the owner takes every box along, and the next sweeps what is left, cgroups: ${cgroups}`, async t => {
    const languages = await findLanguages()
    const directory = makeDirectory(t)
    const marker = `${cgroups === 'auto' ? 9991 : 9992}.${process.pid}`
    const first = await makeSandbox({ directory })
    const why = missing(first, languages, ['bash'])
    await first.close()
    if (why) return t.skip(why)
    const index = new URL('./index.ts', import.meta.url).href
    // Anybody's child would do; ours is a zombie until we look, which is dead enough.
    const owner = spawn(process.execPath, ['--input-type=module', '-e', OWNER, index, directory, cgroups, marker], {
      stdio: 'inherit',
    })
    const pid = owner.pid as number
    t.after(() => owner.kill('SIGKILL'))
    // The two sleeps, and not the shell whose orders mention them.
    const sleeps = () =>
      processesWith(`sleep ${marker}`).filter(found => found !== pid && !commandLine(found).includes('import'))
    await until('its program runs', () => sleeps().length >= 2, 15_000)
    await until('it has warm boxes too', () => boxesOf(pid).length >= 2)
    const family = descendantsOf(pid).map(found => ({ pid: found, command: commandLine(found) }))
    assert.ok(family.length >= 6, JSON.stringify(family))
    owner.kill('SIGKILL')
    await until('its program is dead', () => sleeps().length === 0)
    await until('all it started is dead', () => family.every(({ pid, command }) => commandLine(pid) !== command))
    assert.equal(readdirSync(directory).length, 1)
    const next = await makeSandbox({ directory })
    t.after(() => next.close())
    await until('its cgroups are gone', () => groupsOf(pid).length === 0)
    assert.ok(!readdirSync(directory).some(name => name.includes(`-${pid}-`)))
  })
}

test('a descriptor that our parent left open does not reach a program', async t => {
  const languages = await findLanguages()
  const probe = await makeSandbox()
  const why = missing(probe, languages, ['bash'])
  await probe.close()
  if (why) return t.skip(why)
  const script = `
    const { makeSandbox, detectLanguages, DEFAULT_LIMITS } = await import(process.argv[1])
    const bash = (await detectLanguages()).find(({ id }) => id === 'bash')
    const sandbox = await makeSandbox({ runtimes: [bash.runtime] })
    const files = [{ name: 'main.sh', content: Buffer.from('readlink /proc/self/fd/77; cat <&77') }]
    const result = await sandbox.execute({ runtime: bash.runtime, files, run: { argv: ['main.sh'], limits: DEFAULT_LIMITS } })
    process.stdout.write(result.stdout)
    await sandbox.close()
  `
  const index = new URL('./index.ts', import.meta.url).href
  const command = [
    '-c',
    'exec 77</etc/hosts; exec "$@"',
    'x',
    process.execPath,
    '--input-type=module',
    '-e',
    script,
    index,
  ]
  const child = spawn('bash', command, { stdio: ['ignore', 'pipe', 'inherit'] })
  const said: Buffer[] = []
  for await (const chunk of child.stdout) said.push(chunk)
  assert.equal(Buffer.concat(said).toString(), '/dev/null\n')
})
