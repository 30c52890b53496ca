import { constants } from 'node:fs'
import { open } from 'node:fs/promises'

interface Entry {
  now: Promise<void>
  next: Promise<void> | undefined
}

/**
 * Makes what a folder lists durable. Those who ask while a sync of the folder is under way share the next one: what
 * they did may have come too late for the one that runs.
 */
export function makeFolderSync(sync: (folder: string) => Promise<void> = syncFolder) {
  const entries = new Map<string, Entry>()

  function begin(folder: string): Promise<void> {
    const entry: Entry = { now: sync(folder), next: undefined }
    entries.set(folder, entry)
    const done = () => {
      if (!entry.next) entries.delete(folder)
    }
    entry.now.then(done, done)
    return entry.now
  }

  return (folder: string): Promise<void> => {
    const entry = entries.get(folder)
    if (!entry) return begin(folder)
    entry.next ??= entry.now.catch(() => undefined).then(() => begin(folder))
    return entry.next
  }
}

export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}
