/** gRPC as a client of another make speaks it (@grpc/grpc-js), with the messages of a contract. */
import {
  create,
  type DescMethod,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf'
import { BinaryReader } from '@bufbuild/protobuf/wire'
import { type Any, AnySchema, anyUnpack } from '@bufbuild/protobuf/wkt'
import * as grpc from '@grpc/grpc-js'
import { ErrorInfoSchema } from '../../server/proto/google/rpc/error_details_pb.js'
import { atEnd } from './at-end.ts'

export interface CallOptions {
  /** Goes as `authorization: Bearer …`. */
  token?: string | undefined
  metadata?: Record<string, string>
  deadlineMs?: number
}

type In<T extends DescService, M extends keyof T['method']> = MessageInitShape<T['method'][M]['input']>
type Out<T extends DescService, M extends keyof T['method']> = MessageShape<T['method'][M]['output']>

/** A client of one service, closed when the file's tests are done. Failed calls reject with a grpc.ServiceError. */
export function makeGrpcClient<T extends DescService>(service: T, port: number, defaults: CallOptions = {}) {
  const client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), {
    'grpc.enable_retries': 0,
    'grpc.max_send_message_length': -1,
    // One connection a client, not one shared by all of a process.
    'grpc.use_local_subchannel_pool': 1,
  })
  atEnd(() => client.close())

  function argumentsOf(name: PropertyKey, options: CallOptions) {
    const method = (service.method as Record<PropertyKey, DescMethod>)[name]!
    const { token, metadata = {}, deadlineMs } = { ...defaults, ...options }
    const sent = new grpc.Metadata()
    for (const [key, value] of Object.entries(metadata)) sent.set(key, value)
    if (token !== undefined) sent.set('authorization', `Bearer ${token}`)
    return [
      `/${service.typeName}/${method.name}`,
      (message: unknown) =>
        Buffer.from(toBinary(method.input, create(method.input, message as Record<string, unknown>))),
      (bytes: Buffer) => fromBinary(method.output, bytes),
      sent,
      deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs },
    ] as const
  }

  return {
    unary<M extends keyof T['method']>(name: M, request: In<T, M>, options: CallOptions = {}): Promise<Out<T, M>> {
      const [path, write, read, metadata, rest] = argumentsOf(name, options)
      return new Promise((resolve, reject) => {
        client.makeUnaryRequest(path, write, read, request, metadata, rest, (error, answer) =>
          error ? reject(error) : resolve(answer as Out<T, M>),
        )
      })
    },
    /** The stream to write to, and its answer. */
    clientStream<M extends keyof T['method']>(name: M, options: CallOptions = {}) {
      const [path, write, read, metadata, rest] = argumentsOf(name, options)
      const { promise: answer, resolve, reject } = Promise.withResolvers<Out<T, M>>()
      const call = client.makeClientStreamRequest(path, write, read, metadata, rest, (error, value) =>
        error ? reject(error) : resolve(value as Out<T, M>),
      )
      answer.catch(() => {})
      return { call: call as grpc.ClientWritableStream<In<T, M>>, answer }
    },
    serverStream<M extends keyof T['method']>(name: M, request: In<T, M>, options: CallOptions = {}) {
      const [path, write, read, metadata, rest] = argumentsOf(name, options)
      const call = client.makeServerStreamRequest(path, write, read, request, metadata, rest)
      return call as unknown as grpc.ClientReadableStream<Out<T, M>> & AsyncIterable<Out<T, M>>
    },
    bidi<M extends keyof T['method']>(name: M, options: CallOptions = {}) {
      const [path, write, read, metadata, rest] = argumentsOf(name, options)
      const call = client.makeBidiStreamRequest(path, write, read, metadata, rest)
      return call as unknown as grpc.ClientDuplexStream<In<T, M>, Out<T, M>> & AsyncIterable<Out<T, M>>
    },
    close: () => client.close(),
  }
}

/** What a failed call says: the name of its gRPC status, and the stable code in its details. */
export function statusOf(error: unknown): { status: string; code: string | undefined; about: Record<string, string> } {
  const { code, metadata } = error as grpc.ServiceError
  if (metadata === undefined) throw error
  const [packed] = metadata.get('grpc-status-details-bin')
  const info =
    packed === undefined ? undefined : detailsIn(packed as Buffer).map(any => anyUnpack(any, ErrorInfoSchema))[0]
  return { status: grpc.status[code], code: info?.reason, about: info?.metadata ?? {} }
}

/** The third field of a google.rpc.Status. */
function detailsIn(bytes: Uint8Array): Any[] {
  const reader = new BinaryReader(bytes)
  const found: Any[] = []
  const detailsField = 3
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag()
    if (field === detailsField) found.push(fromBinary(AnySchema, reader.bytes()))
    else reader.skip(type)
  }
  return found
}
