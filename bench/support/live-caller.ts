/** Calls over one live connection that pipelines. */
import { connectLive } from './live-client.ts'
import { latencyOf } from './measure.ts'

export interface Calling {
  perSecond: number
  p50: number
  p99: number
  /** Answers that were errors, by their codes. */
  errors: Record<string, number>
}

/**
 * Makes `count` calls with `window` of them unanswered, and answers how fast. What follows from an answer is sent in
 * one write.
 * @param paramsOf JSON
 */
export async function pipelineCalls(given: {
  port: number
  token: string
  call: string
  paramsOf: (index: number) => string
  count: number
  window: number
}): Promise<Calling> {
  const { count, call, paramsOf } = given
  const sentAt = new Float64Array(count)
  const times: number[] = []
  const errors: Record<string, number> = {}
  const ready = Promise.withResolvers<void>()
  const done = Promise.withResolvers<void>()
  let next = 0
  const textOf = () => {
    const index = next++
    sentAt[index] = performance.now()
    return `{"type":"call","id":"${index}","call":"${call}","params":${paramsOf(index)}}`
  }
  const sendMore = (most: number) => client.sendTexts(Array.from({ length: Math.min(most, count - next) }, textOf))
  const client = await connectLive({
    port: given.port,
    token: given.token,
    onText(payload) {
      const { type, results } = JSON.parse(payload.toString()) as {
        type: string
        results: { id: string; error?: { code: string } }[]
      }
      if (type === 'ready') return ready.resolve()
      for (const { id, error } of results) {
        times.push(performance.now() - sentAt[Number(id)]!)
        if (error) errors[error.code] = (errors[error.code] ?? 0) + 1
      }
      if (next < count) sendMore(results.length)
      if (times.length === count) done.resolve()
    },
    onClose: reason => done.reject(new Error(`The connection that calls was closed: ${reason}`)),
  })
  await ready.promise
  const begun = performance.now()
  sendMore(given.window)
  await done.promise
  const perSecond = (count / (performance.now() - begun)) * 1000
  client.close()
  return { perSecond, ...latencyOf(times), errors }
}
