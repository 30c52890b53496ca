/** What goes over the wire. */
import { Type } from 'typebox'
import { nullable, time } from '#platform/http/schema.ts'
import type { StoredRecord, StreamRow } from './types.ts'

const route = Type.Union([Type.Literal('a'), Type.Literal('b')])
const offset = Type.String({ description: 'Its place in the stream; pass it as `after`.' })
const audience = Type.Union([Type.Literal('users'), Type.Literal('admins')])

const Accepted = Type.Object({ offset, route })

const Outcomes = Type.Object({
  accepted: Type.Integer(),
  refused: Type.Integer(),
  records: Type.Array(Type.Unknown(), {
    description: 'One for each, in order: `{"offset","route"}`, or `{"error":{"code","message"}}`.',
  }),
})

const Stream = Type.Object({
  name: Type.String(),
  schema: Type.Unknown(),
  dimensions: Type.Array(Type.String()),
  routes: Type.Object({ a: Type.Integer(), b: Type.Integer() }),
  sticky_by: nullable(Type.String()),
  retention_days: Type.Integer(),
  writers: audience,
  readers: audience,
  created_at: time,
  updated_at: time,
})

/** What PUT takes. */
const Declaration = Type.Object(
  {
    schema: Type.Unknown({ description: 'JSON Schema (2020-12) of a record.' }),
    dimensions: Type.Array(Type.String(), {
      default: [],
      description: 'At most 4 fields of a record by which it is counted.',
    }),
    routes: Type.Object(
      { a: Type.Number(), b: Type.Number() },
      {
        default: { a: 50, b: 50 },
        additionalProperties: false,
        description: 'How many of a hundred records take each route.',
      },
    ),
    sticky_by: Type.Optional(
      nullable(
        Type.String({
          maxLength: 64,
          pattern: '^[^\\u0000]*$',
          description: 'Records with equal values of this field take one route.',
        }),
      ),
    ),
    retention_days: Type.Integer({
      default: 30,
      minimum: 1,
      maximum: 36_500,
      description: 'How long records are kept.',
    }),
    writers: Type.Union(audience.anyOf, { default: 'users', description: 'Who may add records.' }),
    readers: Type.Union(audience.anyOf, { default: 'admins', description: 'Who may read records and counts.' }),
  },
  { additionalProperties: false },
)

const Record = Type.Object({ offset, at: time, route, record: Type.Unknown() })

const Counts = Type.Object({
  by: Type.Array(Type.String()),
  every: nullable(Type.String()),
  from: nullable(time),
  to: time,
  total: Type.Integer(),
  rows: Type.Array(
    Type.Object({
      at: Type.Optional(time),
      values: Type.Array(Type.String()),
      count: Type.Integer(),
    }),
  ),
})

export const Shown = { Accepted, Outcomes, Stream, Declaration, Record, Counts }

export function showStream(stream: StreamRow) {
  return {
    name: stream.name,
    schema: stream.schema,
    dimensions: [...stream.dimensions],
    routes: { ...stream.weights },
    sticky_by: stream.stickyBy,
    retention_days: stream.retentionDays,
    writers: stream.writers,
    readers: stream.readers,
    created_at: stream.createdAt.toISOString(),
    updated_at: stream.updatedAt.toISOString(),
  }
}

/** As text: the record is JSON already. */
export function writeRecord({ offset, at, route, text }: StoredRecord): string {
  return `{"offset":"${offset}","at":"${at.toISOString()}","route":"${route}","record":${text}}`
}
