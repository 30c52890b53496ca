/**
 * Blobs in a folder. A blob under way is a file in `tmp/`; when all of it is on the disk it is renamed to its key, and
 * when the folders that lead there are on the disk too, it is kept. So under a key stands a whole blob or none, whenever
 * the machine stops; what lies in `tmp/` then is swept away. Only a disk that fails at the very last, when it is to keep
 * the folders, leaves a whole blob whose put was refused. What was put with `durable: false` goes the same way without
 * waiting for the disk, so that a machine which stops may leave it shorter, or not at all.
 *
 * A disk that is no longer mounted leaves an empty folder of the disk below. So the root holds a marker: without it
 * nothing is believed to be absent, and no folder is made. Deletions are not waited for: a blob that a crash brings back
 * belongs to nobody.
 */
import assert from 'node:assert/strict'
import { constants } from 'node:fs'
import { copyFile, open, opendir, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import type { Log } from '../log.ts'
import { fileMode, fileTroubleOf, openRoot } from './file-root.ts'
import { type Durability, discard, type FileTree, makeFileTree, type Temporary } from './file-tree.ts'
import { codeOf, findFile, isAbsent, unlessAbsent, walkBlobs } from './folder-list.ts'
import { assertKey, assertPrefix, markerName, tmpName } from './keys.ts'
import { makeOutage, type Outage } from './outage.ts'
import { streamOf, withSource, writeAll, writeChunks } from './streams.ts'
import type { BlobInfo, BlobStore, ByteRange } from './types.ts'

const readBytes = 256 * 1024
const deletesAtOnce = 8

/** @throws SettingsError where the folder cannot be used */
export async function makeFileStore(given: { folder: string; log: Log }): Promise<BlobStore> {
  const root = await openRoot(given.folder)
  const description = `file:${root}`
  const outage = makeOutage({ description, log: given.log, troubleOf: fileTroubleOf })
  const { guard } = outage
  const tree = makeFileTree(root)
  const keep = makeKeeping(tree, outage)

  return {
    description,
    async put(key, source, { signal, durable = true } = {}) {
      assertKey(key)
      if (Buffer.isBuffer(source)) {
        signal?.throwIfAborted()
        return keep(key, temporary => guard(() => writeAll(temporary.handle, source)), { durable })
      }
      const fill = async (temporary: Temporary, chunks: AsyncIterable<Buffer>) => {
        const bytes = await writeChunks(temporary.handle, chunks, guard)
        signal?.throwIfAborted()
        return bytes
      }
      return withSource(source, signal, chunks => keep(key, temporary => fill(temporary, chunks), { durable }))
    },
    async putFile(key, from) {
      assertKey(key)
      const bytes = await settle(from, outage)
      try {
        // Moved where it can be, which costs nothing.
        await guard(() => tree.publish(from, key, { durable: true }))
        return { bytes }
      } catch (error) {
        if (codeOf(error) !== 'EXDEV') throw error
      }
      return keep(key, temporary => guard(() => copyFile(from, temporary.path)).then(() => bytes), { durable: true })
    },
    async get(key, range) {
      assertKey(key)
      const opened = await guard(() => openBlob(tree, key, range))
      if (!opened) return undefined
      const chunks = opened.handle.createReadStream({ ...range, highWaterMark: readBytes })
      const stream = streamOf({ chunks, translate: outage.translate, end: () => chunks.destroy() })
      return { stream, bytes: opened.bytes }
    },
    async find(key) {
      assertKey(key)
      return guard(() => findBlob(tree, key))
    },
    async withFile(key, use, { trusting = false } = {}) {
      assertKey(key)
      const find = () => guard(() => findBlob(tree, key))
      if (!trusting && !(await find())) return undefined
      try {
        return await use(tree.pathOf(key))
      } catch (error) {
        if (trusting && !(await find())) return undefined
        throw error
      }
    },
    async delete(keys) {
      for (const key of keys) assertKey(key)
      await guard(() => deleteAll(tree, keys))
    },
    async list(prefix, options) {
      assertPrefix(prefix)
      return guard(() => listBlobs(tree, prefix, options))
    },
    sweepUnfinished: before => guard(() => sweep(tree, before, keep.underWay)),
    async close() {},
  }
}

/** Fills a temporary file and gives it its key. Where that fails, nothing of it stays. */
function makeKeeping(tree: FileTree, { guard }: Outage) {
  const underWay = new Set<string>()

  async function keep(
    key: string,
    fill: (temporary: Temporary) => Promise<number>,
    { durable }: Durability,
  ): Promise<{ bytes: number }> {
    const temporary = await guard(tree.openTemporary)
    underWay.add(temporary.path)
    try {
      const bytes = await fill(temporary)
      await guard(async () => {
        if (durable) await temporary.handle.datasync()
        // Some disks say only now that they are full.
        await temporary.handle.close()
        await tree.publish(temporary.path, key, { durable })
      })
      return { bytes }
    } catch (error) {
      await Promise.allSettled([discard(temporary), tree.prune([key])])
      throw error
    } finally {
      underWay.delete(temporary.path)
    }
  }

  return Object.assign(keep, { underWay })
}

/** Brings a file of this machine onto its disk. @returns its size */
async function settle(from: string, { guard }: Outage): Promise<number> {
  const handle = await open(from, constants.O_RDONLY | constants.O_NOFOLLOW)
  try {
    const { size } = await handle.stat()
    await guard(async () => {
      await handle.chmod(fileMode)
      await handle.datasync()
    })
    return size
  } finally {
    await handle.close()
  }
}

async function openBlob(tree: FileTree, key: string, range: ByteRange | undefined) {
  const handle = await unlessAbsent(open(tree.pathOf(key), constants.O_RDONLY | constants.O_NOFOLLOW))
  try {
    const stats = await handle?.stat()
    if (handle && stats?.isFile()) {
      assert.ok(!range || (range.start <= range.end && range.end < stats.size), `the range lies outside of ${key}`)
      return { handle, bytes: stats.size }
    }
  } catch (error) {
    await handle?.close()
    throw error
  }
  await handle?.close()
  await tree.assertMounted()
  return undefined
}

/** While the root is away nothing is absent for sure. */
async function findBlob(tree: FileTree, key: string): Promise<BlobInfo | undefined> {
  const found = await findFile(tree.pathOf(''), key)
  if (!found) await tree.assertMounted()
  return found
}

async function deleteAll(tree: FileTree, keys: readonly string[]) {
  let absent = false
  const deleteOne = async (key: string) => {
    try {
      await unlink(tree.pathOf(key))
    } catch (error) {
      // A folder has no key.
      if (!isAbsent(error) && codeOf(error) !== 'EISDIR') throw error
      absent = true
    }
  }
  for (let at = 0; at < keys.length; at += deletesAtOnce) {
    await Promise.all(keys.slice(at, at + deletesAtOnce).map(deleteOne))
  }
  if (absent) await tree.assertMounted()
  await tree.prune(keys)
}

async function listBlobs(tree: FileTree, prefix: string, options: { after?: string; limit: number }) {
  const found: BlobInfo[] = []
  const skipped = [tmpName, markerName]
  const blobs = walkBlobs(tree.pathOf(''), { prefix, after: options.after, skipped })
  while (found.length < options.limit) {
    const next = await blobs.next()
    if (next.done) break
    found.push(next.value)
  }
  await tree.assertMounted()
  return found
}

/** @param underWay those of this process, however slow they are */
async function sweep(tree: FileTree, before: Date, underWay: ReadonlySet<string>): Promise<number> {
  let swept = 0
  const folder = await unlessAbsent(opendir(tree.pathOf(tmpName)))
  if (!folder) await tree.assertMounted()
  for await (const { name } of folder ?? []) {
    const at = path.join(tree.pathOf(tmpName), name)
    const stats = await unlessAbsent(stat(at))
    if (!stats || stats.mtime >= before || underWay.has(at)) continue
    await unlessAbsent(unlink(at))
    swept++
  }
  return swept
}
