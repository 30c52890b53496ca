import type { Queryable } from '#platform/database/pool.ts'
import { idBlockSize, takeIdBlock } from './store.ts'

export interface Ids {
  /** The first of `count` free ids in a row. What is not used of them is never used. */
  take(db: Queryable, count: number): Promise<number>
}

/** Ids for a process, asked for a block at a time. */
export function makeIds(): Ids {
  let next = 0
  let end = 0
  return {
    async take(db, count) {
      if (count > idBlockSize) throw new Error(`There are ${idBlockSize} ids in a block, not ${count}.`)
      while (next + count > end) {
        const block = await takeIdBlock(db)
        // Another batch may have asked meanwhile; the rest of its block is burnt, which costs nothing.
        next = block.first
        end = block.first + block.count
      }
      const first = next
      next += count
      return first
    },
  }
}
