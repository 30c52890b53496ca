/**
 * Finds what a request for an image's bytes may have: the original, a variant that a worker made, a transform that is
 * kept, or one that has to be made. What it is called by caches is known before anything is read.
 */
import assert from 'node:assert/strict'
import type { Readable } from 'node:stream'
import type { BlobStore, ByteRange } from '#platform/blobs/types.ts'
import type { Database } from '#platform/database/pool.ts'
import { isAppError } from '#platform/errors.ts'
import { assertScope, type Caller } from '#platform/http/guard.ts'
import type { Log } from '#platform/log.ts'
import { errors as imageErrors } from '../errors.ts'
import { mayOwn } from '../images.ts'
import { originalKey, transformKey, variantKey } from '../keys.ts'
import { chooseFormat, parsePresets } from '../processing/transform.ts'
import type { FixedTransform, Processor } from '../processing/types.ts'
import type { ImagesSettings } from '../settings.ts'
import type { InputFormat, OutputFormat } from '../types.ts'
import { errors } from './errors.ts'
import type { Grant } from './headers.ts'
import { makeLinks } from './links.ts'
import { type Maker, makeMaker } from './making.ts'
import * as store from './store.ts'
import { etagOf, type Presets, readWord, transformName, transformNames, type Word } from './words.ts'

export interface Asked {
  id: string
  /** `original`, a preset, or a transform, as it stands in the address. */
  word: string
  caller: Caller | undefined
  /** Of a signed link. */
  expires?: string | undefined
  signature?: string | undefined
  /** The Accept header. */
  accept: string | undefined
}

/** What somebody may have; it may have to be made yet. */
export interface Picture {
  grant: Grant
  /** As the sender called it. */
  name: string
  etag: string
  isOriginal: boolean
  /** Whether another Accept header might have got another format. */
  dependsOnAccept: boolean
  open(how: Opening): Promise<Content>
}

export interface Opening {
  /** Is told what there is, and says which part of it is wanted: undefined means the whole. */
  pick(whole: { bytes: number; etag: string }): ByteRange | undefined
  /** Where only the headers are wanted. */
  bodyless: boolean
  /** Who asks: see `Wanted`. */
  holder: string
  signal: AbortSignal
}

export interface Content {
  format: InputFormat | OutputFormat
  /** Of what was read; a lost variant is made again and is then another. */
  etag: string
  /** Of the whole. */
  bytes: number
  range: ByteRange | undefined
  /** Undefined where only the headers are wanted. */
  body: Buffer | Readable | undefined
}

export interface NewLink {
  caller: Caller
  id: string
  word: string
  /** From now on. */
  seconds: number
}

export interface Serving {
  /** @throws image_not_found, link_invalid, link_expired, missing_scope, bad_transform, image_not_ready, image_unusable */
  find(asked: Asked): Promise<Picture>
  /** To one transform of one's own image. @throws image_not_found, missing_scope, bad_transform */
  createLink(given: NewLink): Promise<{ path: string; expiresAt: Date }>
  /** Transforms being made, waiting for it, or being kept. */
  readonly making: number
  /** Resolves when all that was begun is made and kept. Call it when requests have ended. */
  stop(): Promise<void>
}

export interface ServingDeps {
  db: Database
  blobs: BlobStore
  processor: Pick<Processor, 'work'>
  settings: Pick<ImagesSettings, 'IMAGE_BYTES_PER_USER' | 'IMAGE_PRESETS' | 'IMAGE_TRANSFORMS_MAX' | 'N_WORKERS'>
  log: Log
  clock: () => number
  /** Of this process alone. */
  workFolder: string
}

export function makeServing(deps: ServingDeps): Serving {
  const { db, settings, clock } = deps
  const presets: Presets = new Map(parsePresets(settings.IMAGE_PRESETS))
  const links = makeLinks(deps)
  const maker = makeMaker(deps)

  async function find(asked: Asked): Promise<Picture> {
    const isSigned = asked.expires !== undefined || asked.signature !== undefined
    const seconds = isSigned ? await links.check(asked) : undefined
    const word = readWord(asked.word, presets)
    const row = await store.findServed(db, { id: asked.id, names: transformNames(word) })
    const granted = grant(row, { word, caller: asked.caller, seconds })
    assertReady(granted.row, asked.caller)
    return pictureOf({ ...deps, maker }, { ...granted, word, accept: asked.accept })
  }

  return {
    find,
    async createLink({ caller, id, word, seconds }) {
      // A link shows what its maker may see.
      assertScope(caller, 'images:read')
      const read = readWord(word, presets)
      const row = await store.findServed(db, { id, names: [] })
      if (!row || !mayOwn(caller, row.owner)) throw imageErrors.imageNotFound()
      if (read.kind === 'variant' && !variantOf(row, read.name)) throw read.fault
      const expires = Math.floor(clock() / 1000) + seconds
      const path = await links.pathTo({ id: row.id, word, expires })
      return { path, expiresAt: new Date(expires * 1000) }
    },
    get making() {
      return maker.making
    },
    stop: maker.stop,
  }
}

/** Who may: everybody the presets of a public image, whoever has a good link what it is for, the owner everything. */
function grant(
  row: store.ServedRow | undefined,
  { word, caller, seconds }: { word: Word; caller: Caller | undefined; seconds: number | undefined },
): { row: store.ServedRow; grant: Grant } {
  if (row && seconds !== undefined) return { row, grant: { by: 'link', seconds } }
  if (row?.visibility === 'public' && word.kind === 'preset') return { row, grant: { by: 'public' } }
  // Before it can be told whether there is such an image.
  if (caller) assertScope(caller, 'images:read')
  if (row && caller && mayOwn(caller, row.owner)) return { row, grant: { by: 'owner' } }
  throw imageErrors.imageNotFound()
}

function assertReady(row: store.ServedRow, caller: Caller | undefined) {
  if (row.status === 'waiting' || row.status === 'processing') throw imageErrors.imageNotReady(row.status)
  if (row.status === 'ready') return
  const isOwner = caller !== undefined && mayOwn(caller, row.owner)
  throw imageErrors.imageUnusable(row.status, isOwner ? (row.error ?? 'nobody knows why.') : 'its owner can see why.')
}

interface Chosen {
  row: store.ServedRow
  grant: Grant
  word: Word
  accept: string | undefined
}

interface NamedTransform {
  transform: FixedTransform
  name: string
}

/** Something that stands in the blob store, as far as the database knows. */
interface Stored {
  key: string
  bytes: number
  etag: string
  format: InputFormat | OutputFormat
}

function pictureOf(deps: ServingDeps & { maker: Maker }, chosen: Chosen): Picture {
  const { row, word } = chosen
  const transform = fixedTransformOf(chosen)
  const named = transform && { transform, name: transformName(transform) }
  const stored = storedOf(row, word, named)
  const etag = stored[0]?.etag ?? (named && etagOf(row.sha256, named.name))
  // What is no transform is stored, or was refused.
  assert(etag !== undefined)
  return {
    grant: chosen.grant,
    name: row.name ?? row.id,
    etag,
    isOriginal: word.kind === 'original',
    dependsOnAccept: 'transform' in word && word.transform.format === 'auto',
    async open(how) {
      for (const each of stored) {
        const content = await openStored(deps.blobs, each, how)
        if (content) return content
      }
      if (named) return openMade(deps, { row, named, how })
      return refuseLost(deps, row)
    },
  }
}

function fixedTransformOf({ row, word, accept }: Chosen): FixedTransform | undefined {
  if (!('transform' in word)) return undefined
  return { ...word.transform, format: chooseFormat(word.transform, accept, row.facts) }
}

/** Where it may stand already, the best first. @throws bad_transform for a name that is no variant of this image */
function storedOf(row: store.ServedRow, word: Word, named: NamedTransform | undefined): Stored[] {
  if (word.kind === 'original') {
    const { bytes, facts, sha256 } = row
    return [{ key: originalKey(row.file_id), bytes, format: facts.format, etag: etagOf(sha256, 'original') }]
  }
  const variant = word.kind === 'transform' ? undefined : variantOf(row, word.name)
  if (word.kind === 'variant' && !variant) throw word.fault
  // A worker made it in one format. Who asks for the best of several may be due another.
  const isDue =
    variant &&
    (word.kind === 'variant' || word.transform?.format !== 'auto' || variant.format === named?.transform.format)
  return [...(isDue ? [variant] : []), ...keptOf(row, named)]
}

function variantOf(row: store.ServedRow, name: string): Stored | undefined {
  const variant = row.variants.find(one => one.name === name)
  if (!variant) return undefined
  const { bytes, format } = variant
  // Work that was done twice may have made other bytes the second time.
  const etag = etagOf(row.sha256, `variant ${name} ${format} ${bytes} ${row.ended_at?.getTime()}`)
  return { key: variantKey(row.file_id, variant), bytes, format, etag }
}

function keptOf(row: store.ServedRow, named: NamedTransform | undefined): Stored[] {
  if (!named) return []
  const { name, transform } = named
  const bytes = row.kept.get(name)
  if (bytes === undefined) return []
  return [{ key: transformKey(row.file_id, name), bytes, format: transform.format, etag: etagOf(row.sha256, name) }]
}

/** Undefined where it is lost. */
async function openStored(blobs: BlobStore, stored: Stored, how: Opening): Promise<Content | undefined> {
  const { key, bytes, etag, format } = stored
  const range = how.pick({ bytes, etag })
  if (how.bodyless) {
    const found = await blobs.find(key)
    return found?.bytes === bytes ? { format, etag, bytes, range, body: undefined } : undefined
  }
  const blob = await getBlob(blobs, stored, range)
  if (blob?.bytes === bytes) return { format, etag, bytes, range, body: blob.stream }
  // What is not as long as it should be is no better than nothing.
  blob?.stream.destroy()
  return undefined
}

/** No range lies inside of what was cut short: that is no better than nothing either. */
async function getBlob(blobs: BlobStore, { key, bytes }: Stored, range: ByteRange | undefined) {
  try {
    return await blobs.get(key, range)
  } catch (error) {
    if (!range || isAppError(error) || (await blobs.find(key))?.bytes === bytes) throw error
    return undefined
  }
}

async function openMade(
  deps: ServingDeps & { maker: Maker },
  { row, named, how }: { row: store.ServedRow; named: NamedTransform; how: Opening },
): Promise<Content> {
  const { name, transform } = named
  const { holder, signal } = how
  const made = await deps.maker.make({ fileId: row.file_id, facts: row.facts, name, transform, holder, signal })
  if (!made) return refuseLost(deps, row)
  const etag = etagOf(row.sha256, name)
  const { bytes } = made
  let body: Content['body']
  try {
    const range = how.pick({ bytes, etag })
    if (!how.bodyless) body = made.read(range)
    return { format: transform.format, etag, bytes, range, body }
  } finally {
    if (body === undefined) made.release()
  }
}

/** @throws image_not_found where it was deleted meanwhile */
async function refuseLost({ db, log }: ServingDeps, row: store.ServedRow): Promise<never> {
  if (!(await store.findServed(db, { id: row.id, names: [] }))) throw imageErrors.imageNotFound()
  log.error({ image: row.id, file: row.file_id }, 'bytes of an image are not in the blob store')
  throw errors.bytesMissing()
}
