-- Up Migration

-- Jobs that are not finished. Rows are claimed by writing `worker`, which stands in no index, so that a claim is a
-- heap-only update. Finished rows leave at once: the table stays as small as the backlog.
create table jobs.active (
  id uuid primary key,
  queue text not null,
  owner text,
  priority smallint not null default 0,
  turn bigint not null,
  ready boolean not null,
  run_at timestamptz not null,
  key text,
  payload jsonb not null,
  attempt smallint not null default 0,
  attempts_max smallint not null,
  worker uuid,
  started_at timestamptz,
  cancel_requested boolean not null default false,
  progress jsonb,
  request_id text,
  created_at timestamptz not null default now()
) with (
  fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0.01,
  autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_scale_factor = 0.05,
  autovacuum_analyze_scale_factor = 0.05,
  autovacuum_vacuum_cost_delay = 0
);

-- The order of claims.
create index active_line on jobs.active (queue, priority desc, turn, id) where ready;
create index active_delayed on jobs.active (queue, run_at) where not ready;
-- An owner's last turn, and an owner's list.
create index active_owner on jobs.active (owner, queue, priority, turn) where owner is not null;
create unique index active_key on jobs.active (queue, key) where key is not null;

-- How far the turns of a queue have come: the newest turn claimed.
create table jobs.turns (
  queue text not null,
  priority smallint not null,
  turn bigint not null,
  primary key (queue, priority)
) with (fillfactor = 20);

-- Split by day of creation (the first 48 bits of a UUIDv7 are milliseconds), so that old days are dropped whole.
create table jobs.finished (
  id uuid not null,
  queue text not null,
  owner text,
  priority smallint not null,
  state text not null check (state in ('succeeded', 'dead', 'cancelled')),
  key text,
  payload jsonb not null,
  attempt smallint not null,
  attempts_max smallint not null,
  worker uuid,
  result jsonb,
  error text,
  progress jsonb,
  request_id text,
  created_at timestamptz not null,
  run_at timestamptz not null,
  started_at timestamptz,
  finished_at timestamptz not null default now(),
  primary key (id)
) partition by range (id);

create index finished_owner on jobs.finished (owner, id) where owner is not null;
create index finished_unhappy on jobs.finished (queue, state, id) where state <> 'succeeded';

create table jobs.finished_other partition of jobs.finished default;

create function jobs.day_floor(day date) returns uuid language sql immutable as $$
  select (lpad(to_hex((extract(epoch from day::timestamp) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;

-- Makes a day's part unless it is there, or unless rows of that day already lie in the default part.
create function jobs.make_days(first date, days integer) returns void language plpgsql as $$
declare
  day date;
begin
  for day in select first + n from generate_series(0, days - 1) n loop
    begin
      execute format(
        'create table if not exists jobs.finished_%s partition of jobs.finished for values from (%L) to (%L)',
        to_char(day, 'YYYYMMDD'), jobs.day_floor(day), jobs.day_floor(day + 1));
    exception when check_violation then
      null;
    end;
  end loop;
end
$$;

select jobs.make_days((now() at time zone 'utc')::date, 3);

-- Attempts that did not end a job: it failed, its worker died, or it was handed back. The last one is in the job's row.
create table jobs.attempts (
  id bigint generated always as identity primary key,
  job_id uuid not null,
  attempt smallint not null,
  outcome text not null check (outcome in ('failed', 'lost', 'handed_back')),
  worker uuid,
  error text,
  started_at timestamptz,
  ended_at timestamptz not null default now()
);

create index attempts_job on jobs.attempts (job_id);

create table jobs.workers (
  id uuid primary key,
  host text not null,
  pid integer not null,
  queues text[] not null,
  running jsonb not null default '{}',
  started_at timestamptz not null default now(),
  heartbeat_at timestamptz not null default now(),
  dead_at timestamptz
) with (fillfactor = 20);

-- Counts are appended by whoever changes them and folded once a second, so that nobody waits for a counter's lock.
create table jobs.deltas (
  queue text not null,
  added integer not null default 0,
  succeeded integer not null default 0,
  dead integer not null default 0,
  cancelled integer not null default 0,
  retried integer not null default 0
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table jobs.queues (
  name text primary key,
  added bigint not null default 0,
  succeeded bigint not null default 0,
  dead bigint not null default 0,
  cancelled bigint not null default 0,
  retried bigint not null default 0
) with (fillfactor = 20);

create table jobs.minutes (
  queue text not null,
  minute timestamptz not null,
  added bigint not null default 0,
  succeeded bigint not null default 0,
  dead bigint not null default 0,
  cancelled bigint not null default 0,
  retried bigint not null default 0,
  primary key (queue, minute)
) with (fillfactor = 50);

-- Down Migration

drop table jobs.minutes, jobs.queues, jobs.deltas, jobs.workers, jobs.attempts, jobs.finished, jobs.turns, jobs.active;
drop function jobs.make_days(date, integer);
drop function jobs.day_floor(date);
