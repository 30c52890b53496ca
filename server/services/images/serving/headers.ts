import type { InputFormat, OutputFormat } from '../types.ts'

/** By what somebody may see an image; it decides who may keep the answer. */
export type Grant =
  | { by: 'public' }
  | { by: 'owner' }
  /** A signed link, for so long still. */
  | { by: 'link'; seconds: number }

const keepSecondsMax = 86_400

/**
 * Presets of public images may stay in every cache, but not for ever: an image can be deleted, a preset changed. What its
 * owner sees stays in the browser and is asked for anew each time, which a 304 answers; whoever logs out sees it no more.
 */
export function cacheControl(grant: Grant): string {
  if (grant.by === 'public') return `public, max-age=${keepSecondsMax}`
  if (grant.by === 'link') return `private, max-age=${Math.min(grant.seconds, keepSecondsMax)}`
  return 'private, no-cache'
}

/** Whether other sites' pages may show it: what is public or behind a link is made for that. */
export function resourcePolicy(grant: Grant): string {
  return grant.by === 'owner' ? 'same-site' : 'cross-origin'
}

export function mediaType(format: InputFormat | OutputFormat): string {
  return `image/${format}`
}

const extensions: Partial<Record<InputFormat | OutputFormat, string>> = { jpeg: 'jpg', tiff: 'tif' }

/**
 * Names what is downloaded, as in RFC 6266. The extension is always the real format's, so that nobody is handed an
 * `evil.html`.
 */
export function contentDisposition(given: {
  type: 'inline' | 'attachment'
  name: string
  format: InputFormat | OutputFormat
}): string {
  const stem = given.name.toWellFormed().replace(/\.[^.]{0,10}$/, '') || 'image'
  const name = `${stem}.${extensions[given.format] ?? given.format}`
  // A percent sign or a backslash means one thing to one browser and another to the next.
  const plain = name.replace(/[^\x20-\x7e]|["\\%/:*?<>|;]/g, '_')
  const encoded = encodeURIComponent(name).replace(
    /['()*!]/g,
    sign => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`,
  )
  return `${given.type}; filename="${plain}"${plain === name ? '' : `; filename*=UTF-8''${encoded}`}`
}
