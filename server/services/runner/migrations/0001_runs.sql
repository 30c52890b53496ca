-- Up Migration

-- A run and, when it has ended, its result. Its job has the same id.
create table runner.runs (
  id uuid primary key,
  owner text not null,
  owner_name text not null,
  language text not null,
  language_version text,
  files jsonb not null,
  stdin text not null default '',
  args text[] not null default '{}',
  limits jsonb not null,
  status text not null default 'queued' check (status in
    ('queued', 'running', 'succeeded', 'failed', 'timed_out', 'out_of_memory', 'output_limit', 'cancelled', 'error')),
  attempt smallint not null default 0,
  stdout bytea,
  stderr bytea,
  stdout_truncated boolean not null default false,
  stderr_truncated boolean not null default false,
  exit_code integer,
  signal text,
  cpu_ms integer,
  wall_ms integer,
  memory_bytes bigint,
  error text,
  compile jsonb,
  created_at timestamptz not null,
  started_at timestamptz,
  finished_at timestamptz
) with (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

create index runs_owner on runner.runs (owner, id);

-- What happened to a run, numbered 1, 2, 3, …: its live topic. Output is kept as it was written, piece by piece.
create table runner.run_events (
  run_id uuid not null,
  seq integer not null,
  type text not null check (type in ('status', 'output')),
  data jsonb,
  stream text,
  chunk bytea,
  at timestamptz not null default now(),
  primary key (run_id, seq)
);

-- Down Migration

drop table runner.run_events;
drop table runner.runs;
