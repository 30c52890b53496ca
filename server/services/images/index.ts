import { rm } from 'node:fs/promises'
import path from 'node:path'
import type { BlobStore } from '#platform/blobs/types.ts'
import type { Bus } from '#platform/bus.ts'
import type { PlatformSettings } from '#platform/config.ts'
import type { Database } from '#platform/database/pool.ts'
import type { OpenRoutes } from '#platform/http/open-routes.ts'
import type { HttpApp } from '#platform/http/server.ts'
import type { Jobs } from '#platform/jobs/jobs.ts'
import type { Live } from '#platform/live/live.ts'
import type { Log } from '#platform/log.ts'
import { makeWaits } from '#platform/waits.ts'
import { addCompatRoutes } from './compat.ts'
import { listFormats } from './formats.ts'
import { type Images, makeImages } from './images.ts'
import { begunChannel, endedChannel, makeEraseQueue, makeImageQueue } from './jobs.ts'
import { assertPresetsFit, makePlanner } from './plans.ts'
import { makeProcessor } from './processing/processor.ts'
import { makePublisher } from './publishing.ts'
import { makeReceiver } from './receiving.ts'
import { makeResumable } from './resumable/resumable.ts'
import { addRoutes } from './routes.ts'
import { makeScan } from './scanning.ts'
import { addServingRoutes } from './serving/routes.ts'
import { makeServing } from './serving/serving.ts'
import type { ImagesSettings } from './settings.ts'
import * as store from './store.ts'
import { makeSweeper } from './sweeping.ts'
import { addUploadRoutes, leaveBodies } from './upload-routes.ts'
import { makeWorkFolder } from './work-folder.ts'

export { type ImagesSettings, imagesSettings } from './settings.ts'
export const imageScopes = ['images:read', 'images:write', 'images:sweep'] as const

export interface ImagesDeps {
  db: Database
  jobs: Pick<Jobs, 'add' | 'define' | 'depth' | 'cancel'>
  live: Pick<Live, 'addSource' | 'wake'>
  bus: Bus
  blobs: BlobStore
  log: Log
  settings: ImagesSettings & Pick<PlatformSettings, 'DATA_DIR' | 'PUBLIC_URL'>
  openRoutes: OpenRoutes
  /** Whether this process works on what was uploaded. What is asked for on the fly is made by whoever is asked. */
  work: boolean
  clock?: () => number
}

export interface ImagesService extends Pick<Images, 'accept'> {
  routes(app: HttpApp): Promise<void>
  compatRoutes(app: HttpApp): Promise<void>
  /** Sees to it that a sweep is waiting; call it now and then. */
  maintain(): Promise<void>
  /** Lets requests that wait for an image have it, for at most so long. */
  endWaits(graceMs: number): Promise<void>
  /** Ends the processes that decode. Call it when requests and jobs have stopped. */
  stop(): Promise<void>
}

/** @throws SettingsError for settings that do not go together */
export async function makeImagesService(deps: ImagesDeps): Promise<ImagesService> {
  const { db, jobs, live, bus, blobs, log, settings, work } = deps
  const clock = deps.clock ?? Date.now
  assertPresetsFit(settings)
  const workFolder = await makeWorkFolder(path.resolve(settings.DATA_DIR, 'work'))
  const processor = makeProcessor({
    workers: settings.N_WORKERS,
    memoryBytes: settings.IMAGE_MEMORY_BYTES,
    timeoutMs: settings.IMAGE_MS_MAX,
    log,
  })
  const publisher = makePublisher(settings.BASE_PATH)
  const receiver = makeReceiver({ blobs, log, settings, clock })
  const images = makeImages({ db, jobs, live, receiver, settings, clock })
  const resumable = makeResumable({
    db,
    blobs,
    receiver,
    images,
    settings,
    log,
    clock,
    hours: settings.IMAGE_UPLOAD_HOURS,
  })
  const sweeper = makeSweeper({ db, jobs, blobs, resumable, settings, work, clock })
  jobs.define(
    makeImageQueue({
      db,
      jobs,
      live,
      bus,
      blobs,
      settings,
      processor: work ? processor : undefined,
      plan: makePlanner(settings, publisher),
      scan: makeScan(settings),
      workFolder,
    }),
  )
  jobs.define(makeEraseQueue({ blobs, publisher, work }))
  jobs.define(sweeper.queue)
  live.addSource(images.source)
  const begun = makeWaits({ bus, log, channel: begunChannel, find: ids => store.findBegun(db, ids) })
  const ended = makeWaits({ bus, log, channel: endedChannel, find: ids => store.findEnded(db, ids) })
  const serving = makeServing({ db, blobs, processor, settings, log, clock, workFolder })

  return {
    accept: images.accept,
    async routes(app) {
      addRoutes(app, { images, formats: listFormats(settings), sweeper, settings })
      await addServingRoutes(app, { serving, settings })
      await resumable.routes(app)
      await app.register(async scope => {
        leaveBodies(scope as HttpApp)
        addUploadRoutes(scope as HttpApp, { images, receiver, ended, settings })
      })
    },
    async compatRoutes(app) {
      await app.register(async scope => {
        leaveBodies(scope as HttpApp)
        addCompatRoutes(scope as HttpApp, { images, receiver, begun, openRoutes: deps.openRoutes, settings })
      })
    },
    maintain: () => sweeper.schedule(),
    async endWaits(graceMs) {
      // A piece of an upload that is under way is kept as far as it came, and answered so.
      await Promise.all([begun.end(graceMs), ended.end(graceMs), resumable.stop()])
    },
    async stop() {
      await serving.stop()
      await processor.close()
      await rm(workFolder, { recursive: true, force: true })
    },
  }
}
