import { hkdfSync, randomBytes } from 'node:crypto'
import { linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { SettingsError } from '#platform/config.ts'

/**
 * AUTH_SECRET, or the one kept in `folder`, made at the first start.
 * @throws SettingsError in production on a shared database, where every process needs the same one.
 */
export function resolveSecret(given: {
  configured: string | undefined
  mustBeConfigured: boolean
  folder: string
}): string {
  if (given.configured !== undefined) return given.configured
  if (given.mustBeConfigured) {
    throw new SettingsError([
      'AUTH_SECRET is not set, but production with DATABASE_URL needs it: make one with `openssl rand -base64 32` and give it to every process.',
    ])
  }
  const file = path.join(given.folder, 'auth-secret')
  return readSecret(file) ?? makeSecret(file)
}

function readSecret(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8').trim()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

/** A link appears with its content or not at all, and for one of several processes only; the others read that one's. */
function makeSecret(file: string): string {
  mkdirSync(path.dirname(file), { recursive: true })
  const draft = `${file}.${process.pid}-${randomBytes(4).toString('hex')}`
  writeFileSync(draft, `${randomBytes(32).toString('base64url')}\n`, { mode: 0o600, flag: 'wx' })
  try {
    linkSync(draft, file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
  } finally {
    rmSync(draft, { force: true })
  }
  return readSecret(file)!
}

/** 32 bytes for one purpose (HKDF, RFC 5869), so that no two uses share a key. */
export function deriveKey(secret: string, purpose: string): Buffer {
  return Buffer.from(hkdfSync('sha256', secret, '', `capstan identity ${purpose}`, 32))
}
