/** Colour profiles that may stay with an image. */

const signatureAt = 36
const colourSpaceAt = 16
const headerBytes = 128

/**
 * Whether the profile is kept, and the colours as they are. Else they are converted to sRGB: what is made has red, green
 * and blue, so a profile of grey or of inks would be wrong on it, and a broken one helps nobody.
 */
export function holdsProfile({ icc, space }: { icc?: Buffer | undefined; space?: string | undefined }): boolean {
  if (!icc || icc.length < headerBytes || (space !== 'srgb' && space !== 'rgb16' && space !== 'rgb')) return false
  const isWhole = icc.readUInt32BE(0) === icc.length && icc.toString('latin1', signatureAt, signatureAt + 4) === 'acsp'
  return isWhole && icc.toString('latin1', colourSpaceAt, colourSpaceAt + 4) === 'RGB '
}
