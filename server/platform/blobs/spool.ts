/** Files of this machine that hold, for a moment, what goes into a bucket or comes out of it. */
import { randomUUID } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, mkdir, open, opendir, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import { unlessAbsent } from './folder-list.ts'

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_RDWR } = constants
const fileMode = 0o600
const folderMode = 0o700

export interface Spool {
  /** A new file, gone when `use` ends. */
  withFile<T>(use: (file: { handle: FileHandle; path: string }) => Promise<T>): Promise<T>
  /** Removes what killed processes left before that time. */
  sweep(before: Date): Promise<number>
}

export function makeSpool(folder: string, guard: <T>(work: () => Promise<T>) => Promise<T>): Spool {
  const underWay = new Set<string>()

  async function create(at: string): Promise<FileHandle> {
    await mkdir(folder, { recursive: true, mode: folderMode })
    return open(at, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW, fileMode)
  }

  return {
    async withFile(use) {
      const at = path.join(folder, randomUUID())
      underWay.add(at)
      const handle = await guard(() => create(at)).catch(error => {
        underWay.delete(at)
        throw error
      })
      try {
        return await use({ handle, path: at })
      } finally {
        await handle.close()
        await unlessAbsent(unlink(at))
        underWay.delete(at)
      }
    },
    async sweep(before) {
      let swept = 0
      for await (const { name } of (await unlessAbsent(opendir(folder))) ?? []) {
        const at = path.join(folder, name)
        const stats = await unlessAbsent(stat(at))
        if (!stats || stats.mtime >= before || underWay.has(at)) continue
        await unlessAbsent(unlink(at))
        swept++
      }
      return swept
    },
  }
}
