/** The folders of a `file:` store: how files get into them for good, and how those that are empty go. */
import { randomUUID } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, mkdir, open, rename, rmdir, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import { fileMode, folderMode, GoneError } from './file-root.ts'
import { codeOf, unlessAbsent } from './folder-list.ts'
import { makeFolderSync } from './folder-sync.ts'
import { markerName, tmpName } from './keys.ts'

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_WRONLY } = constants
/** Others may remove a folder again and again while a blob is put into it. */
const renamesMax = 50
/**
 * Folders of the first levels (`images/3f`) stay when they are empty. So a process makes their names durable once;
 * those of deeper ones at every put, as somebody else may just have made them anew.
 */
const lastingDepth = 2
const lastingMax = 10_000

export interface Temporary {
  handle: FileHandle
  path: string
}

export interface Durability {
  durable: boolean
}

export interface FileTree {
  pathOf(key: string): string
  /** @throws GoneError where the root is not there, or is not the one we know */
  assertMounted(): Promise<void>
  /** A new file that no key leads to. */
  openTemporary(): Promise<Temporary>
  /**
   * Gives a file of the same disk its key. Where it is to be durable, its bytes must be on the disk; the names that lead
   * to it then are, too.
   */
  publish(from: string, key: string, durability: Durability): Promise<void>
  /** Removes the folders of these keys that are empty. */
  prune(keys: readonly string[]): Promise<void>
}

export function makeFileTree(root: string): FileTree {
  const syncFolder = makeFolderSync()
  /** Folders whose names are known to be durable. */
  const lasting = new Set<string>()
  const pathOf = (key: string) => path.join(root, key)

  async function assertMounted() {
    if (!(await unlessAbsent(stat(pathOf(markerName))))) throw new GoneError(root)
  }

  /** Not `mkdir -p`, which would make a root that has gone. */
  async function makeFolder(folder: string): Promise<void> {
    try {
      await mkdir(pathOf(folder), folderMode)
      lasting.delete(folder)
    } catch (error) {
      if (codeOf(error) === 'EEXIST') return
      if (codeOf(error) !== 'ENOENT' || !folder.includes('/')) throw error
      await makeFolder(path.dirname(folder))
      await makeFolder(folder)
    }
  }

  async function openTemporary(): Promise<Temporary> {
    const at = pathOf(`${tmpName}/${randomUUID()}`)
    const create = () => open(at, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, fileMode)
    const handle = await unlessAbsent(create())
    if (handle) return { handle, path: at }
    await assertMounted()
    await makeFolder(tmpName)
    return { handle: await create(), path: at }
  }

  async function publish(from: string, key: string, { durable }: Durability) {
    const folder = parentOf(key)
    for (let attempt = 1; ; attempt++) {
      try {
        await rename(from, pathOf(key))
        break
      } catch (error) {
        if (codeOf(error) !== 'ENOENT' || folder === '' || attempt === renamesMax) throw error
        await assertMounted()
        await makeFolder(folder)
      }
    }
    if (durable) await syncPath(folder)
  }

  async function syncPath(folder: string) {
    const unsure = withParents(folder).filter(each => !lasting.has(each))
    await Promise.all([folder, ...unsure.map(parentOf)].map(syncOne))
    if (lasting.size > lastingMax) lasting.clear()
    for (const each of unsure) {
      if (depthOf(each) <= lastingDepth) lasting.add(each)
    }
  }

  /** A folder that went meanwhile took with it what was to be kept: somebody deleted it. */
  async function syncOne(folder: string) {
    try {
      await syncFolder(pathOf(folder))
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') throw error
      await assertMounted()
    }
  }

  async function prune(keys: readonly string[]) {
    for (const start of new Set(keys.map(parentOf))) {
      for (let folder = start; depthOf(folder) > lastingDepth; folder = parentOf(folder)) {
        if (!(await removeEmpty(pathOf(folder)))) break
      }
    }
  }

  return { pathOf, assertMounted, openTemporary, publish, prune }
}

/** Closes it and removes it, if it still has its temporary name. */
export async function discard({ handle, path: at }: Temporary) {
  await handle.close()
  await unlessAbsent(unlink(at))
}

async function removeEmpty(folder: string): Promise<boolean> {
  try {
    await rmdir(folder)
    return true
  } catch (error) {
    if (['ENOTEMPTY', 'EEXIST', 'ENOENT', 'ENOTDIR', 'EBUSY'].includes(codeOf(error))) return false
    throw error
  }
}

/** Of `a/b/c` it is `a/b`, of `a` the root, which is an empty text. */
function parentOf(key: string): string {
  return key.slice(0, Math.max(0, key.lastIndexOf('/')))
}

/** `a`, `a/b` and `a/b/c` of the last. */
function withParents(folder: string): string[] {
  return folder === '' ? [] : [...withParents(parentOf(folder)), folder]
}

function depthOf(folder: string): number {
  return folder === '' ? 0 : folder.split('/').length
}
