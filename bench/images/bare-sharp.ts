/** sharp called bare, 4 at once in one process: told what to do by its parent, tells when it is done. */
import sharp from 'sharp'
import type { Fit } from './shape.ts'

sharp.cache(false)
sharp.concurrency(1)

process.on('message', async ({ id, path, fit }: { id: number; path: string; fit: Fit }) => {
  try {
    const { width, height, quality } = fit
    const { data } = await sharp(path)
      .autoOrient()
      .resize({ width, height, fit: 'inside', withoutEnlargement: true })
      .keepIccProfile()
      .jpeg({ quality })
      .toBuffer({ resolveWithObject: true })
    process.send!({ id, bytes: data.length })
  } catch (error) {
    process.send!({ id, error: String(error) })
  }
})
process.on('disconnect', () => process.exit(0))
