/** A gRPC server with a service that does what tests need, for callers whose token is their name. */
import { create, createFileRegistry, type DescService, type Message } from '@bufbuild/protobuf'
import { FieldDescriptorProto_Label, FieldDescriptorProto_Type, FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt'
import type { HandlerContext } from '@connectrpc/connect'
import { atEnd } from '../../../test/support/at-end.ts'
import { type CallOptions, makeGrpcClient } from '../../../test/support/grpc.ts'
import { errors } from '../errors.ts'
import type { Caller } from '../http/guard.ts'
import { makeRateLimiter } from '../http/rate-limit.ts'
import { makeLog } from '../log.ts'
import { makeMetrics } from '../metrics.ts'
import { type MethodRule, makeRpc, type RpcOptions, type RpcService } from './rpc.ts'

export type Text = Message & { text: string }

/** What each method of the test service does; each test file says. */
export interface EchoImplementation {
  say(request: Text, context: HandlerContext): Promise<{ text: string }>
  gather(requests: AsyncIterable<Text>, context: HandlerContext): Promise<{ text: string }>
  count(request: Text, context: HandlerContext): AsyncIterable<{ text: string }>
  repeat(requests: AsyncIterable<Text>, context: HandlerContext): AsyncIterable<{ text: string }>
}

/** `test.v1.Echo` with one method of each kind, all of them from Text to Text. */
export const Echo: DescService = describeEcho()

function describeEcho(): DescService {
  const method = (name: string, clientStreaming: boolean, serverStreaming: boolean) => {
    const type = '.test.v1.Text'
    return { name, inputType: type, outputType: type, clientStreaming, serverStreaming }
  }
  const text = {
    name: 'text',
    jsonName: 'text',
    number: 1,
    label: FieldDescriptorProto_Label.OPTIONAL,
    type: FieldDescriptorProto_Type.STRING,
  }
  const file = {
    name: 'test/v1/echo.proto',
    package: 'test.v1',
    syntax: 'proto3',
    messageType: [{ name: 'Text', field: [text] }],
    service: [
      {
        name: 'Echo',
        method: [
          method('Say', false, false),
          method('Gather', true, false),
          method('Count', false, true),
          method('Repeat', true, true),
        ],
      },
    ],
  }
  return createFileRegistry(create(FileDescriptorSetSchema, { file: [file] })).getService('test.v1.Echo')!
}

const known: Record<string, Pick<Caller, 'role' | 'by' | 'scopes'>> = {
  ann: { role: 'user', by: 'session' },
  root: { role: 'admin', by: 'session' },
  key: { role: 'user', by: 'api_key', scopes: ['echo:write'] },
  bob: { role: 'user', by: 'session' },
}

const user: MethodRule = { access: 'user' }
/** The name's token is none any more. */
export function revoke(name: string) {
  delete known[name]
}

export const rulesForUsers = { say: user, gather: user, count: user, repeat: user }

export async function makeTestRpc(given: {
  implementation: EchoImplementation
  rules?: Partial<Record<keyof EchoImplementation, MethodRule>>
  options?: Partial<RpcOptions>
  perMinute?: number
}) {
  const metrics = makeMetrics({ processMetrics: false })
  const complaints: string[] = []
  const rpc = makeRpc({
    settings: { HOST: '127.0.0.1', TRUST_PROXY: false },
    log: makeLog('error', { write: line => void complaints.push(line) }),
    metrics,
    authenticate: async ({ headers }) => {
      const name = headers.authorization?.replace('Bearer ', '') ?? ''
      const found = known[name]
      if (!found) throw errors.unauthenticated()
      return { userId: name, name, credentialId: name, ...found }
    },
    rateLimiter: makeRateLimiter({
      name: 'test',
      points: given.perMinute ?? 0,
      windowSeconds: 60,
      redis: undefined,
    }),
    isServing: async () => true,
    ...given.options,
  })
  rpc.addService(Echo, {
    implementation: given.implementation,
    rules: { ...rulesForUsers, ...given.rules },
  } as unknown as RpcService<typeof Echo>)
  const port = await rpc.start(0)
  const graceMs = 200
  atEnd(() => rpc.stop(graceMs))
  return { rpc, port, metrics, complaints, client: (options?: CallOptions) => makeGrpcClient(Echo, port, options) }
}
