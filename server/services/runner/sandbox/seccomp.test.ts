import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeSeccompFilter } from './seccomp.ts'

// A small interpreter of classic BPF: what a filter answers for a call, without asking a kernel of that architecture.

const ALLOW = 0x7fff0000
const errno = (code: number) => 0x00050000 | code
const ARCHITECTURES = { x64: 0xc000003e, arm64: 0xc00000b7 } as const

function evaluate(
  filter: Buffer,
  { arch, number, args = [] }: { arch: number; number: number; args?: number[] },
): number {
  const data = Buffer.alloc(64)
  data.writeUInt32LE(number >>> 0, 0)
  data.writeUInt32LE(arch, 4)
  for (const [index, value] of args.entries()) data.writeUInt32LE(value >>> 0, 16 + 8 * index)
  let accumulator = 0
  for (let at = 0; at < filter.length / 8; at++) {
    const [code, ifTrue, ifFalse] = [
      filter.readUInt16LE(at * 8),
      filter.readUInt8(at * 8 + 2),
      filter.readUInt8(at * 8 + 3),
    ]
    const constant = filter.readUInt32LE(at * 8 + 4)
    if (code === 0x20) accumulator = data.readUInt32LE(constant)
    else if (code === 0x06) return constant
    else if (code === 0x15) at += accumulator === constant ? ifTrue : ifFalse
    else if (code === 0x35) at += accumulator >= constant ? ifTrue : ifFalse
    else if (code === 0x45) at += (accumulator & constant) !== 0 ? ifTrue : ifFalse
    else assert.fail(`instruction ${code}`)
  }
  return assert.fail('the filter ends without an answer')
}

const calls = [
  { name: 'read', x64: 0, arm64: 63, answer: ALLOW },
  { name: 'execve', x64: 59, arm64: 221, answer: ALLOW },
  { name: 'ptrace', x64: 101, arm64: 117, answer: errno(1) },
  { name: 'keyctl', x64: 250, arm64: 219, answer: errno(1) },
  { name: 'mount', x64: 165, arm64: 40, answer: errno(1) },
  { name: 'io_uring_setup', x64: 425, arm64: 425, answer: errno(38) },
  { name: 'clone3', x64: 435, arm64: 435, answer: errno(38) },
  { name: 'fork by clone', x64: 56, arm64: 220, args: [17], answer: ALLOW },
  { name: 'a thread by clone', x64: 56, arm64: 220, args: [0x003d0f00], answer: ALLOW },
  { name: 'clone with a user namespace', x64: 56, arm64: 220, args: [0x10000011], answer: errno(1) },
  { name: 'a Unix socket', x64: 41, arm64: 198, args: [1], answer: ALLOW },
  { name: 'an internet socket', x64: 41, arm64: 198, args: [2], answer: ALLOW },
  { name: 'a netlink socket', x64: 41, arm64: 198, args: [16], answer: errno(97) },
  { name: 'a vsock socket', x64: 41, arm64: 198, args: [40], answer: errno(97) },
  { name: 'personality read', x64: 135, arm64: 92, args: [0xffffffff], answer: ALLOW },
  { name: 'personality set', x64: 135, arm64: 92, args: [0x0040000], answer: errno(1) },
  { name: 'ioctl TIOCSTI', x64: 16, arm64: 29, args: [0, 0x5412], answer: errno(1) },
  { name: 'ioctl FIONREAD', x64: 16, arm64: 29, args: [0, 0x541b], answer: ALLOW },
  { name: 'a call of the x32 kind', x64: 0x40000000 + 39, arm64: 0x40000000 + 39, answer: errno(38) },
] as const

for (const arch of ['x64', 'arm64'] as const) {
  test(`the filter for ${arch} answers as it should`, () => {
    const filter = makeSeccompFilter({ arch, denyUncountedMemory: false })
    assert.ok(filter)
    for (const { name, answer, ...call } of calls) {
      const args = 'args' in call ? [...call.args] : []
      assert.equal(
        evaluate(filter, { arch: ARCHITECTURES[arch], number: call[arch], args }).toString(16),
        answer.toString(16),
        name,
      )
    }
  })

  test(`calls of another architecture kill on ${arch}`, () => {
    const filter = makeSeccompFilter({ arch, denyUncountedMemory: false })
    assert.ok(filter)
    assert.equal(evaluate(filter, { arch: 0x40000003, number: 0 }), 0x80000000)
  })
}

test('memory that only a cgroup counts is denied where there is none', () => {
  for (const [denyUncountedMemory, answer] of [
    [true, errno(38)],
    [false, ALLOW],
  ] as const) {
    const filter = makeSeccompFilter({ arch: 'x64', denyUncountedMemory })
    assert.ok(filter)
    assert.equal(evaluate(filter, { arch: ARCHITECTURES.x64, number: 319 }), answer)
  }
})

test('an architecture without a table has no filter', () => {
  assert.equal(makeSeccompFilter({ arch: 'riscv64', denyUncountedMemory: false }), null)
})
