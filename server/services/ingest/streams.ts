/**
 * Declared streams, kept ready for records: a process looks a declaration up once, compiles its schema, and looks again
 * when the bus says that it changed, or after a while.
 */
import type { Bus } from '#platform/bus.ts'
import type { Database } from '#platform/database/pool.ts'
import { isAppError } from '#platform/errors.ts'
import type { Caller } from '#platform/http/guard.ts'
import { coursesDeclaration, coursesName } from './courses.ts'
import { errors } from './errors.ts'
import type { RecordRules } from './record.ts'
import { compileSchema } from './schemas.ts'
import type { IngestSettings } from './settings.ts'
import * as store from './stream-store.ts'
import type { Declaration, StreamRow } from './types.ts'

/** A stream that is ready for records. */
export interface ReadyStream extends StreamRow {
  rules: RecordRules
}

export interface Streams {
  /** @throws stream_not_found */
  get(name: string): Promise<ReadyStream>
  /** Has one looked up again that is not there any more; another of its name may be. */
  forget(stream: Pick<StreamRow, 'id' | 'name'>): void
  /** Those the caller may read. @throws stream_not_found for others too */
  getReadable(caller: Pick<Caller, 'role'>, name: string): Promise<ReadyStream>
  /** @throws stream_not_found for one whose writers the caller is not among. @param caller undefined on an open route */
  getWritable(caller: Pick<Caller, 'role'> | undefined, name: string): Promise<ReadyStream>
  /** @throws bad_stream_name, bad_schema, bad_dimensions, bad_weights, too_many_streams */
  declare(name: string, declaration: Declaration): Promise<{ stream: StreamRow; isNew: boolean }>
  remove(name: string): Promise<void>
  list(caller: Pick<Caller, 'role'>, page: { after: string; limit: number }): Promise<StreamRow[]>
  /** Makes what is there from the start. */
  start(): Promise<void>
}

interface Cached {
  stream: Promise<ReadyStream>
  until: number
  /** Once it is loaded. */
  id?: number
}

const channel = 'ingest:streams'
/** A declaration that no wake-up told of is noticed after so long. */
const freshMs = 5000
const cachedMax = 1000
const dimensionsMax = 4
const namePattern = /^[a-z][a-z0-9_-]{0,63}$/

export function makeStreams(deps: {
  db: Database
  bus: Bus
  settings: IngestSettings
  clock: () => number
  /** Called when a stream was deleted. */
  onRemoved?: (name: string) => void
}): Streams {
  const { db, bus, settings, clock, onRemoved = () => {} } = deps
  const cache = new Map<string, Cached>()
  bus.subscribe(channel, names => {
    for (const name of names) cache.delete(name)
  })
  bus.onGap(() => cache.clear())

  function get(name: string): Promise<ReadyStream> {
    const known = cache.get(name)
    if (known && known.until > clock()) return known.stream
    const stream = load(name)
    cache.delete(name)
    if (cache.size >= cachedMax) cache.delete(cache.keys().next().value!)
    const entry: Cached = { stream, until: clock() + freshMs }
    cache.set(name, entry)
    stream.then(
      ({ id }) => {
        entry.id = id
      },
      // What was not found, or could not be asked for, is asked for again.
      () => cache.get(name) === entry && cache.delete(name),
    )
    return stream
  }

  async function load(name: string): Promise<ReadyStream> {
    const row = namePattern.test(name) ? await store.findStream(db, name) : undefined
    if (!row) throw errors.streamNotFound(name)
    const { dimensions, stickyBy } = row
    const validate = compileSchema(row.schema)
    return { ...row, rules: { validate, dimensions, stickyBy, bytesMax: settings.INGEST_RECORD_BYTES_MAX } }
  }

  async function getFor(audience: 'readers' | 'writers', caller: Pick<Caller, 'role'> | undefined, name: string) {
    const stream = await get(name)
    if (stream[audience] === 'admins' && caller?.role !== 'admin') throw errors.streamNotFound(name)
    return stream
  }

  return {
    get,
    forget({ id, name }) {
      if (cache.get(name)?.id === id) cache.delete(name)
    },
    getReadable: (caller, name) => getFor('readers', caller, name),
    getWritable: (caller, name) => getFor('writers', caller, name),
    async declare(name, declaration) {
      checkDeclaration(name, declaration)
      const put = await db.tx(async tx => {
        const made = (await store.putStream(tx, { name, declaration }))!
        if (made.isNew && (await store.countStreams(tx)) > settings.INGEST_STREAMS_MAX) {
          throw errors.tooManyStreams(settings.INGEST_STREAMS_MAX)
        }
        return made
      })
      bus.publish(channel, [name])
      return put
    },
    async remove(name) {
      // What is kept here may be an older one of that name.
      const stream = await load(name)
      const gone = await db.tx(tx => store.deleteStream(tx, stream.id))
      bus.publish(channel, [name])
      if (!gone) throw errors.streamNotFound(name)
      onRemoved(name)
    },
    list: (caller, page) =>
      store.listStreams(db, { ...page, readers: caller.role === 'admin' ? ['users', 'admins'] : ['users'] }),
    async start() {
      await db.tx(tx => store.putStream(tx, { name: coursesName, declaration: coursesDeclaration, keepOld: true }))
    },
  }
}

/** Does it once more where the stream was deleted meanwhile, with the one of its name that is there now. */
export async function withCurrent<T>(
  streams: Pick<Streams, 'forget'>,
  find: () => Promise<ReadyStream>,
  work: (stream: ReadyStream) => Promise<T>,
): Promise<T> {
  const stream = await find()
  try {
    return await work(stream)
  } catch (error) {
    if (!isStreamChanged(error)) throw error
    streams.forget(stream)
    return work(await find())
  }
}

/** Nothing of what was to go in has. */
export function isStreamChanged(error: unknown): boolean {
  return isAppError(error) && error.code === errors.streamChanged('').code
}

function checkDeclaration(name: string, { schema, dimensions, weights }: Declaration) {
  if (!namePattern.test(name)) throw errors.badStreamName()
  compileSchema(schema)
  if (dimensions.length > dimensionsMax || new Set(dimensions).size < dimensions.length) {
    throw errors.badDimensions(`\`dimensions\` are at most ${dimensionsMax} different fields of a record.`)
  }
  const odd = dimensions.find(each => !/^[\p{L}\p{N}_-]{1,64}$/u.test(each) || each === 'route')
  if (odd !== undefined) {
    throw errors.badDimensions(
      `The dimension \`${odd.slice(0, 64)}\` cannot be counted by: names are letters, digits, \`_\` and \`-\`, and \`route\` is there already.`,
    )
  }
  const { a, b } = weights
  if (!Number.isInteger(a) || !Number.isInteger(b) || a < 0 || b < 0 || a + b !== 100) throw errors.badWeights()
}
