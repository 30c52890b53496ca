/** grpc.health.v1: whether calls would be answered. All services are served or none. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Health, HealthCheckResponse_ServingStatus as Status } from '../../proto/grpc/health/v1/health_pb.js'
import { errors } from '../errors.ts'
import type { MethodRule, Rpc } from './rpc.ts'

/** How soon a watcher learns of a database that went away. */
const lookEveryMs = 1000
const rule: MethodRule = { access: 'public', isOperation: true }

export function addHealth(
  rpc: Rpc,
  given: { isServing: () => Promise<boolean>; isStopping: () => boolean; names: () => string[] },
) {
  let announced = new AbortController()
  const knows = (service: string) => service === '' || given.names().includes(service)

  async function statusOf(service: string): Promise<Status> {
    if (!knows(service)) return Status.SERVICE_UNKNOWN
    return !given.isStopping() && (await given.isServing()) ? Status.SERVING : Status.NOT_SERVING
  }

  rpc.addService(Health, {
    rules: { check: rule, list: rule, watch: rule },
    implementation: {
      async check({ service }) {
        if (!knows(service)) throw errors.notFound('Service')
        return { status: await statusOf(service) }
      },
      async list() {
        const status = await statusOf('')
        return { statuses: Object.fromEntries(['', ...given.names()].map(name => [name, { status }])) }
      },
      async *watch({ service }, { signal }) {
        let last: Status | undefined
        while (!signal.aborted) {
          const status = await statusOf(service)
          if (status !== last) yield { status }
          last = status
          // Having said that it stops, it lets go of whoever watches.
          if (given.isStopping()) return
          await sleep(lookEveryMs, undefined, { signal: AbortSignal.any([signal, announced.signal]) }).catch(() => {})
        }
      },
    },
  })

  return {
    /** Something has changed: whoever watches is told now. */
    announce() {
      announced.abort()
      announced = new AbortController()
    },
  }
}
