/** grpc.reflection, v1 and v1alpha: tells tools such as grpcurl what can be called, from the descriptors themselves. */
import { create, type DescFile, type DescService, type MessageInitShape, toBinary } from '@bufbuild/protobuf'
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt'
import { Code } from '@connectrpc/connect'
import { file_google_rpc_error_details } from '../../proto/google/rpc/error_details_pb.js'
import {
  ServerReflection,
  type ServerReflectionRequest,
  ServerReflectionResponseSchema,
} from '../../proto/grpc/reflection/v1/reflection_pb.js'
import { ServerReflection as ServerReflectionAlpha } from '../../proto/grpc/reflection/v1alpha/reflection_pb.js'
import type { MethodRule, Rpc } from './rpc.ts'

type Response = MessageInitShape<typeof ServerReflectionResponseSchema>
type Answer = NonNullable<Response['messageResponse']>

const rules: { serverReflectionInfo: MethodRule } = { serverReflectionInfo: { access: 'public', isOperation: true } }

export function addReflection(rpc: Rpc, services: () => readonly DescService[]) {
  let index: ReturnType<typeof makeIndex> | undefined

  async function* serverReflectionInfo(requests: AsyncIterable<ServerReflectionRequest>) {
    index ??= makeIndex(services())
    for await (const request of requests) yield toResponse(request, answer(index, request))
  }

  rpc.addService(ServerReflection, { rules, implementation: { serverReflectionInfo } })
  // The same messages under an older name.
  rpc.addService(ServerReflectionAlpha, { rules, implementation: { serverReflectionInfo } as never })
}

function toResponse(request: ServerReflectionRequest, messageResponse: Answer) {
  return create(ServerReflectionResponseSchema, { validHost: request.host, originalRequest: request, messageResponse })
}

function answer(index: ReturnType<typeof makeIndex>, { messageRequest: asked }: ServerReflectionRequest): Answer {
  switch (asked.case) {
    case 'listServices':
      return { case: 'listServicesResponse', value: { service: index.serviceNames.map(name => ({ name })) } }
    case 'fileByFilename':
      return filesOf(index.byName.get(asked.value), `file ${asked.value}`)
    case 'fileContainingSymbol':
      return filesOf(index.bySymbol.get(asked.value), `symbol ${asked.value}`)
    case 'fileContainingExtension':
      return refusal(Code.NotFound, 'There are no extensions.')
    case 'allExtensionNumbersOfType':
      if (!index.messageNames.has(asked.value)) return refusal(Code.NotFound, `There is no message ${asked.value}.`)
      return { case: 'allExtensionNumbersResponse', value: { baseTypeName: asked.value } }
    default:
      return refusal(Code.InvalidArgument, 'The question is none that this version of reflection knows.')
  }
}

/** The file and everything it imports, so that one answer is enough. */
function filesOf(file: DescFile | undefined, what: string): Answer {
  if (file === undefined) return refusal(Code.NotFound, `There is no ${what}.`)
  const fileDescriptorProto = [...withImports([file])].map(each => toBinary(FileDescriptorProtoSchema, each.proto))
  return { case: 'fileDescriptorResponse', value: { fileDescriptorProto } }
}

function refusal(errorCode: Code, errorMessage: string): Answer {
  return { case: 'errorResponse', value: { errorCode, errorMessage } }
}

function makeIndex(services: readonly DescService[]) {
  // Details of errors are in no method's messages; tools that show them ask for their names.
  const files = withImports([...services.map(service => service.file), file_google_rpc_error_details])
  const bySymbol = new Map<string, DescFile>()
  const messageNames = new Set<string>()
  for (const file of files) for (const symbol of symbolsOf(file, messageNames)) bySymbol.set(symbol, file)
  return {
    serviceNames: services.map(service => service.typeName),
    byName: new Map([...files].map(file => [file.proto.name, file])),
    bySymbol,
    messageNames,
  }
}

function withImports(files: readonly DescFile[], found = new Set<DescFile>()): Set<DescFile> {
  for (const file of files) {
    if (found.has(file)) continue
    found.add(file)
    withImports(file.dependencies, found)
  }
  return found
}

/** Every full name that a file declares. */
function* symbolsOf(file: DescFile, messageNames: Set<string>): Generator<string> {
  for (const service of file.services) {
    yield service.typeName
    for (const method of service.methods) yield `${service.typeName}.${method.name}`
  }
  for (const each of file.enums) yield each.typeName
  const messages = [...file.messages]
  for (let message = messages.pop(); message; message = messages.pop()) {
    messageNames.add(message.typeName)
    yield message.typeName
    for (const field of message.fields) yield `${message.typeName}.${field.name}`
    for (const each of message.nestedEnums) yield each.typeName
    messages.push(...message.nestedMessages)
  }
}
