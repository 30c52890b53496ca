import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { after, before, describe, test } from 'node:test'
import { InvalidExecution } from './errors.ts'
import type { Language } from './languages.ts'
import { makeSandbox } from './sandbox.ts'
import { findLanguages, MIB, makeRunner, missing, type Program, processesWith, type Runner, until } from './testing.ts'
import type { ExecutionResult, Sandbox, StepStatus } from './types.ts'

// The thirty programs that a runner must survive. Each has to end with its status, leave the host as it was, and not be
// noticed by the program that comes next.

interface Case extends Program {
  name: string
  status: StepStatus | StepStatus[]
  check?: (result: ExecutionResult) => void
}

const out = (result: ExecutionResult) => result.stdout.toString()
/** Ours, should somebody run these tests beside us. */
const FOREVER = `7777.${process.pid}`
const short = { cpuMs: 2_000, wallMs: 1_000, processes: 24, memoryBytes: 64 * MIB }

/** A Python prelude: raw system calls by number, and the name of the errno they give. */
const SYSCALL = `
import ctypes, errno, os, platform
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == 'x86_64'
def call(on_x86, on_arm, *args):
    number = on_x86 if x86 else on_arm
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args])
    return errno.errorcode.get(ctypes.get_errno(), '?') if result == -1 else 'allowed'
`

const cases: Case[] = [
  {
    name: '1 a fork bomb',
    language: 'python',
    source: 'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass',
    limits: { ...short, memoryBytes: 256 * MIB, wallMs: 500 },
    status: 'timed_out',
  },
  {
    name: '1 a fork bomb in bash',
    language: 'bash',
    source: 'f() { f | f & }; f; wait',
    limits: { ...short, wallMs: 500 },
    status: ['failed', 'succeeded', 'timed_out'],
  },
  {
    name: '2 a thread bomb',
    language: 'python',
    source: `
import threading
gate = threading.Event()
n = 0
try:
  while True:
    threading.Thread(target=gate.wait, daemon=True).start()
    n += 1
except RuntimeError:
  print(n)
`,
    limits: short,
    status: 'succeeded',
    check: result => assert.ok(Number(out(result)) < short.processes, out(result)),
  },
  {
    name: '3 memory touched page by page',
    language: 'python',
    source: 'b = bytearray()\nwhile True: b += b"x" * 4096',
    limits: short,
    status: 'out_of_memory',
  },
  {
    name: '3 memory touched by many processes together',
    language: 'python',
    source: `
import os, time
for i in range(8):
  if os.fork() == 0:
    b = b"x" * (12 << 20)
    time.sleep(30)
time.sleep(30)
`,
    limits: { ...short, wallMs: 3_000 },
    status: 'out_of_memory',
  },
  {
    name: '4 a giant bss',
    language: 'python',
    source: `
import mmap
m = mmap.mmap(-1, 512 << 20)
for i in range(0, len(m), 4096): m[i] = 1
`,
    limits: { ...short, wallMs: 5_000 },
    status: 'out_of_memory',
  },
  {
    name: '5 a filled /dev/shm, counted as memory',
    language: 'python',
    source: 'f = open("/dev/shm/a", "wb")\nwhile True: f.write(b"x" * 65536)',
    limits: { ...short, fileBytes: 900 * MIB, diskBytes: 512 * MIB },
    status: 'out_of_memory',
  },
  {
    name: '5 a filled disk',
    language: 'python',
    source: `
try:
  f = open("/tmp/a", "wb", buffering=0)
  while True: f.write(b"x" * 65536)
except OSError as e: print(e.errno)
`,
    limits: { ...short, fileBytes: 64 * MIB, diskBytes: 8 * MIB },
    status: 'succeeded',
    check: result => assert.equal(out(result), '28\n'),
  },
  {
    name: '6 a flood of stdout',
    language: 'bash',
    source: 'yes',
    limits: { ...short, wallMs: 10_000, cpuMs: 10_000, outputBytes: 10_000 },
    status: 'output_limit',
    check: result => {
      assert.equal(result.stdout.length, 10_000)
      assert.equal(result.stdoutTruncated, true)
    },
  },
  {
    name: '7 a flood of stderr',
    language: 'bash',
    source: 'yes >&2',
    limits: { ...short, wallMs: 10_000, cpuMs: 10_000, outputBytes: 10_000 },
    status: 'output_limit',
    check: result => assert.equal(result.stderr.length, 10_000),
  },
  {
    name: '8 one huge file',
    language: 'python',
    source: `
try:
  with open("big", "wb") as f: f.truncate(1 << 40)
except OSError as e: print(e.errno)
with open("big", "wb", buffering=0) as f:
  while True: f.write(b"x" * 65536)
`,
    limits: { ...short, fileBytes: MIB },
    status: 'failed',
    check: result => {
      assert.equal(out(result), '27\n')
      assert.match(result.stderr.toString(), /File too large/)
    },
  },
  {
    name: '9 a million empty files',
    language: 'python',
    source: 'for i in range(1_000_000): open(f"/tmp/{i}", "x").close()',
    limits: { ...short, cpuMs: 20_000, wallMs: 20_000 },
    status: 'out_of_memory',
  },
  {
    name: '10 a spinning processor',
    language: 'python',
    source: 'while True: pass',
    limits: { ...short, cpuMs: 300, wallMs: 10_000 },
    status: 'timed_out',
  },
  {
    name: '10 a spin spread over processes',
    language: 'python',
    source: 'import os\nfor i in range(3): os.fork()\nwhile True: pass',
    limits: { ...short, cpuMs: 300, wallMs: 10_000 },
    status: 'timed_out',
    check: result =>
      assert.ok(result.wallMs < 5_000 && result.cpuMs >= 300, JSON.stringify([result.wallMs, result.cpuMs])),
  },
  {
    name: '11 a sleep for ever',
    language: 'bash',
    source: `sleep ${FOREVER}`,
    limits: { ...short, wallMs: 300 },
    status: 'timed_out',
  },
  {
    name: '12 SIGTERM and SIGXCPU ignored',
    language: 'python',
    source: `
import signal
for s in signal.Signals:
  try: signal.signal(s, signal.SIG_IGN)
  except (OSError, ValueError): pass
while True: pass
`,
    limits: { ...short, cpuMs: 300, wallMs: 10_000 },
    status: 'timed_out',
  },
  {
    name: '13 a daemon that outlives its parent and holds stdout',
    language: 'python',
    source: `
import os, time
if os.fork() == 0:
  os.setsid()
  if os.fork() == 0:
    os.execv("/usr/bin/sleep", ["sleep", "${FOREVER}"])
  os._exit(0)
os.wait()
print("done", flush=True)
`,
    limits: { ...short, wallMs: 10_000 },
    status: 'succeeded',
    check: result => {
      assert.equal(out(result), 'done\n')
      assert.ok(result.wallMs < 5_000)
    },
  },
  {
    name: '14 kill -STOP 0',
    language: 'bash',
    source: 'kill -STOP 0',
    limits: { ...short, wallMs: 300 },
    status: 'timed_out',
  },
  {
    name: '14 kill -STOP -1',
    language: 'bash',
    source: 'kill -STOP -1; kill -STOP $$',
    limits: { ...short, wallMs: 300 },
    status: 'timed_out',
  },
  {
    name: '15 a kill of the parent',
    language: 'bash',
    source: `kill -KILL $PPID; kill -STOP $PPID; exit 3`,
    limits: short,
    status: 'failed',
  },
  {
    name: '15 a kill of pid 1',
    language: 'bash',
    source: 'kill -KILL 1; kill -TERM 1; echo alive',
    limits: short,
    status: 'succeeded',
    check: result => assert.equal(out(result), 'alive\n'),
  },
  {
    name: '15 a kill of everybody',
    language: 'bash',
    source: `kill -KILL -1; sleep ${FOREVER}`,
    limits: { ...short, wallMs: 500 },
    status: ['failed', 'timed_out'],
  },
  {
    name: '16 a socket to the outside and to the cloud metadata address',
    language: 'python',
    source: `
import socket, sys
for address in [("1.1.1.1", 53), ("169.254.169.254", 80), ("127.0.0.1", int(sys.argv[1])), ("10.0.0.1", 80)]:
  s = socket.socket(); s.settimeout(2)
  try: s.connect(address); print("connected", address)
  except OSError as e: print(type(e).__name__)
try: socket.socket(socket.AF_UNIX).connect("\\0" + sys.argv[2]); print("connected")
except OSError as e: print(type(e).__name__)
try: socket.getaddrinfo("example.com", 80); print("resolved")
except OSError: print("unresolved")
`,
    limits: { ...short, wallMs: 5_000 },
    status: 'succeeded',
    check: result => assert.doesNotMatch(out(result), /connected|^resolved/m),
  },
  {
    name: '17 an output that is a symbolic link to /etc/passwd',
    language: 'bash',
    source: 'ln -s /etc/passwd out; echo x >> out; ln -sf /etc/passwd /box/stdin.run; echo $?; cat /etc/passwd',
    stdin: 'input',
    limits: short,
    status: 'succeeded',
    check: result => assert.match(out(result), /^0\nroot:x:0:0:root:\/:\/bin\/false\nbox:/),
  },
  {
    name: '18 outputs that are a FIFO and /dev/urandom',
    language: 'bash',
    source: 'mkfifo out; ln -s /dev/urandom result; rm -f main.sh; mkfifo main.sh; echo ok',
    limits: short,
    status: 'succeeded',
  },
  {
    name: '19 a link planted while compiling where the input is read later',
    language: 'bash',
    source: 'cat',
    compile: 'ln -sf /etc/shadow /box/stdin.run; ln -sf /etc/passwd /box/work/later',
    stdin: 'input',
    limits: short,
    status: ['failed', 'succeeded'],
    check: result => assert.doesNotMatch(out(result), /root:[^x]/),
  },
  {
    name: '20 ptrace, and other processes through /proc',
    language: 'python',
    source: `${SYSCALL}
print(call(101, 117, 16, os.getppid(), 0, 0), call(310, 270, os.getppid(), 0, 0, 0, 0, 0))
pids = sorted(int(p) for p in os.listdir("/proc") if p.isdigit())
print(len(pids))
for path in ["/proc/1/root/home", "/proc/1/root/root", "/proc/1/cwd/etc/shadow", f"/proc/{os.getppid()}/root/home"]:
  print(os.path.exists(path))
for number in os.listdir("/proc/self/fd"):
  try: print(os.listdir(f"/proc/self/fd/{number}/.."))
  except OSError: pass
`,
    limits: short,
    status: 'succeeded',
    check: result => {
      assert.match(out(result), /^EPERM EPERM\n2\n(False\n){4}/)
      assert.doesNotMatch(out(result), /'home'/)
    },
  },
  {
    name: '21 a bomb in the compiler',
    language: 'bash',
    source: 'echo never',
    compile: 'while :; do :; done',
    limits: { ...short, cpuMs: 300, wallMs: 5_000 },
    status: 'timed_out',
    check: result => {
      assert.equal(result.compile?.status, 'timed_out')
      assert.equal(out(result), '')
    },
  },
  {
    name: '22 a read of /etc/shadow and of /dev/stdin',
    language: 'bash',
    source: 'cat /etc/shadow; cat /etc/gshadow; cat /root/.ssh/id_rsa; ls /home /root /work /var /run; cat /dev/stdin',
    limits: short,
    status: 'succeeded',
    check: result => assert.equal(out(result), ''),
  },
  {
    name: '23 a zip bomb',
    language: 'python',
    source: `
import io, zipfile
b = io.BytesIO()
with zipfile.ZipFile(b, "w", zipfile.ZIP_DEFLATED) as z:
  with z.open("bomb", "w", force_zip64=True) as f:
    for i in range(64): f.write(bytes(1 << 20))
zipfile.ZipFile(b).extractall()
`,
    limits: { ...short, diskBytes: 8 * MIB, wallMs: 5_000 },
    status: 'failed',
    check: result => assert.match(result.stderr.toString(), /No space left|File too large/),
  },
  {
    name: '23 a zip slip',
    language: 'bash',
    source:
      'echo x > ../../../etc/cron.d/x; echo x > /etc/ld.so.preload; echo x > /usr/bin/x; echo x > /x; echo x > /dev/x; rm -rf /etc /opt /usr/bin/env 2>/dev/null; ls / /usr/bin/env | wc -l; ls -d /x /dev/x /etc/ld.so.preload 2>/dev/null; true',
    limits: short,
    status: 'succeeded',
    check: result => assert.ok(Number(out(result)) >= 6, out(result)),
  },
  {
    name: '25 leftovers for the next run',
    language: 'bash',
    source:
      'echo x > /tmp/left; echo x > /dev/shm/left; echo x > left; python3 -c "import multiprocessing.shared_memory as m; m.SharedMemory(\\"left\\", True, 9)" 2>/dev/null; ipcmk -M 4096 -Q 2>&1 | head -1 >/dev/null; exit 0',
    limits: short,
    status: 'succeeded',
  },
  {
    name: '26 setuid tricks',
    language: 'python',
    source: `
import os, subprocess
for f in [lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chroot("/tmp"), lambda: os.mknod("d", 0o60666, os.makedev(8, 0))]:
  try: f(); print("allowed")
  except OSError as e: print("refused")
os.system("cp /usr/bin/id i; chmod 6755 i; ./i -u; mount -t tmpfs x /tmp 2>/dev/null || echo refused; unshare -U id 2>/dev/null || echo refused")
status = open("/proc/self/status").read()
print([l.split()[1] for l in status.splitlines() if l.startswith(("CapEff", "CapBnd", "NoNewPrivs", "Seccomp:"))])
`,
    limits: { ...short, wallMs: 5_000 },
    status: 'succeeded',
    check: result => assert.doesNotMatch(out(result), /allowed|^0$/m),
  },
  {
    name: '27 stdin and stdout closed',
    language: 'bash',
    source: 'exec <&- >&- 2>&-; exit 3',
    limits: short,
    status: 'failed',
    check: result => assert.equal(result.exitCode, 3),
  },
  {
    name: '28 invalid UTF-8 and NUL bytes',
    language: 'python',
    source: 'import sys\nsys.stdout.buffer.write(bytes(range(256)) * 3)\nsys.stderr.buffer.write(b"\\xff\\x00\\xfe")',
    limits: short,
    status: 'succeeded',
    check: result => {
      assert.deepEqual(
        result.stdout,
        Buffer.concat(Array(3).fill(Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)))),
      )
      assert.deepEqual(result.stderr, Buffer.from([255, 0, 254]))
    },
  },
  {
    name: '29 keyctl, vsock, io_uring and their like',
    language: 'python',
    source: `${SYSCALL}
import socket
print("keyctl", call(250, 219, 0, -3, 1), call(248, 217, 0, 0, 0, 0, -3))
print("io_uring", call(425, 425, 8, 0), "userfaultfd", call(323, 282, 0), "bpf", call(321, 280, 0, 0, 0), "perf", call(298, 241, 0, 0, 0, 0, 0))
print("unshare", call(272, 97, 0x10000000), "clone", call(56, 220, 0x10000000 | 17, 0, 0, 0, 0), "clone3", call(435, 435, 0, 0), "setns", call(308, 268, 0, 0))
print("mount", call(165, 40, 0, 0, 0, 0, 0), "personality", call(135, 92, 0x0040000))
for family in [40, 16, 17, 38]:
  try: socket.socket(family, socket.SOCK_DGRAM); print("allowed")
  except OSError as e: print(errno.errorcode[e.errno])
print("x32", call(0x40000000 + 39, 9999))
`,
    limits: short,
    status: 'succeeded',
    check: result => {
      const text = out(result)
      assert.doesNotMatch(text, /allowed/)
      assert.match(text, /keyctl EPERM EPERM\nio_uring ENOSYS userfaultfd EPERM bpf EPERM perf EPERM\n/)
      assert.match(text, /unshare EPERM clone EPERM clone3 ENOSYS setns EPERM\nmount EPERM personality EPERM\n/)
      assert.match(text, /(EAFNOSUPPORT\n){4}x32 ENOSYS/)
    },
  },
  {
    name: "30 the server's environment, tokens and sockets",
    language: 'bash',
    source: `
env
for f in /proc/[0-9]*; do cat $f/environ $f/cmdline $f/mountinfo 2>/dev/null | tr '\\0' '\\n'; done
find / -path /proc -prune -o -type s -print -o -name '.s.PGSQL*' -print 2>/dev/null
cat /proc/net/unix
`,
    limits: { ...short, wallMs: 10_000, cpuMs: 10_000 },
    status: 'succeeded',
    check: result => assert.doesNotMatch(out(result), /only-the-server-knows|PGSQL/),
  },
  {
    name: 'a program that finds the pipe its shell reports on',
    language: 'python',
    source: `
import os
parent = f"/proc/{os.getppid()}/fd"
for number in os.listdir(parent):
  try: open(f"{parent}/{number}", "wb", buffering=0).write(b'exit 0\\n{ "child-pid": 1, "exit-code": 0 }\\nready\\n' * 4000)
  except OSError: pass
while True: pass
`,
    limits: short,
    status: ['succeeded', 'failed', 'timed_out'],
  },
]

const untouched = ['/etc/passwd', '/etc/hosts', '/etc/hostname', '/etc/group'].filter(existsSync)

function fingerprint(): string {
  const hash = createHash('sha256')
  for (const path of untouched) hash.update(path).update(readFileSync(path))
  return hash.digest('hex')
}

const afterwards = `
import os
print(sorted(os.listdir("/box/work")), os.listdir("/tmp"), os.listdir("/dev/shm"))
print(len([p for p in os.listdir("/proc") if p.isdigit()]))
print(open("/proc/sysvipc/shm").read().count("\\n"))
`

for (const cgroups of ['auto', 'none'] as const) {
  describe(`hostile programs, cgroups: ${cgroups}`, () => {
    let sandbox: Sandbox
    let languages: Language[]
    let run: Runner
    // What a program could reach if it shared our network: a port, and a name that no file system guards.
    const tcp = createServer(socket => socket.end())
    const unix = createServer(socket => socket.end())
    const abstract = `capstan-test-${process.pid}-${cgroups}`

    before(async () => {
      await new Promise<void>(resolve => tcp.listen(0, '127.0.0.1', resolve))
      await new Promise<void>(resolve => unix.listen(`\0${abstract}`, resolve))
      process.env.SECRET_OF_THE_SERVER = 'only-the-server-knows'
      languages = await findLanguages()
      sandbox = await makeSandbox({ runtimes: languages.map(language => language.runtime), cgroups, warm: 1 })
      run = await makeRunner(sandbox, languages)
    })
    after(async () => {
      tcp.close()
      unix.close()
      await sandbox.close()
    })

    for (const { name, status, check, ...program } of cases) {
      test(`${name} ends as it should and leaves nothing`, { timeout: 30_000 }, async t => {
        const why = missing(sandbox, languages, [program.language, 'python'])
        if (why) return t.skip(why)
        const before = fingerprint()
        const result = await run({ ...program, args: [String((tcp.address() as AddressInfo).port), abstract] })
        const allowed = Array.isArray(status) ? status : [status]
        const seen = JSON.stringify({
          ...result,
          stdout: out(result).slice(-600),
          stderr: result.stderr.toString().slice(-600),
        })
        assert.ok(allowed.includes(result.status), seen)
        assert.ok(result.wallMs < (program.limits?.wallMs ?? 0) + 3_000, `it took ${result.wallMs} ms`)
        check?.(result)
        assert.equal(fingerprint(), before)
        const next = await run({ language: 'python', source: afterwards })
        assert.equal(out(next), "['main.py'] [] []\n2\n1\n", next.stderr.toString())
        await until('nothing of it runs', () => processesWith(`sleep ${FOREVER}`).length === 0)
      })
    }

    test('24 a file name that leaves the box is refused', async t => {
      const why = missing(sandbox, languages, ['bash'])
      if (why) return t.skip(why)
      for (const name of [
        '../x',
        'a/../../x',
        '/etc/x',
        'a//b',
        './a',
        'a/.',
        '',
        'a\0b',
        `${'a/'.repeat(20)}b`,
        'n'.repeat(300),
        'x/',
      ]) {
        const files = [{ name, content: Buffer.from('x') }]
        await assert.rejects(run({ language: 'bash', source: '', files }), InvalidExecution, name)
      }
    })
  })
}
