import { mkdir, open, readdir, realpath } from 'node:fs/promises'
import path from 'node:path'
import { SettingsError } from '../config.ts'
import { messageOf } from '../errors.ts'
import { syncFolder } from './folder-sync.ts'
import { markerName } from './keys.ts'
import type { Trouble } from './outage.ts'

export const fileMode = 0o600
export const folderMode = 0o700
const markerText = 'Capstan keeps blobs here. Without this file it takes the folder for a disk that is not mounted.\n'
/** What a new disk may hold. */
const ownOfDisks = ['lost+found']

/** The store's folder is not there, or it is another one than it was. */
export class GoneError extends Error {
  readonly code = 'ENOENT'

  constructor(root: string) {
    super(`${path.join(root, markerName)} is not there: is the disk mounted?`)
  }
}

const troubles: Record<string, Trouble> = {
  ENOSPC: 'full',
  EDQUOT: 'full',
  EFBIG: 'full',
  EROFS: 'refused',
  EACCES: 'refused',
  EPERM: 'refused',
  EIO: 'away',
  ENOENT: 'away',
  ENOTDIR: 'away',
  ENODEV: 'away',
  ENXIO: 'away',
  ENOTCONN: 'away',
  ESTALE: 'away',
  ETIMEDOUT: 'away',
  EMFILE: 'away',
  ENFILE: 'away',
}

/** @returns undefined for what is no trouble of a file system */
export function fileTroubleOf(error: unknown): Trouble | undefined {
  return troubles[(error as NodeJS.ErrnoException | undefined)?.code ?? '']
}

/**
 * Makes the folder and its marker where there is neither.
 * @returns its real path
 * @throws SettingsError where it cannot be used
 */
export async function openRoot(folder: string): Promise<string> {
  try {
    const firstMade = await mkdir(folder, { recursive: true, mode: folderMode })
    const root = await realpath(folder)
    const names = await readdir(root)
    if (names.includes(markerName)) return root
    const foreign = names.find(name => !ownOfDisks.includes(name))
    if (foreign !== undefined) {
      throw new SettingsError([
        `BLOB_URL names ${root}, but that folder holds ${foreign} and no ${markerName}: it is no store of blobs. Name an empty one, or a new one.`,
      ])
    }
    await writeMarker(root)
    await syncUpTo(path.dirname(firstMade ?? root), root)
    return root
  } catch (error) {
    if (error instanceof SettingsError) throw error
    throw new SettingsError([`BLOB_URL names the folder ${folder}, but it cannot be used: ${messageOf(error)}`])
  }
}

/** Two processes may start at once. */
async function writeMarker(root: string) {
  const handle = await open(path.join(root, markerName), 'w', fileMode)
  try {
    await handle.writeFile(markerText)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** The folder and those above it, up to the first that was there before. */
async function syncUpTo(top: string, root: string) {
  for (let folder = root; folder.length >= top.length; folder = path.dirname(folder)) {
    await syncFolder(folder)
    if (folder === path.dirname(folder)) break
  }
}
