import { AppError } from '#platform/errors.ts'

export const errors = {
  streamNotFound: (name: string) =>
    new AppError({
      code: 'stream_not_found',
      status: 404,
      message: `There is no stream \`${name.slice(0, 64)}\` that you may use. An admin declares one by PUT /v1/streams/{name}.`,
    }),
  streamChanged: (name: string) =>
    new AppError({
      code: 'stream_changed',
      status: 409,
      message: `The stream \`${name.slice(0, 64)}\` was deleted just now, or deleted and declared anew. Nothing was accepted; try it again.`,
    }),
  badStreamName: () =>
    new AppError({
      code: 'bad_stream_name',
      status: 400,
      message: 'A stream’s name is 1 to 64 of a–z, 0–9, `_` and `-`, and begins with a letter.',
    }),
  badSchema: (why: string) =>
    new AppError({
      code: 'bad_schema',
      status: 400,
      message: `\`schema\` is no JSON Schema that can be used here: ${why}.`,
    }),
  badDimensions: (why: string) => new AppError({ code: 'bad_dimensions', status: 400, message: why }),
  badWeights: () =>
    new AppError({
      code: 'bad_weights',
      status: 400,
      message: 'The weights of the routes `a` and `b` are whole numbers from 0 to 100 that add up to 100.',
    }),
  tooManyStreams: (max: number) =>
    new AppError({
      code: 'too_many_streams',
      status: 409,
      message: `There are ${max} streams already, and no room for more.`,
    }),
  recordNotJson: () =>
    new AppError({ code: 'record_not_json', status: 400, message: 'The record is not valid JSON in UTF-8.' }),
  recordNotAnObject: () =>
    new AppError({ code: 'record_not_an_object', status: 400, message: 'A record is a JSON object.' }),
  recordTooLarge: (bytesMax: number) =>
    new AppError({
      code: 'record_too_large',
      status: 413,
      message: `The record is longer than ${bytesMax} bytes.`,
      details: { bytes_max: bytesMax },
    }),
  recordTooDeep: (depthMax: number) =>
    new AppError({
      code: 'record_too_deep',
      status: 400,
      message: `The record is nested deeper than ${depthMax} levels.`,
      details: { depth_max: depthMax },
    }),
  recordHasDuplicateKeys: () =>
    new AppError({
      code: 'record_has_duplicate_keys',
      status: 400,
      message: 'The record has the same key twice in one object, so it is not clear what it says.',
    }),
  recordInvalid: (why: string) =>
    new AppError({
      code: 'record_invalid',
      status: 422,
      message: `The record does not fit its stream’s schema: ${why}.`,
    }),
  recordCutOff: () =>
    new AppError({
      code: 'record_cut_off',
      status: 400,
      message: 'The body ended in the middle of this line, which was not taken.',
    }),
  linesIdle: (ms: number) =>
    new AppError({
      code: 'records_idle',
      status: 408,
      message: `Nothing came or was read for ${ms} ms, so the request was ended. Go on behind the last line that was answered.`,
      details: { idle_ms: ms },
    }),
  recordsTooMany: (max: number) =>
    new AppError({
      code: 'records_too_many',
      status: 413,
      message: `An array holds at most ${max} records; send more as NDJSON (\`Content-Type: application/x-ndjson\`).`,
      details: { records_max: max },
    }),
  recordsEmpty: () => new AppError({ code: 'records_empty', status: 400, message: 'The body holds no record.' }),
  badOffset: () =>
    new AppError({
      code: 'bad_offset',
      status: 400,
      message: '`after` is an offset as it was answered for a record, or 0 for the beginning.',
    }),
  badCountsQuery: (why: string) => new AppError({ code: 'bad_counts_query', status: 400, message: why }),
  countsBehind: () =>
    new AppError({
      code: 'counts_behind',
      status: 503,
      message: 'So much came that the counts are behind; they catch up by themselves. Try again shortly.',
      retryAfterSeconds: 5,
    }),
  relayRefused: () =>
    new AppError({
      code: 'relay_refused',
      status: 401,
      message: 'Only Capstan’s own front calls this; records of yours go in by Append.',
    }),
  routeUnavailable: (why: string) =>
    new AppError({
      code: 'route_unavailable',
      status: 503,
      message: `The records’ route is away just now: ${why}. What has no offset was not accepted for certain; try it again.`,
      retryAfterSeconds: 2,
    }),
}
