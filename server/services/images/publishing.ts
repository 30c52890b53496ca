/** Images of the old contract as files in BASE_PATH, where its users' web servers look for them. */
import { copyFile, mkdir, open, rename, rm } from 'node:fs/promises'
import path from 'node:path'

export interface Publisher {
  /** Copies the file to `<image id>.jpg`: whole and durable, or not at all. */
  publish(imageId: string, source: string): Promise<void>
  erase(imageId: string): Promise<void>
}

/** @param folder undefined where files are not wanted */
export function makePublisher(folder: string | undefined): Publisher {
  if (folder === undefined) return { publish: async () => {}, erase: async () => {} }
  const nameOf = (imageId: string) => path.join(folder, `${imageId}.jpg`)
  const draftOf = (imageId: string) => `${nameOf(imageId)}.part`
  return {
    async publish(imageId, source) {
      await mkdir(folder, { recursive: true })
      const draft = draftOf(imageId)
      await copyFile(source, draft)
      await sync(draft)
      await rename(draft, nameOf(imageId))
      await sync(folder)
    },
    async erase(imageId) {
      for (const name of [nameOf(imageId), draftOf(imageId)]) await rm(name, { force: true })
    },
  }
}

async function sync(name: string) {
  const handle = await open(name, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}
