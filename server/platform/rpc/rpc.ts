/**
 * gRPC over HTTP/2 without TLS. Services register with `addService`, which states for every method who may call it.
 * Before a call's first message is read it is authenticated and counted; its errors are translated by `status.ts`.
 *
 * States of the server: made → listening → stopping (not serving, streams end, calls in progress finish) → stopped.
 */
import http2 from 'node:http2'
import type { AddressInfo } from 'node:net'
import type { DescMethod, DescService } from '@bufbuild/protobuf'
import { createConnectRouter, type MethodImpl, type ServiceImpl } from '@connectrpc/connect'
import type { UniversalHandler } from '@connectrpc/connect/protocol'
import { compressionGzip } from '@connectrpc/connect-node'
import type { PlatformSettings } from '../config.ts'
import { errors } from '../errors.ts'
import type { Access, Authenticate } from '../http/guard.ts'
import type { RateLimiter } from '../http/rate-limit.ts'
import type { Log } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import { settleCalls } from './call.ts'
import { makeGate } from './gate.ts'
import { addHealth } from './health.ts'
import { addReflection } from './reflection.ts'
import { makeServing, type OpenCall } from './serving.ts'
import { serverOptions, trackSessions } from './sessions.ts'
import { statusOf } from './status.ts'

/** Who may call a method, as for a route. */
export interface MethodRule {
  access: Access
  /** The scope an API key needs. */
  scope?: string
  /** For probes: counted against nobody. */
  isOperation?: boolean
  /** A stream to the client that has no end of its own: ended when the process stops, with `unavailable`. */
  isEndless?: boolean
}

export interface RpcService<T extends DescService> {
  implementation: ServiceImpl<T>
  rules: { [M in keyof T['method']]: MethodRule }
}

export interface RpcOptions {
  settings: Pick<PlatformSettings, 'HOST' | 'TRUST_PROXY'>
  log: Log
  metrics: Metrics
  authenticate: Authenticate
  /** Counted by caller, or by address where nobody is logged in. */
  rateLimiter: RateLimiter
  /** Whether calls would be answered; health says so. */
  isServing: () => Promise<boolean>
  /** How long a client may take for its next message, for all of a single one, and for reading what it is sent. */
  idleMs?: number
  /** How often the credential of a stream is looked at again. */
  recheckMs?: number
}

export interface Rpc {
  /** Before `start`. @throws an Error for a method without a rule */
  addService<T extends DescService>(service: T, given: RpcService<T>): void
  /** Answers the port. @param port 0 takes a free one */
  start(port: number): Promise<number>
  /** Says it is not serving, ends streams, lets calls finish for `graceMs`. What they have read they finish. */
  stop(graceMs: number): Promise<void>
}

const idleMsDefault = 60_000
const recheckMsDefault = 5000
/** Browsers speak HTTP to the API; here there is one protocol. */
const onlyGrpc = { connect: false, grpcWeb: false }
/** What gRPC libraries take by default. */
const messageBytesMax = 4 * 1024 * 1024
/** Of those who have not said who they are. */
const publicBytesMax = 64 * 1024
/** Smaller answers go as they are: compressing them costs more than it saves. */
const compressBytesMin = 16 * 1024

export function makeRpc(options: RpcOptions): Rpc {
  const { log, settings } = options
  const services: DescService[] = []
  const rules = new Map<DescMethod, MethodRule>()
  const calls = new Set<OpenCall>()
  let stopping = false

  const router = createConnectRouter({
    acceptCompression: [compressionGzip],
    compressMinBytes: compressBytesMin,
    interceptors: [settleCalls],
    requestGate: makeGate({ recheckMs: recheckMsDefault, ...options, ruleOf }),
  })

  const rpc: Rpc = {
    addService(service, given) {
      services.push(service)
      for (const method of service.methods) {
        const name = method.localName as keyof typeof given.rules
        const rule = given.rules[name]
        if (rule === undefined) {
          throw new Error(`The method ${service.typeName}/${method.name} does not state who may call it.`)
        }
        rules.set(method, rule)
        const implementation = given.implementation[name].bind(given.implementation) as MethodImpl<DescMethod>
        router.rpc(method, implementation, {
          ...onlyGrpc,
          readMaxBytes: rule.access === 'public' ? publicBytesMax : messageBytesMax,
        })
      }
    },
    async start(port) {
      const handlers = new Map<string, UniversalHandler>(router.handlers.map(each => [each.requestPath, each]))
      server.on('stream', makeServing({ idleMs: idleMsDefault, ...options, handlers, ruleOf, calls }))
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject)
        server.listen(port, settings.HOST, () => {
          server.off('error', reject)
          resolve()
        })
      })
      server.on('error', error => log.error({ err: error }, 'the gRPC server has trouble'))
      return (server.address() as AddressInfo).port
    },
    async stop(graceMs) {
      stopping = true
      health.announce()
      const closed = sessions.close()
      for (const call of calls) call.stop(statusOf(errors.unavailable('This process stops just now; try again.', 1)))
      const late = setTimeout(() => sessions.destroy(), graceMs)
      await closed
      clearTimeout(late)
    },
  }

  function ruleOf(method: DescMethod): MethodRule {
    return rules.get(method)!
  }

  const server = http2.createServer(serverOptions)
  const sessions = trackSessions(server, log)
  const health = addHealth(rpc, {
    isServing: options.isServing,
    isStopping: () => stopping,
    names: () => services.map(service => service.typeName),
  })
  addReflection(rpc, () => services)
  return rpc
}
