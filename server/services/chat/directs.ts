/** Direct chats, found by their two people in either order, and blocking. */
import { makeBatcher } from '#platform/batch.ts'
import { type Database, isConnectionLoss } from '#platform/database/pool.ts'
import { uuidv7 } from '#platform/ids.ts'
import { makeRecentMap } from '#platform/recent-map.ts'
import * as store from './direct-store.ts'
import { errors } from './errors.ts'
import * as people from './people-store.ts'
import type { Pair, Person } from './types.ts'

export interface Directs {
  /** The chat's id. */
  find(one: Person, other: Person): Promise<string | undefined>
  /** The chat's id; made where there was none. */
  ensure(one: Person, other: Person): Promise<string>
  /** Whom one blocks cannot write to their direct chat, nor bring one into a room. @throws self_block */
  block(blocker: Person, blocked: Person): Promise<void>
  unblock(blocker: Person, blocked: Person): Promise<void>
}

const rememberedMax = 100_000
const batchMax = 500
const waitingMax = 20_000

export function makeDirects({ db, clock }: { db: Database; clock: () => number }): Directs {
  const ids = makeRecentMap<string>(rememberedMax)

  async function look(pairs: readonly Pair[]) {
    for (const row of await store.findDirects(db, pairs)) ids.set(keyOf({ low: row.low_id, high: row.high_id }), row.id)
  }

  const making = makeBatcher<Pair, string>({
    name: 'direct chats',
    size: batchMax,
    waitingMax,
    isCommon: isConnectionLoss,
    async run(pairs) {
      const unique = [...new Map(pairs.map(pair => [keyOf(pair), pair])).values()]
      await db.tx(async tx => {
        await store.lockBlocks(tx, 'to read')
        const at = new Date(clock())
        await store.insertDirects(tx, { chats: unique.map(pair => ({ ...pair, id: uuidv7() })), at })
      })
      await look(unique)
      return pairs.map(pair => ({ value: ids.get(keyOf(pair))! }))
    },
  })

  async function find(one: Person, other: Person) {
    const pair = pairOf(one, other)
    const known = ids.get(keyOf(pair))
    if (known !== undefined) return known
    await look([pair])
    return ids.get(keyOf(pair))
  }

  function change(blocker: Person, blocked: Person, isBlocked: boolean) {
    return db.tx(async tx => {
      const ends = { blockerId: blocker.id, blockedId: blocked.id }
      await store.lockBlocks(tx, 'to change')
      if (isBlocked) await people.insertBlock(tx, { ...ends, at: new Date(clock()) })
      else await people.deleteBlock(tx, ends)
      await store.blockInDirect(tx, { ...pairOf(blocker, blocked), blockedId: blocked.id, isBlocked })
    })
  }

  return {
    find,
    async ensure(one, other) {
      return (await find(one, other)) ?? making.push(pairOf(one, other))
    },
    async block(blocker, blocked) {
      if (blocker.id === blocked.id) throw errors.selfBlock()
      await change(blocker, blocked, true)
    },
    async unblock(blocker, blocked) {
      if (blocker.id !== blocked.id) await change(blocker, blocked, false)
    },
  }
}

function pairOf(one: Person, other: Person): Pair {
  return one.id < other.id ? { low: one.id, high: other.id } : { low: other.id, high: one.id }
}

function keyOf({ low, high }: Pair): string {
  return `${low} ${high}`
}
