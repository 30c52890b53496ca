/**
 * Uploads in pieces, by the tus protocol. Each piece is a blob and a row of its own, durable before its sender is told,
 * so that any process over the same stores can go on with an upload; no lock is held while bytes come. When the last
 * piece is there the file is received like any other.
 */
import type { BlobStore } from '#platform/blobs/types.ts'
import type { Database } from '#platform/database/pool.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Log } from '#platform/log.ts'
import { takenFormats } from '../formats.ts'
import type { Images } from '../images.ts'
import { makeProbe } from '../probe/probe.ts'
import type { Receiver } from '../receiving.ts'
import type { ImagesSettings } from '../settings.ts'
import { makeFinishing } from './finishing.ts'
import { makeRoutes } from './routes.ts'
import { findKnownParts, sweepUploads } from './sweep.ts'
import { makeUploads } from './uploads.ts'

export interface Resumable {
  routes(app: HttpApp): Promise<void>
  /** Deletes what expired, or ended and was not cleared away, before then. Answers how many uploads. */
  sweep(before: Date): Promise<number>
  /** The keys under `uploads/` that those uploads need; all others of theirs are orphans. */
  knownParts(uploadIds: readonly string[]): Promise<Set<string>>
  /** Ends the bodies that are coming in; what came of them is kept. Call it before the server waits for its requests. */
  stop(): Promise<void>
}

export interface ResumableDeps {
  db: Database
  blobs: BlobStore
  receiver: Pick<Receiver, 'receive'>
  images: Pick<Images, 'accept' | 'assertRoom'>
  settings: ImagesSettings
  log: Log
  clock: () => number
  /** How long an upload may take, from its creation. */
  hours: number
}

export function makeResumable(deps: ResumableDeps): Resumable {
  const { db, blobs, settings, clock, hours } = deps
  const uploads = makeUploads({
    ...deps,
    makeProbe: () => makeProbe({ pixelsMax: settings.IMAGE_PIXELS_MAX, formats: takenFormats() }),
  })
  const finishing = makeFinishing({ ...deps, uploads })
  const routes = makeRoutes({ uploads, finishing, settings, hours, clock })
  return {
    routes: app => routes.add(app),
    sweep: before => sweepUploads({ db, blobs }, { before }),
    knownParts: ids => findKnownParts(db, ids),
    stop: () => routes.stop(),
  }
}
