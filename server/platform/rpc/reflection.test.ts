import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, createFileRegistry, fromBinary, type MessageInitShape } from '@bufbuild/protobuf'
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt'
import { makeGrpcClient } from '../../../test/support/grpc.ts'
import { ServerReflection, type ServerReflectionRequestSchema } from '../../proto/grpc/reflection/v1/reflection_pb.js'
import { ServerReflection as Alpha } from '../../proto/grpc/reflection/v1alpha/reflection_pb.js'
import { makeTestRpc } from './test-kit.ts'

type Question = MessageInitShape<typeof ServerReflectionRequestSchema>['messageRequest']

const nothing = { say: undefined, gather: undefined, count: undefined, repeat: undefined } as never
const { port } = await makeTestRpc({
  implementation: new Proxy(nothing, { get: () => () => Promise.reject(new Error('not called')) }),
})

for (const service of [ServerReflection, Alpha] as const) {
  const ask = async (question: Question) => {
    const call = makeGrpcClient(service, port).bidi('serverReflectionInfo')
    call.write({ messageRequest: question } as never)
    call.end()
    const [answer] = await Array.fromAsync(call)
    return answer!.messageResponse
  }

  test(`${service.typeName} lists the services`, async () => {
    const answer = await ask({ case: 'listServices', value: '*' })
    assert.equal(answer.case, 'listServicesResponse')
    const names = (answer.value as { service: { name: string }[] }).service.map(each => each.name)
    assert.deepEqual(names.sort(), [
      'grpc.health.v1.Health',
      'grpc.reflection.v1.ServerReflection',
      'grpc.reflection.v1alpha.ServerReflection',
      'test.v1.Echo',
    ])
  })

  const questions: [what: string, question: Question, found: string][] = [
    ['a service', { case: 'fileContainingSymbol', value: 'test.v1.Echo' }, 'test.v1.Echo'],
    ['a method', { case: 'fileContainingSymbol', value: 'test.v1.Echo.Say' }, 'test.v1.Echo'],
    ['a message', { case: 'fileContainingSymbol', value: 'test.v1.Text' }, 'test.v1.Text'],
    ['a field', { case: 'fileContainingSymbol', value: 'test.v1.Text.text' }, 'test.v1.Text'],
    [
      'a nested enum',
      { case: 'fileContainingSymbol', value: 'grpc.health.v1.HealthCheckResponse.ServingStatus' },
      'grpc.health.v1.Health',
    ],
    [
      'a detail of errors, with what it imports',
      { case: 'fileContainingSymbol', value: 'google.rpc.RetryInfo' },
      'google.protobuf.Duration',
    ],
    ['a file', { case: 'fileByFilename', value: 'test/v1/echo.proto' }, 'test.v1.Echo'],
  ]
  for (const [what, question, found] of questions) {
    test(`${service.typeName} answers the file of ${what}`, async () => {
      const answer = await ask(question)
      assert.equal(answer.case, 'fileDescriptorResponse')
      const bytes = (answer.value as { fileDescriptorProto: Uint8Array[] }).fileDescriptorProto
      // Imports first, as registries want them.
      const file = bytes.map(each => fromBinary(FileDescriptorProtoSchema, each)).reverse()
      assert.ok(createFileRegistry(create(FileDescriptorSetSchema, { file })).get(found))
    })
  }

  const refusals: [what: string, question: Question, code: number][] = [
    ['a symbol that is not there', { case: 'fileContainingSymbol', value: 'test.v1.Nothing' }, 5],
    ['a file that is not there', { case: 'fileByFilename', value: 'test/v1/nothing.proto' }, 5],
    [
      'an extension',
      { case: 'fileContainingExtension', value: { containingType: 'test.v1.Text', extensionNumber: 7 } },
      5,
    ],
    ['extensions of what is no message', { case: 'allExtensionNumbersOfType', value: 'test.v1.Echo' }, 5],
    ['nothing', undefined, 3],
  ]
  for (const [what, question, code] of refusals) {
    test(`${service.typeName} refuses ${what}`, async () => {
      const answer = await ask(question)
      assert.equal(answer.case, 'errorResponse')
      assert.equal((answer.value as { errorCode: number }).errorCode, code)
    })
  }

  test(`${service.typeName} knows messages without extensions`, async () => {
    const answer = await ask({ case: 'allExtensionNumbersOfType', value: 'test.v1.Text' })
    assert.equal(answer.case, 'allExtensionNumbersResponse')
  })
}
