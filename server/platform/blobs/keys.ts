import assert from 'node:assert/strict'

const keyBytesMax = 512
const wordBytesMax = 200
/** Names that a folder of blobs needs for itself. No store takes them, so that blobs can move from one to the other. */
export const tmpName = 'tmp'
export const markerName = 'capstan-blobs'

/** Keys are ours: one that breaks a rule is a bug, above all one that could lead out of a folder. */
export function assertKey(key: string) {
  const words = key.split('/')
  assert.ok(
    key.length <= keyBytesMax && words.every(isWord) && words[0] !== tmpName && words[0] !== markerName,
    `This is no key of a blob: ${JSON.stringify(key)}`,
  )
}

/** A prefix is the beginning of a key. */
export function assertPrefix(prefix: string) {
  const words = prefix.split('/')
  const last = words.pop()!
  assert.ok(
    prefix.length <= keyBytesMax && words.every(isWord) && /^[a-z0-9_.-]*$/.test(last) && last !== '..',
    `No key of a blob begins with ${JSON.stringify(prefix)}`,
  )
}

function isWord(word: string): boolean {
  return /^[a-z0-9_.-]+$/.test(word) && !/^\.+$/.test(word) && word.length <= wordBytesMax
}

/** As S3 orders them: by bytes, whatever the language of the machine. Keys are ASCII. */
export function compareKeys(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}
