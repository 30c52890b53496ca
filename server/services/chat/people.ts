/** Who is who: names and users become people, whose short numbers all tables use. What was asked once is remembered. */
import assert from 'node:assert/strict'
import { makeBatcher } from '#platform/batch.ts'
import { type Database, isConnectionLoss } from '#platform/database/pool.ts'
import type { Caller } from '#platform/http/guard.ts'
import { makeRecentMap } from '#platform/recent-map.ts'
import { errors } from './errors.ts'
import * as store from './people-store.ts'
import { lower } from './people-store.ts'
import type { Person } from './types.ts'

export interface People {
  /** The caller's. A user's first call makes it, or takes over what was sent under its name before it registered. */
  of(caller: Pick<Caller, 'userId' | 'name'>): Promise<Person>
  /** A user. @throws user_not_found */
  user(name: string): Promise<Person>
  /** Whoever was ever seen here under this name. */
  known(name: string): Promise<Person | undefined>
  /** Whoever has this name; somebody new where nobody has. For the old contract's open route. */
  anybody(name: string): Promise<Person>
}

/** What people asks of identity. */
export interface Users {
  findUserByName(name: string): Promise<{ id: string; name: string } | undefined>
}

interface Known extends Person {
  isUser: boolean
}

const rememberedMax = 100_000
const lookupsMax = 1000
const waitingMax = 50_000

export function makePeople({ db, users }: { db: Database; users: Users }): People {
  const byUser = makeRecentMap<Person>(rememberedMax)
  const byName = makeRecentMap<Known>(rememberedMax)

  function remember(rows: readonly store.PersonRow[]) {
    for (const row of rows) {
      const person: Known = { id: row.id, name: row.shown, isUser: row.user_id !== null }
      byName.set(row.name, person)
      if (row.user_id !== null) byUser.set(row.user_id, person)
    }
  }

  async function claim(users: readonly { userId: string; name: string }[]) {
    if (users.length > 0) remember(await store.claimPeople(db, users))
  }

  const byUserId = makeLookup<{ userId: string; name: string }, Person>('people', async callers => {
    const unique = new Map(callers.map(caller => [caller.userId, caller]))
    remember(await store.findByUserIds(db, [...unique.keys()]))
    await claim([...unique.values()].filter(({ userId }) => !byUser.get(userId)))
    return callers.map(({ userId, name }) => {
      const person = byUser.get(userId)
      // identity gives a name to one user, for ever.
      assert.ok(person, `The name ${name} belongs to another user.`)
      return person
    })
  })

  const byKnownName = makeLookup<string, Known | undefined>('names', async names => {
    remember(await store.findByNames(db, [...new Set(names)]))
    return names.map(name => byName.get(name))
  })

  const byNewName = makeLookup<string, Known>('new names', async names => {
    await store.insertNames(db, names)
    remember(await store.findByNames(db, [...new Set(names.map(lower))]))
    return names.map(name => byName.get(lower(name)))
  })

  async function known(name: string): Promise<Known | undefined> {
    return byName.get(lower(name)) ?? byKnownName(lower(name))
  }

  return {
    async of({ userId, name }) {
      return byUser.get(userId) ?? byUserId({ userId, name })
    },
    async user(name) {
      const person = await known(name)
      if (person?.isUser) return person
      const user = await users.findUserByName(name)
      // Users can be found by their addresses too, which are not for others to guess.
      if (!user || lower(user.name) !== lower(name)) throw errors.userNotFound(name)
      return byUserId({ userId: user.id, name: user.name })
    },
    known,
    async anybody(name) {
      return (await known(name)) ?? byNewName(name)
    },
  }
}

/** Questions that come at the same time are one statement. */
function makeLookup<K, V>(name: string, find: (keys: K[]) => Promise<(V | undefined)[]>): (key: K) => Promise<V> {
  const batcher = makeBatcher<K, V>({
    name,
    size: lookupsMax,
    waitingMax,
    isCommon: isConnectionLoss,
    run: async keys => (await find(keys)).map(value => ({ value: value as V })),
  })
  return key => batcher.push(key)
}
