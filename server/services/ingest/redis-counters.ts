/**
 * Keeps counts in Redis, for whoever reads them there: for each stream the hashes
 *   capstan:streams:<name>            `total`, and how far the counts have come (`stream`, `position`, `hashes`)
 *   capstan:streams:<name>:<dimension>            value → count
 *   capstan:streams:<name>:<dimension>,<dimension>    JSON array of the values → count; the names in their order
 *   capstan:streams:<name>:route                  route → count
 *
 * Counts are relayed once they are merged into the rollups, from the same numbered deltas, so they are the same counts.
 * One script adds a batch of them and moves the position that lies beside them: it does so only from the position that
 * the batch begins at, so none is added twice or left out, whatever dies in between and whatever Redis forgets. Where
 * Redis stands before the oldest delta that is kept, or knows nothing, the script replaces all by the rollups, read
 * together with the position they have come to.
 */
import type { Redis } from 'ioredis'
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import { findHead, leaseCursor, noteCursor, rewindCursors } from './cursor-store.ts'
import { type DeltaRow, listMergedDeltas } from './delta-store.ts'
import { keysMax, mergerName, readDelta, relayName, routeSet, setsOf } from './merging.ts'
import type { ReaderKind } from './readers.ts'
import { otherValue } from './record.ts'
import { findMerged, listKeys, readTotals } from './rollup-store.ts'

const deltasMax = 2000
const leaseSeconds = 15
/** Between two rounds, so that what was just appended is merged before it is looked for. */
const restMs = 500
/** Of sets of dimensions that have a hash. */
const dimensionsMax = 2

/** Counts to be added, or to replace all: by set of dimensions, then by field. */
type Counts = Map<string, Map<string, number>>

export function makeRedisCounters(deps: { db: Database; redis: Redis; log: Log; holder: string }): ReaderKind {
  const { db, redis, log, holder } = deps
  const admitted = makeAdmitted(db)
  /** Redis may have lost what it had: each stream is looked at, whether something is new or not. */
  let isUnsure = true
  redis.on('ready', () => {
    isUnsure = true
  })

  async function relay(given: { streamId: number; name: string; from: number }): Promise<number> {
    const { streamId, name, from } = given
    if ((await findMerged(db, { streamId, merger: mergerName })) === from) return from
    const deltas = await listMergedDeltas(db, { streamId, after: from, merger: mergerName, limit: deltasMax })
    // Deltas are numbered without gaps: what is not there was deleted, or Redis knows more than there is.
    if (deltas[0]?.seq !== from + 1) return replace({ streamId, name, seen: String(from) })
    const to = deltas.at(-1)!.seq
    return runScript(redis, {
      script: addScript,
      streamId,
      name,
      from: String(from),
      to,
      counts: await sumUp(streamId, deltas),
    })
  }

  async function replace(given: { streamId: number; name: string; seen: string }): Promise<number> {
    const { streamId, name, seen } = given
    const { position, rows } = await readTotals(db, { streamId, merger: mergerName, dimensionsMax })
    const counts: Counts = new Map()
    for (const { dimensions, key, count } of rows) add(counts, dimensions, JSON.parse(key), count)
    log.info({ stream: name, position }, 'the counts in Redis are made anew from the rollups')
    return runScript(redis, { script: replaceScript, streamId, name, from: seen, to: position, counts })
  }

  async function sumUp(streamId: number, deltas: readonly DeltaRow[]): Promise<Counts> {
    const counts: Counts = new Map()
    for (const delta of deltas) {
      const { dimensions, routes } = readDelta(delta)
      const sets = setsOf(dimensions).filter(set => set.places.length <= dimensionsMax)
      for (const { route, pairs } of routes) {
        for (const [values, count] of pairs) {
          const isKnown = await admitted.has({ streamId, dimensions, key: JSON.stringify(values) })
          const shown = isKnown ? values : values.map(() => otherValue)
          for (const set of sets)
            add(
              counts,
              set.name,
              set.places.map(place => shown[place]!),
              count,
            )
          add(counts, routeSet, [route], count)
        }
      }
    }
    return counts
  }

  return {
    name: relayName,
    counted: 'last_delta',
    restMs,
    async prepare() {
      if (!isUnsure) return
      isUnsure = false
      try {
        await rewindCursors(db, relayName)
      } catch (error) {
        isUnsure = true
        throw error
      }
    },
    async step({ streamId, name }) {
      const noted = await leaseCursor(db, { streamId, reader: relayName, holder, seconds: leaseSeconds })
      if (noted === undefined) return false
      const stands = await readPosition(redis, { streamId, name })
      const position =
        stands.position === undefined
          ? await replace({ streamId, name, seen: stands.seen })
          : await relay({ streamId, name, from: stands.position })
      if (position !== noted) await noteCursor(db, { streamId, reader: relayName, holder, position })
      const head = await findHead(db, streamId)
      return position !== stands.position && position < (head?.last_delta ?? 0)
    },
  }
}

/** Removes the hashes of a stream that was deleted, unless they are its namesake's by now. */
export async function removeCounters(redis: Redis, { id, name }: { id: number; name: string }): Promise<true> {
  await redis.call('eval', [removeScript, 1, keyOf(name), String(id)])
  return true
}

function add(counts: Counts, set: string, values: readonly string[], count: number) {
  const field = values.length === 0 ? 'total' : values.length === 1 ? values[0]! : JSON.stringify(values)
  const fields = counts.get(set) ?? new Map<string, number>()
  counts.set(set, fields.set(field, (fields.get(field) ?? 0) + count))
}

/** Which combinations of values the merger has admitted. It decides once, so what is known stays so. */
function makeAdmitted(db: Database) {
  const known = new Map<string, Set<string>>()
  return {
    async has({ streamId, dimensions, key }: { streamId: number; dimensions: string; key: string }): Promise<boolean> {
      const name = `${streamId} ${dimensions}`
      const keys = known.get(name)
      if (keys?.has(key)) return true
      if (keys && keys.size >= keysMax) return false
      const fresh = new Set(await listKeys(db, { streamId, dimensions, limit: keysMax }))
      known.set(name, fresh)
      return fresh.has(key)
    },
  }
}

function keyOf(name: string): string {
  return `capstan:streams:${name}`
}

/** Where Redis stands with a stream; undefined where it knows nothing of it, or of another one of its name. */
async function readPosition(redis: Redis, given: { streamId: number; name: string }) {
  const [stream, position] = await redis.hmget(keyOf(given.name), 'stream', 'position')
  const isKnown = stream === String(given.streamId) && position != null
  return { position: isKnown ? Number(position) : undefined, seen: isKnown ? position : '' }
}

/**
 * Both scripts answer the position that Redis stands at afterwards. Arguments: the stream, the position that was seen
 * (empty for none), the new one, and for each hash its name, how many fields, and these with their counts.
 */
const begin = `
local known = redis.call('hmget', KEYS[1], 'stream', 'position')
local seen = (known[1] == ARGV[1]) and known[2] or ''
if seen ~= ARGV[2] then return seen end
`
const write = `
local at = 4
while at <= #ARGV do
  local name, fields = ARGV[at], tonumber(ARGV[at + 1])
  local key = (name == '') and KEYS[1] or (KEYS[1] .. ':' .. name)
  if name ~= '' and not hashes[name] then
    hashes[name] = true
    table.insert(names, name)
  end
  for place = at + 2, at + 2 * fields, 2 do redis.call('hincrby', key, ARGV[place], ARGV[place + 1]) end
  at = at + 2 + 2 * fields
end
redis.call('hset', KEYS[1], 'stream', ARGV[1], 'position', ARGV[3], 'hashes', cjson.encode(names))
return ARGV[3]
`
const addScript = `${begin}
local names = cjson.decode(redis.call('hget', KEYS[1], 'hashes') or '[]')
local hashes = {}
for _, name in ipairs(names) do hashes[name] = true end
${write}`
const removeAll = `
for _, name in ipairs(cjson.decode(redis.call('hget', KEYS[1], 'hashes') or '[]')) do
  redis.call('del', KEYS[1] .. ':' .. name)
end
redis.call('del', KEYS[1])
`
const removeScript = `
if redis.call('hget', KEYS[1], 'stream') ~= ARGV[1] then return end
${removeAll}`
const replaceScript = `${begin}
${removeAll}
local names, hashes = {}, {}
${write}`

async function runScript(
  redis: Redis,
  given: { script: string; streamId: number; name: string; from: string; to: number; counts: Counts },
): Promise<number> {
  const { script, streamId, name, from, to, counts } = given
  const values: (string | number)[] = [streamId, from, to]
  for (const [set, fields] of counts) {
    values.push(set, fields.size)
    for (const [field, count] of fields) values.push(field, count)
  }
  // As one array: there are more of them than a call may have arguments.
  return Number(await redis.call('eval', [script, 1, keyOf(name), ...values]))
}
