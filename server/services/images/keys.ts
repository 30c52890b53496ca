import type { InputFormat, OutputFormat } from './types.ts'

/** Where the blobs of a file are. Spread over 256 folders by the random end of its id. */
export function filePrefix(fileId: string): string {
  return `images/${fileId.slice(-2)}/${fileId}/`
}

export function originalKey(fileId: string): string {
  return `${filePrefix(fileId)}original`
}

export function variantKey(fileId: string, variant: { name: string; format: InputFormat | OutputFormat }): string {
  return `${filePrefix(fileId)}variant-${variant.name}.${variant.format}`
}

/** @param name as in the table of transforms, such as `3f….webp` */
export function transformKey(fileId: string, name: string): string {
  return `${filePrefix(fileId)}transform-${name}`
}

/** Of `images/3f/<id>/…`; undefined for a key that is no file's. */
export function fileOfKey(key: string): string | undefined {
  return /^images\/[0-9a-f]{2}\/([0-9a-f-]{36})\//.exec(key)?.[1]
}
