-- Up Migration

-- What is declared of a stream.
create table ingest.streams (
  id integer generated always as identity primary key,
  name text not null unique,
  -- JSON Schema of a record.
  schema jsonb not null,
  -- Fields by which records are counted.
  dimensions text[] not null,
  -- Weights of the routes a and b.
  weight_a integer not null check (weight_a >= 0),
  weight_b integer not null check (weight_b >= 0),
  -- Field whose equal values take one route; null where each record goes by the weights alone.
  sticky_by text,
  retention_days integer not null,
  -- Who may add records, and who may read them and their counts.
  writers text not null check (writers in ('users', 'admins')),
  readers text not null check (readers in ('users', 'admins')),
  -- Counts declarations, so that processes notice a new one.
  version integer not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  check (weight_a + weight_b > 0)
);

-- The newest numbers of a stream. Whoever adds to it holds this row, so numbers are in the order of the commits.
create table ingest.heads (
  stream_id integer primary key references ingest.streams (id) on delete cascade,
  -- Records have the offsets 1, 2, 3, … without a gap.
  last_offset bigint not null default 0,
  -- Deltas have the numbers 1, 2, 3, … without a gap.
  last_delta bigint not null default 0,
  last_at timestamptz not null default '-infinity'
) with (fillfactor = 10);

-- Records that shared a commit: their JSON texts, a line each. Split by day, so that what is too old is dropped.
create table ingest.segments (
  stream_id integer not null,
  first_offset bigint not null,
  last_offset bigint not null,
  at timestamptz not null,
  route text not null check (route in ('a', 'b')),
  lines text not null,
  -- Where the segment came by Kafka: its partition and the place there of its first record.
  kafka_partition integer,
  kafka_offset bigint
) partition by range (at);

create index segments_offset on ingest.segments (stream_id, first_offset);
create index segments_route on ingest.segments (stream_id, route, first_offset);
create index segments_kafka on ingest.segments (stream_id, kafka_partition, kafka_offset) where kafka_partition is not null;
create table ingest.segments_other partition of ingest.segments default;

-- Lines are long: they are stored beside the row as they are where lz4 is not built in, since pglz costs more than it saves.
do $$
begin
  alter table ingest.segments alter column lines set compression lz4;
  alter table ingest.segments_other alter column lines set compression lz4;
exception when others then
  alter table ingest.segments alter column lines set storage external;
  alter table ingest.segments_other alter column lines set storage external;
end $$;

-- Each record a row, for whoever looks by SQL.
create view ingest.records as
  select t.name as stream, s.first_offset + l.n - 1 as "offset", s.at, s.route, l.line::json as data
  from ingest.segments s
  join ingest.streams t on t.id = s.stream_id
  cross join lateral string_to_table(s.lines, E'\n') with ordinality as l(line, n);

-- Makes a day's part unless it is there, or unless segments of that day already lie in the default part.
create function ingest.make_days(first date, days integer) returns void language plpgsql as $$
declare
  day date;
begin
  for day in select first + n from generate_series(0, days - 1) n loop
    begin
      execute format(
        'create table if not exists ingest.segments_%s partition of ingest.segments for values from (%L) to (%L)',
        to_char(day, 'YYYYMMDD'), day::timestamp at time zone 'utc', (day + 1)::timestamp at time zone 'utc');
    exception when check_violation then
      null;
    end;
  end loop;
end
$$;

select ingest.make_days((now() at time zone 'utc')::date, 3);

-- What records add to the counts, a row a batch, until it is merged into the rollups.
create table ingest.deltas (
  stream_id integer not null references ingest.streams (id) on delete cascade,
  seq bigint not null,
  minute timestamptz not null,
  -- Names of the dimensions, joined by commas.
  dimensions text not null,
  -- `{"<route>": [[[value, …], count], …]}`: how often each combination of values came.
  counts text not null,
  primary key (stream_id, seq)
);

-- How many records a bucket of time has of each combination of values, for each set of dimensions.
create table ingest.rollups (
  stream_id integer not null references ingest.streams (id) on delete cascade,
  -- Seconds of a bucket: 60, 3600, 86400.
  grain integer not null,
  -- Names of the set, joined by commas; empty for all records together.
  dimensions text not null,
  bucket timestamptz not null,
  -- The values as a JSON array.
  key text not null,
  count bigint not null,
  primary key (stream_id, grain, dimensions, bucket, key)
) with (fillfactor = 70);

-- Combinations of values that are counted as themselves; the rest of them is counted under one name.
create table ingest.keys (
  stream_id integer not null references ingest.streams (id) on delete cascade,
  dimensions text not null,
  key text not null,
  primary key (stream_id, dimensions, key)
);

-- How far each reader of a stream has come. Its holder works on it until its lease is over.
create table ingest.cursors (
  stream_id integer not null references ingest.streams (id) on delete cascade,
  name text not null,
  position bigint not null default 0,
  holder text,
  held_until timestamptz,
  primary key (stream_id, name)
) with (fillfactor = 10);

-- The place up to which each partition of a Kafka topic has been taken over.
create table ingest.kafka_offsets (
  stream_id integer not null references ingest.streams (id) on delete cascade,
  partition integer not null,
  next_offset bigint not null default 0,
  -- Kafka's own id of the topic: one that was made anew begins at its beginning.
  topic_id text not null,
  primary key (stream_id, partition)
) with (fillfactor = 10);

-- Processes that take over what lies in Kafka; they share its partitions out.
create table ingest.kafka_consumers (
  holder text primary key,
  held_until timestamptz not null
);

-- What other stores may still have of streams that were deleted.
create table ingest.leftovers (
  stream_id integer not null,
  store text not null check (store in ('kafka', 'mongodb', 'redis')),
  name text not null,
  deleted_at timestamptz not null default now(),
  -- When it is to be removed next; whoever is at it puts it off for a while.
  due_at timestamptz not null,
  primary key (stream_id, store)
) with (fillfactor = 50);

-- Down Migration

drop table ingest.leftovers;
drop table ingest.kafka_consumers;
drop table ingest.kafka_offsets;
drop table ingest.cursors;
drop table ingest.keys;
drop table ingest.rollups;
drop table ingest.deltas;
drop function ingest.make_days(date, integer);
drop view ingest.records;
drop table ingest.segments;
drop table ingest.heads;
drop table ingest.streams;
