import { lstat, readdir } from 'node:fs/promises'
import path from 'node:path'
import { compareKeys } from './keys.ts'
import type { BlobInfo } from './types.ts'

/**
 * Blobs of a folder tree in the order of their keys. One folder a level is held in memory at a time, and those that
 * lie wholly before `after` or outside of `prefix` are not read.
 *
 * @param skipped names in the root that are no blobs
 */
export async function* walkBlobs(
  root: string,
  given: { prefix: string; after: string | undefined; skipped: readonly string[] },
): AsyncGenerator<BlobInfo> {
  const { prefix, after } = given

  async function* walk(folder: string): AsyncGenerator<BlobInfo> {
    for (const key of await readFolder(root, folder)) {
      if (folder === '' && given.skipped.includes(key.replace(/\/$/, ''))) continue
      if (key.endsWith('/')) {
        if (mayHold(key)) yield* walk(key)
      } else if (key.startsWith(prefix) && (after === undefined || compareKeys(key, after) > 0)) {
        const found = await findFile(root, key)
        if (found) yield found
      }
    }
  }

  function mayHold(folder: string): boolean {
    if (!folder.startsWith(prefix) && !prefix.startsWith(folder)) return false
    return after === undefined || after.startsWith(folder) || compareKeys(folder, after) > 0
  }

  yield* walk(prefix.slice(0, prefix.lastIndexOf('/') + 1))
}

/** Undefined for what is no file, such as a link to one. */
export async function findFile(root: string, key: string): Promise<BlobInfo | undefined> {
  const stats = await unlessAbsent(lstat(path.join(root, key)))
  return stats?.isFile() ? { key, bytes: stats.size, modifiedAt: stats.mtime } : undefined
}

/** Undefined where there is nothing of that name. */
export async function unlessAbsent<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work
  } catch (error) {
    if (isAbsent(error)) return undefined
    throw error
  }
}

/** ENOTDIR: a blob stands where a folder would have to. ELOOP: a link, and links are not followed. */
export function isAbsent(error: unknown): boolean {
  return ['ENOENT', 'ENOTDIR', 'ELOOP'].includes(codeOf(error))
}

export function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException | undefined)?.code ?? ''
}

/** What it holds as keys; folders end in a slash, which decides their place among the others. */
async function readFolder(root: string, folder: string): Promise<string[]> {
  const entries = await unlessAbsent(readdir(path.join(root, folder), { withFileTypes: true }))
  const keys = (entries ?? [])
    .filter(entry => entry.isFile() || entry.isDirectory())
    .map(entry => `${folder}${entry.name}${entry.isDirectory() ? '/' : ''}`)
  return keys.sort(compareKeys)
}
