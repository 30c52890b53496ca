import assert from 'node:assert/strict'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { type Groups, type GroupsOptions, OWN_MEMORY_BYTES, OWN_PROCESSES, openGroups } from './cgroups.ts'
import { isOrphan, makeOwnerName } from './owner.ts'

// A folder stands for the hierarchy: what is written where can be seen, and what the kernel would answer is put there.

interface Fake {
  root: string
  own: string
  open(options?: Partial<GroupsOptions>): Groups | { reason: string }
}

function makeFake(t: TestContext, { mountinfo, self, own }: { mountinfo: string; self: string; own: string }): Fake {
  const root = mkdtempSync(join(tmpdir(), 'capstan-cgroups-'))
  t.after(() => rmSync(root, { recursive: true, force: true }))
  mkdirSync(join(root, 'proc/self'), { recursive: true })
  writeFileSync(join(root, 'proc/self/mountinfo'), mountinfo)
  writeFileSync(join(root, 'proc/self/cgroup'), self)
  mkdirSync(join(root, own), { recursive: true })
  return { root, own: join(root, own), open: options => openGroups({ root, ...options }) }
}

function makeFake2(t: TestContext, controllers = 'cpu io memory pids'): Fake {
  const fake = makeFake(t, {
    mountinfo: '30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n',
    self: '0::/app/server\n',
    own: 'sys/fs/cgroup/app/server',
  })
  writeFileSync(join(fake.own, 'cgroup.controllers'), controllers)
  writeFileSync(join(fake.own, 'cgroup.subtree_control'), '')
  return fake
}

function opened(fake: Fake): Groups {
  const groups = fake.open()
  assert.ok(!('reason' in groups), 'reason' in groups ? groups.reason : '')
  return groups
}

const onlyFolder = (path: string) => join(path, readdirSync(path).find(name => name.startsWith('capstan-')) ?? '')

test('version 2: controllers are handed down and every limit is written', t => {
  const fake = makeFake2(t)
  const groups = opened(fake)
  assert.deepEqual([groups.kind, groups.limitsProcesses, groups.countsCpu], ['cgroup2', true, true])
  assert.equal(readFileSync(join(fake.own, 'cgroup.subtree_control'), 'utf8'), '+memory +pids +cpu')
  const folder = onlyFolder(fake.own)
  assert.equal(readFileSync(join(folder, 'cgroup.subtree_control'), 'utf8'), '+memory +pids +cpu')
  const group = groups.make('slot-0')
  group.setLimits({ memoryBytes: 1000, processes: 7 })
  const read = (name: string) => readFileSync(join(folder, 'slot-0', name), 'utf8')
  assert.equal(read('memory.max'), String(1000 + OWN_MEMORY_BYTES))
  assert.equal(read('pids.max'), String(7 + OWN_PROCESSES))
})

test('version 2: figures count from the restart, and an OOM kill is seen', t => {
  const fake = makeFake2(t)
  const groups = opened(fake)
  const group = groups.make('slot-0')
  const put = (name: string, text: string) => writeFileSync(join(onlyFolder(fake.own), 'slot-0', name), text)
  put('cpu.stat', 'usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\n')
  put('memory.events', 'low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n')
  put('memory.current', '4096\n')
  group.restart()
  assert.equal(group.cpuMs(), 0)
  assert.equal(group.ranOutOfMemory(), false)
  put('cpu.stat', 'usage_usec 12500\n')
  put('memory.events', 'low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\n')
  assert.equal(group.cpuMs(), 7.5)
  assert.equal(group.ranOutOfMemory(), true)
  // There was no memory.peak when the group was made, as on kernels before 5.19.
  assert.equal(group.memoryPeakBytes(), null)
})

test('version 2: a kill is one write where the kernel offers it', t => {
  const fake = makeFake2(t)
  const group = opened(fake).make('slot-0')
  const file = join(onlyFolder(fake.own), 'slot-0', 'cgroup.kill')
  writeFileSync(file, '')
  group.kill()
  assert.equal(readFileSync(file, 'utf8'), '1')
})

test('version 2: without a memory controller there is a reason instead', t => {
  const groups = makeFake2(t, 'cpu pids').open()
  assert.ok('reason' in groups)
  assert.match(groups.reason, /no memory controller/)
})

test('version 2: without a pids controller processes are left to rlimits', t => {
  assert.equal(opened(makeFake2(t, 'memory')).limitsProcesses, false)
})

test('version 1: each hierarchy gets its group, below our own, also where a container mounts but a part', t => {
  const fake = makeFake(t, {
    mountinfo:
      '31 25 0:27 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n' +
      '32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n' +
      '33 25 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n',
    self: '9:memory:/docker/abc/inner\n8:cpu,cpuacct:/\n7:pids:/gone\n0::/\n',
    own: 'sys/fs/cgroup/memory/inner',
  })
  for (const name of ['cpu,cpuacct', 'pids']) mkdirSync(join(fake.root, 'sys/fs/cgroup', name), { recursive: true })
  const groups = opened(fake)
  assert.deepEqual([groups.kind, groups.limitsProcesses, groups.countsCpu], ['cgroup1', true, true])
  const group = groups.make('slot-0')
  const limit = join(onlyFolder(fake.own), 'slot-0/memory.limit_in_bytes')
  writeFileSync(limit, '9223372036854771712')
  group.setLimits({ memoryBytes: 1000, processes: 7 })
  assert.equal(readFileSync(limit, 'utf8'), String(1000 + OWN_MEMORY_BYTES))
  const most = join(onlyFolder(join(fake.root, 'sys/fs/cgroup/pids')), 'slot-0/pids.max')
  assert.equal(readFileSync(most, 'utf8'), String(7 + OWN_PROCESSES))
  assert.ok(existsSync(join(onlyFolder(join(fake.root, 'sys/fs/cgroup/cpu,cpuacct')), 'slot-0')))
})

test('no hierarchy at all is a reason', t => {
  const groups = makeFake(t, { mountinfo: '', self: '0::/\n', own: 'x' }).open()
  assert.ok('reason' in groups)
})

test('only the folders of dead owners are orphans', () => {
  const name = makeOwnerName()
  assert.equal(isOrphan(name), false)
  assert.equal(isOrphan(name.replace(/-\d+-(\d+)$/, '-1-$1')), true, 'the pid was given to somebody else since')
  assert.equal(isOrphan('capstan-4194305-5-1'), true)
  for (const other of ['capstan-host', 'capstan-4194305', 'docker', 'xcapstan-4194305-5-1'])
    assert.equal(isOrphan(other), false)
})

test('a dead owner leaves folders that the next one removes, and a living one keeps his', async t => {
  const fake = makeFake2(t)
  const dead = join(fake.own, 'capstan-4194305-5-1')
  mkdirSync(join(dead, 'slot-0'), { recursive: true })
  const living = join(fake.own, makeOwnerName())
  mkdirSync(living)
  const groups = opened(fake)
  await groups.swept
  assert.equal(existsSync(dead), false)
  assert.equal(existsSync(living), true)
})
