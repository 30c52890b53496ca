import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, readdir, readFile, rename, rmdir, stat, symlink, utimes, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { until } from '../../../test/support/until.ts'
import { SettingsError } from '../config.ts'
import { silentLog } from '../log.ts'
import { makeFileStore } from './file.ts'
import {
  contract,
  isUnavailable,
  keysOf,
  makeBytes,
  makeFolder,
  makeKeptLog,
  makeStream,
  outlivesDeletions,
  readBlob,
} from './test-kit.ts'

async function makeStore() {
  const folder = path.join(await makeFolder(), 'blobs')
  return { folder, store: await makeFileStore({ folder, log: silentLog }) }
}

/** Files of the store, relative to its root. */
async function filesIn(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  return entries
    .filter(entry => !entry.isDirectory())
    .map(entry => path.relative(folder, path.join(entry.parentPath, entry.name)))
    .sort()
}

for (const [fact, check] of contract) {
  test(`in a folder: ${fact}`, async () => {
    const { folder, store } = await makeStore()
    await check(store, 'case/ab')
    assert.deepEqual(await readdir(path.join(folder, 'tmp')).catch(() => []), [], 'something lies in tmp/')
  })
}

test('nobody else may read what is kept, and folders go with their last blob', async () => {
  const { folder, store } = await makeStore()
  await store.put('images/3f/some-id/original', makeBytes(10))
  await store.put('images/3f/some-id/variant', makeStream(makeBytes(10)))
  const modeOf = async (name: string) => ((await stat(path.join(folder, name))).mode & 0o777).toString(8)
  assert.equal(await modeOf('images/3f/some-id/original'), '600')
  assert.equal(await modeOf('images/3f/some-id/variant'), '600')
  assert.equal(await modeOf('images/3f/some-id'), '700')
  assert.equal(await modeOf('.'), '700')

  await store.delete(['images/3f/some-id/original'])
  assert.deepEqual(await readdir(path.join(folder, 'images/3f')), ['some-id'])
  await store.delete(['images/3f/some-id/variant'])
  assert.deepEqual(await readdir(path.join(folder, 'images/3f')), [])
})

test('what is put into a folder that goes at that moment stays', async () => {
  const { folder, store } = await makeStore()
  await outlivesDeletions(store, 'case/ab')
  assert.deepEqual(await readdir(path.join(folder, 'tmp')), [])
})

test('links are not followed', async () => {
  const { folder, store } = await makeStore()
  const secret = path.join(await makeFolder(), 'secret')
  await writeFile(secret, 'not for you')
  await store.put('a/blob', makeBytes(1))
  await symlink(secret, path.join(folder, 'a/link'))
  assert.equal(await store.get('a/link'), undefined)
  assert.equal(await store.find('a/link'), undefined)
  assert.equal(await store.withFile('a/link', readFile), undefined)
  assert.deepEqual(await keysOf(store, ''), ['a/blob'])
  await store.put('a/link', makeBytes(1))
  assert.equal(await readFile(secret, 'utf8'), 'not for you')
  assert.deepEqual(await keysOf(store, ''), ['a/blob', 'a/link'])
})

test('a folder that is something else stops the start', async () => {
  const folder = await makeFolder()
  await writeFile(path.join(folder, 'thesis.doc'), '')
  const make = (at: string) => makeFileStore({ folder: at, log: silentLog })
  await assert.rejects(make(folder), (error: Error) => {
    assert.ok(error instanceof SettingsError)
    assert.match(error.message, /BLOB_URL names .* holds thesis\.doc and no capstan-blobs/)
    return true
  })
  await assert.rejects(make(path.join(folder, 'thesis.doc')), SettingsError)
  assert.deepEqual(await readdir(folder), ['thesis.doc'])

  const again = path.join(folder, 'deeper/blobs')
  await (await make(again)).put('a', makeBytes(3))
  assert.deepEqual(await keysOf(await make(again), ''), ['a'])
})

test('while the disk is not mounted nothing is kept, missing or made anew; the log says so once', async () => {
  const folder = path.join(await makeFolder(), 'blobs')
  const { log, lines } = makeKeptLog()
  const store = await makeFileStore({ folder, log })
  await store.put('a/b/c/kept', makeBytes(10))
  const from = path.join(await makeFolder(), 'upload')
  await writeFile(from, 'an upload')
  await rename(folder, `${folder}-away`)

  for (const leavesEmptyFolder of [false, true]) {
    if (leavesEmptyFolder) await mkdir(folder)
    await assert.rejects(store.put('a/b/c/new', makeBytes(10)), isUnavailable)
    await assert.rejects(store.put('new', makeStream(makeBytes(10))), isUnavailable)
    await assert.rejects(store.put('new', makeBytes(10), { durable: false }), isUnavailable)
    await assert.rejects(store.putFile('a/b/file', from), isUnavailable)
    await assert.rejects(store.get('a/b/c/kept'), isUnavailable)
    await assert.rejects(store.find('a/b/c/kept'), isUnavailable)
    await assert.rejects(store.withFile('a/b/c/kept', readFile), isUnavailable)
    await assert.rejects(
      store.withFile('a/b/c/kept', file => readFile(file), { trusting: true }),
      isUnavailable,
    )
    await assert.rejects(store.list('', { limit: 10 }), isUnavailable)
    await assert.rejects(store.delete(['a/b/c/kept']), isUnavailable)
    await assert.rejects(store.sweepUnfinished(new Date()), isUnavailable)
    if (leavesEmptyFolder) assert.deepEqual(await readdir(folder), [])
  }
  assert.equal(lines.length, 1)
  assert.match(`${lines[0]!.msg} ${lines[0]!.reason}`, /see that it is there.*capstan-blobs is not there/)

  await rmdir(folder)
  await rename(`${folder}-away`, folder)
  await store.putFile('a/b/file', from)
  assert.deepEqual(await keysOf(store, ''), ['a/b/c/kept', 'a/b/file'])
})

test('the sweep takes what was left behind, and nothing that is under way', async () => {
  const { folder, store } = await makeStore()
  await store.put('kept', makeBytes(10))
  const left = path.join(folder, 'tmp/left')
  const young = path.join(folder, 'tmp/young')
  await writeFile(left, 'half')
  await writeFile(young, 'half')
  let end: () => void = assert.fail
  const source = new Readable({ read() {} })
  const slow = store.put('slow', source)
  end = () => source.push(null)
  source.push(makeBytes(300_000))
  await until(async () => (await readdir(path.join(folder, 'tmp'))).length === 3)
  const hourMs = 3_600_000
  for (const name of await readdir(path.join(folder, 'tmp'))) {
    if (name !== 'young') await utimes(path.join(folder, 'tmp', name), new Date(0), new Date(0))
  }
  assert.equal(await store.sweepUnfinished(new Date(Date.now() - hourMs)), 1)
  end()
  await slow
  assert.deepEqual(await filesIn(folder), ['capstan-blobs', 'kept', 'slow', 'tmp/young'])
})

const fileStoreUrl = new URL('./file.ts', import.meta.url).href
const logUrl = new URL('../log.ts', import.meta.url).href

/** A program that makes a store in the folder it is given. */
function childArguments(program: string, ...given: string[]): string[] {
  const lines = [
    `import assert from 'node:assert/strict'`,
    `import { createHash } from 'node:crypto'`,
    `import { Readable } from 'node:stream'`,
    `import { readdir } from 'node:fs/promises'`,
    `import { makeFileStore } from '${fileStoreUrl}'`,
    `import { silentLog } from '${logUrl}'`,
    `const folder = process.argv[1]`,
    `const makeBytes = (bytes, seed) => createHash('shake256', { outputLength: bytes }).update(seed).digest()`,
    program,
  ]
  return ['--input-type=module', '-e', lines.join('\n'), ...given]
}

const FILLS_DISK = `
  const store = await makeFileStore({ folder: folder + '/blobs', log: silentLog })
  const kept = []
  let refused = 0
  for (let index = 0; index < 60; index++) {
    const bytes = makeBytes(200_000, String(index))
    const source = index % 2 ? bytes : Readable.from([bytes], { objectMode: false })
    try {
      await store.put('images/' + (100 + index), source)
      kept.push('images/' + (100 + index))
    } catch (error) {
      assert.equal(error.code, 'blob_store_unavailable')
      assert.match(error.message, /full/)
      refused++
    }
  }
  assert.ok(kept.length > 10 && refused > 10, 'kept ' + kept.length)
  const listed = await store.list('', { limit: 100 })
  assert.deepEqual(listed.map(each => each.key), kept)
  assert.ok(listed.every(each => each.bytes === 200_000))
  assert.deepEqual(await readdir(folder + '/blobs/tmp'), [])
  await store.delete([kept[0]])
  await store.put('images/later', makeBytes(190_000, 'later'))
`

const whyNoMounts = findMountFault()

function findMountFault(): string | false {
  try {
    execFileSync('unshare', ['-rm', 'true'], { stdio: 'ignore' })
    return false
  } catch {
    return 'this machine lets nobody mount a small disk (unshare -rm)'
  }
}

test('a full disk keeps what it kept, refuses the rest and goes on when there is room', {
  skip: whyNoMounts,
}, async () => {
  const folder = await makeFolder()
  const mount = `mount -t tmpfs -o size=4m capstan "$1" && shift && exec "$@"`
  const command = [process.execPath, ...childArguments(FILLS_DISK, folder)]
  execFileSync('unshare', ['-rm', 'sh', '-c', mount, 'sh', folder, ...command], { stdio: ['ignore', 'pipe', 'pipe'] })
})

const PUTS_UNTIL_KILLED = `
  const store = await makeFileStore({ folder, log: silentLog })
  const round = process.argv[2]
  let next = 0
  const put = async () => {
    for (;;) {
      const key = 'images/' + round + '/' + next + '-' + 50_000 * (next % 8) + '/original'
      next++
      const bytes = makeBytes(Number(/-(\\d+)\\//.exec(key)[1]), key)
      await store.put(key, next % 2 ? bytes : Readable.from([bytes.subarray(0, 70_000), bytes.subarray(70_000)]))
      process.stdout.write(key + '\\n')
    }
  }
  await Promise.all(Array.from({ length: 16 }, put))
`

test('whatever was acknowledged before a kill is whole, and nothing else stands half', async () => {
  const rounds = 8
  const folder = path.join(await makeFolder(), 'blobs')
  const acknowledged: string[] = []
  for (let round = 0; round < rounds; round++) {
    const child = spawn(process.execPath, childArguments(PUTS_UNTIL_KILLED, folder, String(round)), {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    let said = ''
    const killAt = 20 + Math.floor(Math.random() * 3000)
    child.stdout!.on('data', piece => {
      said += piece
      if (said.length > killAt) child.kill('SIGKILL')
    })
    await once(child, 'close')
    acknowledged.push(...said.split('\n').slice(0, -1))
  }
  assert.ok(acknowledged.length >= rounds)

  const store = await makeFileStore({ folder, log: silentLog })
  const listed = await keysOf(store, '')
  assert.deepEqual(
    acknowledged.filter(key => !listed.includes(key)),
    [],
  )
  for (const key of listed) {
    const bytes = makeBytes(Number(/-(\d+)\//.exec(key)![1]), key)
    assert.ok(bytes.equals((await readBlob(store, key))!), key)
  }
  const left = await readdir(path.join(folder, 'tmp'))
  assert.equal(await store.sweepUnfinished(new Date(Date.now() + 1000)), left.length)
  assert.deepEqual(await filesIn(folder), ['capstan-blobs', ...listed].sort())
})

const PUTS_IN_ALL_WAYS = `
  import { writeFile } from 'node:fs/promises'
  import { writeSync } from 'node:fs'
  const store = await makeFileStore({ folder: folder + '/blobs', log: silentLog })
  const bytes = makeBytes(100_000, 'traced')
  await writeFile(folder + '/upload', bytes)
  writeSync(1, 'begin\\n')
  await store.put('images/3f/buffer/original', bytes)
  writeSync(1, 'kept\\n')
  await store.put('images/3f/stream/original', Readable.from([bytes], { objectMode: false }))
  writeSync(1, 'kept\\n')
  await store.putFile('images/3f/file/original', folder + '/upload')
  writeSync(1, 'kept\\n')
  await store.put('images/4a/buffer/original', bytes, { durable: false })
  writeSync(1, 'kept\\n')
  await store.put('images/4a/stream/original', bytes)
  writeSync(1, 'kept\\n')
`

const whyNoTrace = findTraceFault()

function findTraceFault(): string | false {
  try {
    execFileSync('strace', ['-o', '/dev/null', 'true'], { stdio: 'ignore' })
    return false
  } catch {
    return 'there is no strace here, or it may not trace'
  }
}

test('before a put is acknowledged its bytes are on the disk, then its name and its folders', {
  skip: whyNoTrace,
}, async () => {
  const folder = await makeFolder()
  const trace = path.join(folder, 'trace')
  const calls = 'trace=write,fsync,fdatasync,rename,renameat,renameat2'
  const program = childArguments(PUTS_IN_ALL_WAYS, folder)
  execFileSync('strace', ['-f', '-e', calls, '-o', trace, process.execPath, ...program], { stdio: 'pipe' })
  const lines = (await readFile(trace, 'utf8')).split('\n')
  const begin = lines.findIndex(line => line.includes('begin'))
  const steps = lines.slice(begin + 1).flatMap(line => {
    if (line.includes('write(1, "kept')) return ['kept']
    // Calls that were interrupted in the trace count when they end.
    const [, name] = /(fsync|fdatasync|rename\w*)(?:\(.*| resumed>.*)\) += 0$/.exec(line) ?? []
    return name ? [name.replace(/^rename.*/, 'rename')] : []
  })
  // Folders: the new one and the one that lists it; the first time also those above.
  const put = ['fdatasync', 'rename', 'fsync', 'fsync', 'kept']
  const first = ['fdatasync', 'rename', 'fsync', 'fsync', 'fsync', 'fsync', 'kept']
  // What need not be durable waits for nothing; who comes after it to the same folders still does.
  const quick = ['rename', 'kept']
  const later = ['fdatasync', 'rename', 'fsync', 'fsync', 'fsync', 'kept']
  assert.deepEqual(steps, [...first, ...put, ...put, ...quick, ...later])
})
