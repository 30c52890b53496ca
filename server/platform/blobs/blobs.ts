import path from 'node:path'
import { type PlatformSettings, SettingsError } from '../config.ts'
import type { Log } from '../log.ts'
import { makeFileStore } from './file.ts'
import type { BlobStore } from './types.ts'
import { parseBlobUrl } from './url.ts'

type BlobSettings = Pick<PlatformSettings, 'BLOB_URL' | 'DATA_DIR' | 'S3_ACCESS_KEY_ID' | 'S3_SECRET_ACCESS_KEY'>

/**
 * The blob store that the settings name. One that is away for a while does not stop the start.
 *
 * @throws SettingsError where it cannot be one
 */
export async function makeBlobs({ settings, log }: { settings: BlobSettings; log: Log }): Promise<BlobStore> {
  const target = parseBlobUrl(settings.BLOB_URL ?? `file:${path.resolve(settings.DATA_DIR, 'blobs')}`)
  if (target.kind === 'file') return makeFileStore({ folder: path.resolve(target.folder), log })
  const { S3_ACCESS_KEY_ID: id, S3_SECRET_ACCESS_KEY: secret } = settings
  if ((id === undefined) !== (secret === undefined)) {
    const [given, absent] = id
      ? ['S3_ACCESS_KEY_ID', 'S3_SECRET_ACCESS_KEY']
      : ['S3_SECRET_ACCESS_KEY', 'S3_ACCESS_KEY_ID']
    throw new SettingsError([`${given} is set, but ${absent} is not: set both, or neither.`])
  }
  // The SDK takes its time and memory; most who start Capstan have no need of it.
  const { makeS3Store } = await import('./s3.ts')
  return makeS3Store({
    target,
    keys: id && secret ? { id, secret } : undefined,
    spoolFolder: path.resolve(settings.DATA_DIR, 'tmp', 'blobs'),
    log,
  })
}
