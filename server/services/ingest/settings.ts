import { integer, list, type Settings, type SettingsTable, url } from '#platform/config.ts'

export const ingestSettings = {
  KAFKA_BROKERS: list(
    /^[^\s,:]+:\d{1,5}$/,
    'Kafka brokers, as `host:port,host:port`. With them route A’s log is a Kafka topic a stream; without, PostgreSQL.',
  ),
  KAFKA_PARTITIONS: integer(4, { min: 1, max: 1000 }, 'Partitions of a Kafka topic that Capstan makes.'),
  KAFKA_REPLICAS: integer(1, { min: 1, max: 7 }, 'Copies of a Kafka topic that Capstan makes.'),
  MONGODB_URL: url(
    ['mongodb', 'mongodb+srv'],
    'A MongoDB (or what speaks its protocol) that gets every record as a document of its own.',
  ),
  INGEST_RPC_URL: url(
    ['http'],
    'Where a front sends the records of route A, such as `http://ingest-rpc:8081`. Without it this process takes them itself.',
  ),
  INGEST_STREAMS_MAX: integer(1000, { min: 1, max: 100_000 }, 'Most streams that can be declared.'),
  INGEST_RECORD_BYTES_MAX: integer(65_536, { min: 64, max: 1_048_576 }, 'Longest record, in bytes of its JSON.'),
  INGEST_ARRAY_MAX: integer(10_000, { min: 1, max: 1_000_000 }, 'Most records in one JSON array.'),
  INGEST_ARRAY_BYTES_MAX: integer(
    16_777_216,
    { min: 1024, max: 268_435_456 },
    'Largest body of records, in bytes; NDJSON has no such bound.',
  ),
  INGEST_OPEN_MAX: integer(1000, { min: 1, max: 100_000 }, 'NDJSON requests that may be open at once.'),
  INGEST_IDLE_MS: integer(
    300_000,
    { min: 100, max: 86_400_000 },
    'How long an NDJSON request may neither bring a byte nor take one, in ms; then it is ended.',
  ),
  INGEST_WAITING_MAX: integer(50_000, { min: 1, max: 10_000_000 }, 'Requests of a stream that may wait to be written.'),
  INGEST_ROLLUP_DAYS: integer(
    400,
    { min: 1, max: 36_500 },
    'How long counts by minute and hour are kept, in days; those by day are kept for ever.',
  ),
} satisfies SettingsTable

export type IngestSettings = Settings<typeof ingestSettings>
