/**
 * Copies records into MongoDB, one document each, into the collection of the stream's name. A record's document has an
 * `_id` made of the stream and its offset, so copying it once more changes nothing: no transaction spans both stores,
 * and a copier that dies is followed by one that copies its last segments again. The consumer copies route A's
 * segments and the front route B's, each behind a cursor of its own.
 */
import {
  BSON,
  type Collection,
  MongoBulkWriteError,
  MongoClient,
  MongoInvalidArgumentError,
  MongoServerError,
} from 'mongodb'
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import { findHead, leaseCursor, moveLeased } from './cursor-store.ts'
import type { Remove } from './leftovers.ts'
import { type RecordDocument, toDocument, toTextDocument } from './mongo-documents.ts'
import type { ReaderKind } from './readers.ts'
import { listSegmentsOfRoute, type SegmentRow } from './segment-store.ts'
import type { Route } from './types.ts'

export interface MongoDeps {
  db: Database
  log: Log
  /** Names this process among those that copy. */
  holder: string
  /** Called with what MongoDB will never take. */
  onRefused: (stream: string, records: number) => void
}

/** Of one step, each of up to 256 K characters and one record more. */
const segmentsMax = 16
const batchDocuments = 1000
const batchCharsMax = 4 * 1024 * 1024
const removedAtOnce = 1000
/** Longer than a step takes, by far: whoever loses it meanwhile copies in vain. */
const leaseSeconds = 60
const selectTimeoutMs = 5000
const socketTimeoutMs = 20_000
const defaultDatabase = 'capstan'
const duplicateKey = 11_000
/** Not the document's fault: the server steps down, is not the primary, or shuts down. */
const passingCodes = new Set([6, 7, 50, 89, 91, 189, 262, 9001, 10_107, 11_600, 11_602, 13_435, 13_436])
/** Of a whole request: what it says of its documents. */
const refusingCodes = new Set([2, 9, 14, 15, 22, 52, 53, 57, 121, 10_334, 17_280])

export interface Mongo {
  readerOf(route: Route): ReaderKind
  /** Removes the documents of a stream that was deleted, and none of its namesake's. The collection stays. */
  remove: Remove
  stop(): Promise<void>
}

/** @param deps.url with the database's name, or `capstan` is taken */
export function makeMongo(deps: MongoDeps & { url: string }): Mongo {
  const client = new MongoClient(deps.url, {
    serverSelectionTimeoutMS: selectTimeoutMs,
    socketTimeoutMS: socketTimeoutMs,
  })
  const [, named] = /^[^:]+:\/\/[^/]+\/([^?]+)/.exec(deps.url) ?? []
  const collections = client.db(named === undefined ? defaultDatabase : decodeURIComponent(named))
  const collectionOf = (name: string) =>
    collections.collection<RecordDocument>(name, { writeConcern: { w: 'majority' }, ignoreUndefined: true })
  return {
    readerOf: route => makeCopier({ ...deps, collectionOf, route }),
    async remove({ id, name }) {
      const collection = collectionOf(name)
      // As it stands in the index of `_id`s.
      const ofStream = { _id: { $gte: { stream: id, offset: 0 }, $lt: { stream: id + 1, offset: 0 } } }
      const found = await collection.find(ofStream, { projection: { _id: 1 }, limit: removedAtOnce }).toArray()
      if (found.length > 0) await collection.deleteMany({ _id: { $in: found.map(({ _id }) => _id) } })
      return found.length < removedAtOnce
    },
    stop: () => client.close(),
  }
}

/** As much of the driver's collection as is used. */
export type Insertable = Pick<Collection<RecordDocument>, 'insertMany'>

export function makeCopier(deps: MongoDeps & { collectionOf: (name: string) => Insertable; route: Route }): ReaderKind {
  const { db, holder, route } = deps
  const reader = `mongo:${route}`
  return {
    name: reader,
    counted: 'last_offset',
    async step({ streamId, name }) {
      const from = await leaseCursor(db, { streamId, reader, holder, seconds: leaseSeconds })
      const head = await findHead(db, streamId)
      if (from === undefined || head === undefined || head.last_offset <= from) return false
      const upto = head.last_offset
      const segments = await listSegmentsOfRoute(db, { streamId, after: from, upto, route, limit: segmentsMax })
      for (const batch of batchesOf(streamId, segments)) {
        await insertAll({ collection: deps.collectionOf(name), batch, stream: name, deps })
      }
      const to = segments.length < segmentsMax ? upto : segments.at(-1)!.first_offset
      return moveLeased(db, { streamId, reader, holder, from, to })
    },
  }
}

/** A record on its way. */
interface Copied {
  streamId: number
  offset: number
  route: Route
  at: Date
  text: string
}

function* batchesOf(streamId: number, segments: readonly SegmentRow[]): Generator<Copied[]> {
  let batch: Copied[] = []
  let chars = 0
  for (const { first_offset, at, route, lines } of segments) {
    let offset = first_offset
    for (const text of lines.split('\n')) {
      batch.push({ streamId, offset: offset++, route, at, text })
      chars += text.length
      if (batch.length < batchDocuments && chars < batchCharsMax) continue
      yield batch
      batch = []
      chars = 0
    }
  }
  if (batch.length > 0) yield batch
}

/** Copies all but what MongoDB will never take, which it counts. Throws what passes. */
async function insertAll(given: { collection: Insertable; batch: readonly Copied[]; stream: string; deps: MongoDeps }) {
  const { collection, batch, stream, deps } = given
  const odd = await insert(collection, batch, toDocument)
  if (odd.length === 0) return
  const refused = await insert(collection, odd, toTextDocument)
  if (refused.length === 0) return
  const offsets = refused.slice(0, 10).map(({ offset }) => offset)
  deps.log.error(
    { stream, records: refused.length, offsets },
    'MongoDB does not take these records; the store has them',
  )
  deps.onRefused(stream, refused.length)
}

/** Inserts documents that are not there. Answers those that were refused for what they are. */
async function insert(
  collection: Insertable,
  batch: readonly Copied[],
  show: (copied: Copied) => RecordDocument,
): Promise<Copied[]> {
  try {
    await collection.insertMany(batch.map(show), { ordered: false })
    return []
  } catch (error) {
    if (error instanceof MongoBulkWriteError && error.writeErrors) return readRefused(error, batch)
    if (!isRefusal(error)) throw error
    // It says nothing about which of them: each half is tried by itself.
    if (batch.length === 1) return [...batch]
    const middle = batch.length >> 1
    const halves = [batch.slice(0, middle), batch.slice(middle)]
    return [...(await insert(collection, halves[0]!, show)), ...(await insert(collection, halves[1]!, show))]
  }
}

function readRefused(error: MongoBulkWriteError, batch: readonly Copied[]): Copied[] {
  const errors = [error.writeErrors].flat()
  const isPassing = errors.length === 0 || errors.some(({ code }) => passingCodes.has(Number(code)))
  if (isPassing || error.result.getWriteConcernError()) throw error
  return errors.filter(({ code }) => code !== duplicateKey).map(({ index }) => batch[index]!)
}

function isRefusal(error: unknown): boolean {
  if (error instanceof MongoServerError) return refusingCodes.has(Number(error.code))
  return error instanceof MongoInvalidArgumentError || error instanceof BSON.BSONError
}
