import { PassThrough, type Readable } from 'node:stream'
import type { ImagesSettings } from '../settings.ts'

type Pace = Pick<ImagesSettings, 'IMAGE_IDLE_MS' | 'IMAGE_UPLOAD_MS'>

export interface Body {
  stream: Readable
  /** Ends the stream at what has come; the source is left alone from then on. */
  end(): void
}

/**
 * A body that ends where its sender stops, goes away or takes too long, instead of breaking: what came is kept, and the
 * sender goes on from there. Time in which nobody takes its bytes does not count as idle.
 */
export function openBody(source: Readable, pace: Pace): Body {
  const stream = new PassThrough()
  // Whoever reads it may give it up with an error; that is no news here.
  stream.on('error', () => {})
  const whole = setTimeout(end, pace.IMAGE_UPLOAD_MS)
  const idle = setTimeout(() => (stream.writableNeedDrain ? idle.refresh() : end()), pace.IMAGE_IDLE_MS)
  const onData = () => void idle.refresh()
  let ended = false

  function end() {
    if (ended) return
    ended = true
    clearTimeout(whole)
    clearTimeout(idle)
    source.off('data', onData).off('close', end).off('error', end).off('end', end)
    source.unpipe(stream)
    // A source that breaks afterwards has nobody else to tell it to.
    source.on('error', () => {})
    if (!stream.destroyed) stream.end()
  }

  source.on('data', onData).on('close', end).on('error', end).on('end', end)
  source.pipe(stream, { end: false })
  stream.on('close', end)
  // Its sender may have gone before it was opened, and is not heard of again.
  if (source.destroyed || source.readableEnded) end()
  return { stream, end }
}
